"""What is said of rivals: who was asked, who failed, and medians over what ran."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks._float_operators import count_float
from benchmarks._models import SIDE, conv_tflite
from benchmarks.int8_peers import Row, append, behind, read, summary, text, upper
from edgeml.exporter.quantize.tflite import to_int8_tflite


def row(model: str, quantizer: str, drop: float | None, **more: object) -> Row:
    known = {} if drop is None else {"drop": drop, "upper95": drop + 0.5, "max": 0.1, "rms": 0.01, "wall_s": 1.0, "rss_mib": 9}
    return Row(model, quantizer, "onnx", "code", **known, **more)  # type: ignore[arg-type]  # keywords of a test's own


def test_a_rival_that_failed_counts_as_failed_and_not_in_the_medians() -> None:
    rows = [row("a", "ort", 0.25), row("b", "ort", 0.75), row("c", "ort", None, failure="it does not run")]
    told = summary(rows)["ort"]
    assert (told["models"], told["failures"], told["median_drop"], told["worst_drop"]) == (3, 1, 0.5, 0.75)
    assert told["within_a_point"] == 1


def test_a_rival_that_takes_no_such_source_is_neither_failed_nor_counted() -> None:
    rows = [row("a", "tflite-converter", 0.1), row("b", "tflite-converter", None, inapplicable="it takes Keras models alone")]
    assert summary(rows)["tflite-converter"]["models"] == 1
    assert summary(rows[1:])["tflite-converter"] == {"not_asked": "it takes Keras models alone"}
    assert "not asked" in text(rows[1])


def test_the_newest_row_of_a_model_and_rival_counts(tmp_path: Path) -> None:
    for drop in (3.0, 0.5):
        append(row("a", "ort", drop), tmp_path / "rows.jsonl")
    append(row("a", "olive", 0.1), tmp_path / "rows.jsonl")
    known = read(tmp_path / "rows.jsonl")
    assert {key: one.drop for key, one in known.items()} == {("a", "ort"): 0.5, ("a", "olive"): 0.1}


def test_the_bound_of_right_and_wrong_answers_is_wilsons_when_none_is_won() -> None:
    lost = np.zeros(100)
    lost[:2] = 1  # Wilson's upper bound of 2 in 100 at z = 1.645: (p + z2/2n + z sqrt(p q / n + z2/4n2)) / (1 + z2/n)
    assert abs(upper(lost) - 0.05865) < 5e-5
    assert 0.5 < upper(np.linspace(0.4, 0.6, 50)) < 0.53


def test_a_rival_that_is_ahead_is_named_with_its_figure() -> None:
    ours = Row("a", "edgeml-onnx", "onnx", "c", bytes=103, agree=0.99, rms=0.02, max=0.1, drop=0.0, upper95=0.1)
    ahead = Row("a", "ort", "onnx", "c", bytes=100, agree=1.0, rms=0.03, max=0.1, drop=0.0, upper95=0.1)
    elsewhere = Row("b", "ort", "onnx", "c", bytes=1, agree=1.0, rms=0.0, max=0.0, drop=0.0, upper95=0.1)
    broken = Row("a", "olive", "onnx", "c", failure="it does not run")
    assert behind([ours, ahead, elsewhere, broken]) == [
        "a onnx agree: ours 0.99; ort 1",
        "a onnx bytes: ours 103; ort 100 (rms 1.5 times ours)",
    ]


def test_a_lead_is_told_with_what_the_files_say_of_its_cause() -> None:
    known = {"max": 0.1, "drop": 0.0, "upper95": 0.1}
    ours = Row("a", "edgeml-onnx", "onnx", "c", bytes=100, agree=0.99, rms=0.02, in_float=1, operators=8, samples=400, **known)  # type: ignore[arg-type]  # keywords of a test's own
    careful = Row("a", "ort", "onnx", "c", bytes=150, agree=0.995, rms=0.01, in_float=5, operators=8, **known)  # type: ignore[arg-type]  # likewise
    small = Row("a", "olive", "onnx", "c", bytes=50, agree=0.9, rms=0.06, **known)  # type: ignore[arg-type]  # likewise

    float_ones = "leaves 5 of 8 operators in float, ours 1 of 8; 50 % larger"
    assert behind([ours, careful, small]) == [
        f"a onnx agree: ours 0.99; ort 0.995 (2 of 400 samples; {float_ones})",
        f"a onnx rms: ours 0.02; ort 0.01 ({float_ones})",
        "a onnx bytes: ours 100; olive 50 (rms 3.0 times ours)",
    ]


def test_operators_left_in_float_are_counted_in_the_file() -> None:
    x = np.random.default_rng(1).normal(size=(8, SIDE, SIDE, 1)).astype(np.float32)
    model = conv_tflite()

    for kept, wanted in ((frozenset[str](), 0), (frozenset({"t2"}), 1)):
        made = to_int8_tflite(model, {"t0": x}, keep_float=kept).model
        assert count_float(made, "tflite") == (wanted, 3)
    assert count_float(model, "tflite") == (3, 3)
