"""The report says the same in JSON, in the page and in a terminal, and the page needs nothing else."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import pytest
from rich.console import Console

from edgeml.exporter.parity import UNMEASURED
from edgeml.exporter.parity.classes import ClassDrop, ClassEvidence, Confusion
from edgeml.exporter.report import ArtifactReport, Latency, Report, Stage, to_json, verdict_of, write_report
from edgeml.exporter.report import text as words
from edgeml.exporter.report.html import snippet, to_html
from edgeml.exporter.report.plots import size_accuracy, time_accuracy
from edgeml.exporter.report.structs import Repair, SetTried
from edgeml.exporter.report.terminal import plain_lines, print_report
from edgeml.wire.errors import EnvironmentProblem
from edgeml.wire.manifest import (
    Binding,
    DataSet,
    Deferral,
    KeptFloat,
    Parity,
    Precision,
    Promise,
    Quantization,
    Signature,
    SourceFile,
    Status,
    Task,
    TensorSpec,
)

SIGNATURE = Signature(
    (TensorSpec("audio", "float32", ("batch", 49, 10, 1), "NHWC"),), (TensorSpec("p", "float32", ("batch", 12)),)
)


def artifact(precision: Precision, size: int, drop: float, upper: float, status: Status = "pass") -> ArtifactReport:
    needed = 1450 if status == "inconclusive" else None
    task = Task("top1_accuracy", 0.9075 - drop / 100, 0.9075, drop, upper, 800, status, 1.0, needed)
    parity = Parity("pass", "verified", 800, 2e-7, 1e-8, 1.0, 1e-4 if precision == "fp32" else None)
    binding = Binding("audio", "serving_default_audio:0", 0, "int8", (1, 49, 10, 1), Quantization(0.58, 83))
    return ArtifactReport(
        "onnx",
        precision,
        status,
        size,
        "ab" * 32,
        "float32",
        "onnxruntime 1.24",
        parity,
        task,
        inputs=(binding,),
        latency=Latency(3e-5, 4e-5, 100, low_s=2.9e-5, high_s=3.2e-5),
    )


BROKEN = ArtifactReport("coreml", "int8", "fail", error="output 'p', sample 17: nan <script>alert(1)</script>", packed=False)
REPORT = Report(
    name="kws",
    version="1.2.0",
    verdict="fail",
    summary="3 of 4 artifacts are in the bundle.",
    artifacts=(
        artifact("fp32", 99_424, 0.0, 0.34),
        artifact("fp16", 51_200, 0.0, 0.34),
        artifact("int8", 48_092, 0.5, 1.22, "inconclusive"),
        BROKEN,
    ),
    source=SourceFile("savedmodel", "cd" * 32, 412_345),
    source_name="kws_savedmodel",
    task="classify",
    signature=SIGNATURE,
    bundle="kws-1.2.0.edgeml",
    bundle_bytes=612_345,
    digest="ef" * 32,
    labels=("yes", "no & maybe"),
    calibration=DataSet(200, "aa" * 32),
    evaluation=DataSet(800, "bb" * 32, 3),
    golden_samples=32,
    budget=1.0,
    environment={"machine": "x86_64"},
    options={"to": "onnx"},
    warnings=("int8 is slower than fp32 here.",),
    notes=("Judged on 800 samples.",),
    stages=(Stage("read the source", 3.2),),
    created="2026-01-02T03:04:05+00:00",
    command="edgeml export kws -o out",
)


class Page(HTMLParser):
    """Collects what a page would load, and checks that its tags close."""

    VOID = frozenset({"meta", "br", "line", "circle", "rect", "path", "polyline"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.links += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "action"}]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def page(report: Report) -> Page:
    parser = Page()
    parser.feed(to_html(report))
    assert parser.open == []
    return parser


def test_json_holds_the_promised_keys_whether_set_or_not() -> None:
    report = json.loads(to_json(REPORT))
    assert report["verdict"] == "fail"
    first, broken = report["artifacts"][0], report["artifacts"][3]
    assert first["parity"]["limit"] == 1e-4
    assert {"status", "max_abs", "top1_agreement"} <= first["parity"].keys()
    assert {"metric", "value", "source_value", "drop", "upper95"} <= first["task"].keys()
    assert (broken["format"], broken["precision"], broken["bytes"], broken["parity"], broken["task"]) == (
        "coreml",
        "int8",
        0,
        None,
        None,
    )
    regression = msgspec.structs.replace(REPORT.artifacts[0], parity=Parity("pass", "verified", 8, 0.1, 0.1))
    assert (
        json.loads(to_json(msgspec.structs.replace(REPORT, artifacts=(regression,))))["artifacts"][0]["parity"][
            "top1_agreement"
        ]
        is None
    )


def test_an_error_without_a_number_is_null_in_json_and_a_dash_in_words() -> None:
    parity = Parity("fail", "verified", 8, UNMEASURED, UNMEASURED, reason="NaN")
    report = msgspec.structs.replace(REPORT, artifacts=(msgspec.structs.replace(REPORT.artifacts[0], parity=parity),))
    assert json.loads(to_json(report))["artifacts"][0]["parity"]["max_abs"] is None
    assert words.error(parity.max_abs) == words.NOTHING
    assert "e+308" not in to_html(report)


def test_the_page_is_well_formed_and_loads_and_runs_nothing() -> None:
    parsed = page(REPORT)
    assert parsed.links == []
    assert not {"script", "link", "img", "iframe"} & set(parsed.seen)
    assert "@import" not in to_html(REPORT)
    assert "url(" not in to_html(REPORT)


def test_sizes_stand_at_a_glance_by_format_and_precision() -> None:
    tables = to_html(REPORT).split("<table")
    glance = next(table for table in tables if table.startswith(' class="glance"'))
    assert re.findall(r"<th>([^<]*)</th>", glance) == ["", "fp32", "fp16", "int8", "ONNX", "Core ML"]
    cells = [re.sub(r"<[^>]*>", " ", cell).split() for cell in re.findall(r"<td>(.*?)</td>", glance)]
    assert [cell[:2] for cell in cells[:3]] == [["99.4", "kB"], ["51.2", "kB"], ["48.1", "kB"]]
    assert cells[3:] == [[words.NOTHING], [words.NOTHING], ["fail"]]


def test_one_format_or_one_precision_needs_no_glance() -> None:
    assert 'class="glance"' not in to_html(msgspec.structs.replace(REPORT, artifacts=REPORT.artifacts[:3]))


def test_time_is_drawn_of_what_a_devices_engine_ran() -> None:
    verified = REPORT.artifacts[:3]
    emulated = msgspec.structs.replace(
        verified[1], format="coreml", parity=Parity("pass", "emulated", 800, 1e-3, 1e-4, 1.0), latency=Latency(1.0, 1.0, 9)
    )
    drawn = time_accuracy((*verified, emulated))
    assert drawn.count("<title>") == 3
    assert "Core ML" not in drawn
    assert size_accuracy((*verified, emulated)).count("<title>") == 4


def test_warnings_come_before_figures_and_are_said_once() -> None:
    warned = msgspec.structs.replace(
        REPORT,
        warnings=("onnx int8: too few samples",),
        artifacts=(*REPORT.artifacts[:2], msgspec.structs.replace(REPORT.artifacts[2], notes=("too few samples", "rounded"))),
    )
    shown = to_html(warned)
    assert shown.count("too few samples") == 1
    assert shown.index("too few samples") < shown.index("<h2>Artifacts</h2>")
    assert "ONNX int8: rounded" in shown


def test_text_of_the_model_cannot_become_markup() -> None:
    hostile = msgspec.structs.replace(
        REPORT, summary="</p><script>x</script>", labels=("<b>",), notes=("<i>",), source_name="a\"onload='x"
    )
    assert "script" not in page(hostile).seen
    assert "<script>x" in "".join(page(hostile).text)


def test_the_page_says_verdict_figures_reasons_and_hashes() -> None:
    shown = " ".join(" ".join(page(REPORT).text).split())
    for expected in (
        "Fail. 3 of 4 artifacts are in the bundle.",
        "90.75 %",
        "1.9\N{MULTIPLICATION SIGN} smaller",
        "the bound +1.22 is over the budget 1 with 800 samples; 1,450 samples at these rates would decide",
        "output 'p', sample 17: nan <script>alert(1)</script>",
        "3 of them also calibrated",
        "serving_default_audio:0",
        "cd" * 32,
        "edgeml verify kws-1.2.0.edgeml",
        "int8 is slower than fp32 here.",
    ):
        assert expected in shown


def test_an_export_that_made_nothing_still_has_a_page() -> None:
    bare = Report("m", "0.1.0", "fail", "nothing was made", (BROKEN,), SourceFile("onnx", "0" * 64, 1), "m.onnx", "regress")
    shown = " ".join(page(bare).text)
    assert "none was written" in shown
    assert "generated noise" in shown
    assert "Run it" not in shown


def test_the_snippet_is_python_that_feeds_each_input_its_shape() -> None:
    code = snippet(REPORT)
    compile(code, "snippet", "exec")
    assert "kws.run({'audio': np.zeros((49, 10, 1), np.float32)})" in code
    signature = Signature((TensorSpec("a", "int64", ("batch", "time")), TensorSpec("b", "bool", (4,))), SIGNATURE.outputs)
    code = snippet(msgspec.structs.replace(REPORT, name="9-lives", signature=signature, task="regress"))
    compile(code, "snippet", "exec")
    assert "{'a': np.zeros((1,), np.int64), 'b': np.zeros((4,), np.bool_)}" in code
    assert "result.outputs" in code


def test_the_plot_stands_on_finite_numbers_even_for_artifacts_alike() -> None:
    same = (artifact("fp32", 1000, 0.0, 0.0), artifact("fp16", 1000, 0.0, 0.0))
    for artifacts in (REPORT.artifacts, same):
        drawn = size_accuracy(artifacts)
        assert drawn.startswith("<svg")
        assert "nan" not in drawn
        assert "inf" not in drawn
    assert size_accuracy(same[:1]) == ""


def test_the_budget_is_drawn_though_the_float_artifacts_are_not_held_to_it() -> None:
    whole = REPORT.artifacts[0]
    assert whole.task is not None
    free = msgspec.structs.replace(whole, task=msgspec.structs.replace(whole.task, budget=None))
    assert "over the budget of 1 point" in size_accuracy((free, *REPORT.artifacts[1:]))


def test_an_emulated_artifact_has_no_time() -> None:
    whole = REPORT.artifacts[0]
    assert whole.parity is not None
    emulated = msgspec.structs.replace(whole, parity=msgspec.structs.replace(whole.parity, where="emulated"))
    assert "30 µs" in to_html(REPORT)
    assert "30 µs" not in to_html(msgspec.structs.replace(REPORT, artifacts=(emulated,)))


def test_plain_lines_name_each_artifact_and_end_with_the_verdict() -> None:
    lines = list(plain_lines(REPORT))
    assert lines[0] == (
        "pass         onnx   fp32, 99,424 bytes, max error 2.0e-07, same class 100.00 %, verified, "
        "top1_accuracy 90.75 % (drop 0.00, at most +0.34)"
    )
    assert lines[3].startswith("fail         coreml int8, output 'p', sample 17")
    assert lines[-1] == "fail: kws 1.2.0: 3 of 4 artifacts are in the bundle."


def test_a_terminal_gets_a_table_and_a_log_gets_lines() -> None:
    for terminal, expected in ((True, "Core ML int8"), (False, "fail         coreml int8")):
        out = io.StringIO()
        print_report(REPORT, Console(file=out, force_terminal=terminal, width=160, no_color=True))
        assert expected in out.getvalue()


def test_what_device_and_cloud_reach_is_on_the_page_and_in_the_log_where_it_was_asked_for() -> None:
    promise = Promise(
        0.965, 0.122, 0.912, ece=0.016, n=500, cloud=0.99, accuracy_within=(0.941, 0.982), offload_within=(0.08, 0.17)
    )
    deferring = msgspec.structs.replace(
        artifact("int8", 34_000, 0.1, 0.4, "inconclusive"),
        deferral=Deferral(1.28, 0.7328, promise), deferral_reason="500 samples prove no more than 94.8 %",
    )  # fmt: skip
    report = msgspec.structs.replace(REPORT, artifacts=(deferring,), options={"defer": "accuracy=0.95,offload=0.3,cloud=0.99"})
    shown = " ".join(page(report).text)
    for words_ in (
        "When to ask the cloud",
        "0.733",
        "12.20 % (8.0 to 17.0)",
        "96.50 % (94.1 to 98.2)",
        "91.20 %",
        "1.60 %",
        "as good as was said",
    ):
        assert words_ in shown
    line, together, *_ = plain_lines(report)
    assert line.endswith("; 500 samples prove no more than 94.8 %")
    assert "with the cloud" not in together
    report = msgspec.structs.replace(report, artifacts=(msgspec.structs.replace(deferring, deferral_reason=None),))
    _, together, *_ = plain_lines(report)
    assert (
        together.strip()
        == "with the cloud 96.50 % (94.1 to 98.2), asked for 12.20 % (8.0 to 17.0), below a confidence of 0.733"
    )
    assert "with the cloud" not in "".join(plain_lines(msgspec.structs.replace(report, options={})))
    assert "When to ask the cloud" not in page(REPORT).text


def test_report_files_appear_under_their_names(tmp_path: Path) -> None:
    paths = write_report(REPORT, tmp_path / "new")
    assert [path.name for path in paths] == ["kws-1.2.0.report.json", "kws-1.2.0.report.html"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(path.name for path in paths)


def test_a_folder_that_cannot_be_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EnvironmentProblem, match="cannot write"):
        write_report(REPORT, tmp_path / "file" / "out")


def test_the_verdict_is_the_worst_of_its_artifacts() -> None:
    assert verdict_of(["pass", "inconclusive", "pass"]) == "inconclusive"
    assert verdict_of(["inconclusive", "fail"]) == "fail"
    assert verdict_of(["pass"]) == "pass"
    assert verdict_of([]) == "fail"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (words.size(999), "999 B"),
        (words.size(48_092), "48.1 kB"),
        (words.size(317_000), "317 kB"),
        (words.size(1_069_756), "1.1 MB"),
        (words.share(0.99999), "99.99 %"),
        (words.share(1.0), "100.00 %"),
        (words.points(-0.25), "\N{MINUS SIGN}0.25"),
        (words.points(-0.001), "0.00"),
        (words.error(0.21), "0.210"),
        (words.seconds(3.6e-5), "36 µs"),
        (words.ratio(100, 99), ""),
    ],
)
def test_numbers_are_written_as_people_read_them(shown: str, expected: str) -> None:
    assert shown == expected


@pytest.mark.parametrize("low", np.linspace(-3, 99, 7))
def test_ticks_are_few_and_round(low: float) -> None:
    from edgeml.exporter.report.plots import _nice_ticks

    for width in (0.01, 0.37, 1.0, 12.0, 180.0):
        ticks, digits = _nice_ticks(low, low + width)
        assert 2 <= len(ticks) <= 6
        assert len({f"{tick:.{digits}f}" for tick in ticks}) == len(ticks)


def test_a_page_shows_what_stayed_float_and_the_classes_that_lose() -> None:
    repair = Repair(
        sentence="1 operator of 4 left float: 4,000 bytes",
        kept=1,
        ended=True,
        ranked=(KeptFloat("conv<1>", "Conv", 0.1, 900), KeptFloat("h2", "Gemm", 0.001, 100)),
        tried=(SetTried(1, 4000, "pass"),),
    )
    evidence = ClassEvidence(3, (ClassDrop(2, 50, 20, 0, 40.0, 25.0, 52.0, 1e-5),), 20, (Confusion(2, 1, 20, 20),))
    changed = msgspec.structs.replace(REPORT.artifacts[2], repair=repair, by_class=evidence)
    page = to_html(msgspec.structs.replace(REPORT, artifacts=(changed,), labels=("a", "b", "<c>")))

    lines = list(plain_lines(msgspec.structs.replace(REPORT, artifacts=(changed,), labels=("a", "b", "<c>"))))

    assert lines[1].strip() == "drops most for <c> +40.00 on 50 samples"
    assert "1 operator of 4 left float" in page
    assert "conv&lt;1&gt;" in page
    assert "20 dB" in page
    assert "&lt;c&gt;" in page
    assert "b (20)" in page


def test_latency_is_told_with_its_interval() -> None:
    assert "30 µs<small>29 to 32 µs<br>p90 40 µs</small>" in to_html(REPORT)
    assert words.between(9.5e-4, 1.2e-3) == "950 µs to 1.2 ms"
