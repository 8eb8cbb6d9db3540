"""int8 of every zoo model: ours beside what rivals' defaults give, in one run, from the same calibration samples.

    scripts/bench int8_peers [--json] [--models a,b] [--quantizers ort,…] [--results FILE]

| format | rivals |
|---|---|
| ONNX | ONNX Runtime's `quantize_static` as it comes, and per channel with `reduce_range`; Olive, optimum-onnx if installed |
| TFLite | TFLiteConverter's full int8 (Keras sources); ai-edge-quantizer's `static_wi8_ai8` on our fp32 file |
| Core ML | coremltools' `linear_quantize_weights`; both run by edgeml's interpreter, on the first 400 samples |

Each quantizes our fp32 file in a process of its own (wall time without imports, peak memory with them) and is run on the zoo's
evaluation samples. Ours is what an export calls, before anything is kept in float. `drop`: points of the zoo's own score, and
its one-sided 95 % bound, paired · `agree`: same class as the source · `max`: largest |difference| over
the source's range · `rms`: rms difference over the source's deviation. Results are kept in a file, line by line, and a run goes
on where the last one stopped. Olive and optimum-onnx live in environments of their own, named by EDGEML_PEER_OLIVE and
EDGEML_PEER_OPTIMUM (their python); how to make them: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np

from benchmarks._float_operators import count_float
from benchmarks._quantizers import FORMAT
from benchmarks._subject import Subject, answers, prepare
from benchmarks.zoo.recipe import CACHE
from benchmarks.zoo.registry import ZOO
from benchmarks.zoo.running import code_digest
from benchmarks.zoo.samples import ROOT
from edgeml.exporter.parity.intervals import drop_upper, mean_upper
from edgeml.exporter.parity.metrics import relative_rms, spread
from edgeml.runtime.backends import Array
from edgeml.wire.errors import EdgemlError

ELSEWHERE: Final = {"olive": "EDGEML_PEER_OLIVE", "optimum": "EDGEML_PEER_OPTIMUM"}  # rivals with a python of their own
CORE_ML_SAMPLES: Final = 400  # the interpreter takes milliseconds a sample
LIMIT_S: Final = 600
BUDGET: Final = 1.0
BYTES_SHARE: Final = 0.02  # of the best rival's, that ours may be larger by


@dataclass(frozen=True, slots=True)
class Row:
    """`failure` says why there is no file, or why it could not be run; `inapplicable` that this rival takes no such source.

    `in_float` of the file's `operators` that compute do so in float; `samples` judged.
    """

    model: str
    quantizer: str
    format: str
    code: str
    bytes: int = 0
    agree: float | None = None
    max: float | None = None
    rms: float | None = None
    drop: float | None = None
    upper95: float | None = None
    wall_s: float | None = None
    rss_mib: int | None = None
    failure: str | None = None
    inapplicable: str | None = None
    in_float: int | None = None
    operators: int | None = None
    samples: int | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--models", default=",".join(ZOO))
    parser.add_argument("--quantizers", default=",".join(FORMAT))
    parser.add_argument("--results", type=Path, default=place())
    parser.add_argument(
        "--markdown", action="store_true", help="the summary as a table for a document, and where ours is behind"
    )
    parser.add_argument(
        "--why",
        action="store_true",
        help="measure rivals that are ahead again, if it is not known yet what they leave in float",
    )
    parser.add_argument("--table", action="store_true", help="print what is there, measure nothing")
    asked = parser.parse_args()
    known = read(asked.results)
    if not asked.table:
        for name in asked.models.split(","):
            wanted = [one for one in asked.quantizers.split(",") if (name, one) not in known or is_stale(known[name, one])]
            measure(name, wanted, asked.results)
    if asked.why:
        for name in asked.models.split(","):
            theirs = [row for row in read(asked.results).values() if row.model == name]
            unknown = {other.quantizer for _, _, others in ahead(theirs) for other in others if other.operators is None}
            measure(name, [one for one in FORMAT if one in unknown and FORMAT[one] != "coreml" and is_here(one)], asked.results)
    rows = [row for row in read(asked.results).values() if row.model in asked.models.split(",")]
    if asked.json:
        print(json.dumps({"peers": summary(rows), "behind": behind(rows), "rows": [asdict(row) for row in rows]}))
        return
    if asked.markdown:
        print(markdown(rows), *behind(rows), sep="\n")
        return
    print("\n".join(map(text, rows)))
    print("\n".join(f"{name:18} {told}" for name, told in summary(rows).items()))


def is_here(quantizer: str) -> bool:
    """Whether a rival with a python of its own has one."""
    return quantizer not in ELSEWHERE or bool(os.environ.get(ELSEWHERE[quantizer]))


def measure(name: str, quantizers: list[str], results: Path) -> None:
    for row in measured(name, quantizers) if quantizers else ():
        append(row, results)
        print(text(row), file=sys.stderr, flush=True)


def place() -> Path:
    """EDGEML_PEER_RESULTS, or `peers.jsonl` in the zoo's cache."""
    return Path(os.environ.get("EDGEML_PEER_RESULTS") or CACHE / "peers.jsonl")


def read(path: Path) -> dict[tuple[str, str], Row]:
    """The newest row of each model and quantizer."""
    if not path.exists():
        return {}
    rows = [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return {(row.model, row.quantizer): row for row in rows}


def append(row: Row, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(row)) + "\n")


def is_stale(row: Row) -> bool:
    """Ours by other code is measured again; rivals do not change with it."""
    return row.quantizer.startswith("edgeml") and row.code != code_digest()


def measured(name: str, quantizers: Iterable[str]) -> Iterable[Row]:
    with tempfile.TemporaryDirectory(prefix="edgeml-int8-") as temporary:
        folder = Path(temporary)
        subject = prepare(ZOO[name], folder)
        for quantizer in quantizers:
            format_ = FORMAT[quantizer]
            if format_ not in subject.facts.artifacts:
                yield Row(name, quantizer, format_, code_digest(), inapplicable="no fp32 form of this model passes")
                continue
            yield Row(model=name, quantizer=quantizer, format=format_, code=code_digest(), **judged(quantizer, folder, subject))


def judged(quantizer: str, folder: Path, subject: Subject) -> dict[str, Any]:
    spent = run_child(quantizer, folder)
    if "wall_s" not in spent:
        return spent
    format_ = FORMAT[quantizer]
    most = CORE_ML_SAMPLES if format_ == "coreml" else None
    try:
        got = answers((folder / quantizer).read_bytes(), format_, subject, most=most)
    except (EdgemlError, RuntimeError, ValueError) as error:
        return spent | {"failure": f"it does not run: {error}"[:300]}
    counted = count_float((folder / quantizer).read_bytes(), format_)
    if counted is not None:
        spent |= counted._asdict()
    if not np.isfinite(got).all():
        return spent | {"failure": "its answers are not finite"}
    source, samples = subject.source[: len(got)], subject.samples.first(len(got))
    before, after = (subject.recipe.score(one, samples, source) for one in (source, got))
    lost = before - after
    found = {
        "samples": len(got),
        "max": float(np.abs(got.astype(np.float64) - source).max()) / spread(source),
        "rms": relative_rms(source, got),
        "drop": 100 * float(lost.mean()),
        "upper95": 100 * upper(lost),
    }
    if subject.facts.task == "classify":
        flat, mine = source.reshape(len(source), -1), got.reshape(len(got), -1)
        found["agree"] = float((flat.argmax(axis=1) == mine.argmax(axis=1)).mean())
    return spent | found


def upper(lost: Array) -> float:
    """The one-sided 95 % bound of the mean; where each sample is right or wrong, that of paired proportions."""
    if set(np.unique(lost)) <= {-1.0, 0.0, 1.0}:
        return drop_upper(int((lost > 0).sum()), int((lost < 0).sum()), len(lost))
    return mean_upper(lost)


def run_child(quantizer: str, folder: Path) -> dict[str, Any]:
    """What it took, or `failure`, or `inapplicable`."""
    environment = {
        **os.environ,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "benchmarks._quantizers", quantizer, str(folder)]
    if quantizer in ELSEWHERE:
        python = os.environ.get(ELSEWHERE[quantizer])
        if python is None:
            return {"inapplicable": f"{ELSEWHERE[quantizer]} names no python that has it"}
        command = [python, str(ROOT / "benchmarks" / "_elsewhere.py"), quantizer, str(folder)]
        environment.pop("PYTHONPATH", None)
        environment["CI"] = "true"  # Olive reports its use to its makers otherwise
    try:
        ended = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=LIMIT_S
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"failure": f"not done in {LIMIT_S} s"}
    if ended.returncode:
        lines = [line for line in ended.stderr.splitlines() if line.strip()]
        return {"failure": (lines[-1] if lines else f"exit {ended.returncode}")[:300]}
    return dict(json.loads(ended.stdout.splitlines()[-1]))


def text(row: Row) -> str:
    head = f"{row.model:18} {row.format:7} {row.quantizer:18}"
    if row.inapplicable is not None:
        return f"{head} not asked: {row.inapplicable}"
    if row.drop is None or row.upper95 is None or row.max is None:
        return f"{head} FAILED: {row.failure}"
    agree = f"agree {row.agree:.4f}" if row.agree is not None else ""
    return (
        f"{head} {row.bytes:8,} bytes {agree:12} max {row.max:.4f} rms {row.rms:.4f} "
        f"drop {row.drop:+6.2f} [{row.upper95:.2f}]  {row.wall_s:.1f} s {row.rss_mib:,} MiB"
    )


def summary(rows: Iterable[Row]) -> dict[str, Any]:
    """Per quantizer: over the models it was asked for; a drop counts only where there is a file that runs."""
    told: dict[str, dict[str, Any]] = {}
    kept = list(rows)
    for quantizer in FORMAT:
        mine = [row for row in kept if row.quantizer == quantizer and row.inapplicable is None]
        good = [row for row in mine if row.failure is None]
        if not mine:
            reasons = {row.inapplicable for row in kept if row.quantizer == quantizer}
            told[quantizer] = {"not_asked": next(iter(reasons), "not measured")}
            continue
        told[quantizer] = {
            "models": len(mine),
            "failures": len(mine) - len(good),
            "median_drop": _middle(good, "drop"),
            "worst_drop": max((row.drop for row in good if row.drop is not None), default=None),
            "within_a_point": sum(row.upper95 is not None and row.upper95 <= BUDGET for row in good),
            "median_agree": _middle(good, "agree"),
            "median_rms": _middle(good, "rms"),
            "median_bytes": _middle(good, "bytes"),
            "wall_s": _middle(good, "wall_s"),
            "rss_mib": _middle(good, "rss_mib"),
        }
    return told


def behind(rows: Iterable[Row]) -> list[str]:
    """Where ours does not lead: a rival that agrees more, errs less, or is smaller by more than `BYTES_SHARE`; and why."""
    told = []
    for mine, word, better in ahead(rows):
        named = ", ".join(f"{row.quantizer} {getattr(row, word):.4g}{_why(mine, row, word)}" for row in better)
        told.append(f"{mine.model} {mine.format} {word}: ours {getattr(mine, word):.4g}; {named}")
    return told


def ahead(rows: Iterable[Row]) -> list[tuple[Row, str, list[Row]]]:
    """(our row, the figure, the rivals with a better one)."""
    found = []
    by_key = {(row.model, row.quantizer): row for row in rows if row.failure is None and row.inapplicable is None}
    for (model, quantizer), mine in by_key.items():
        if not quantizer.startswith("edgeml"):
            continue
        rivals = [row for (name, other), row in by_key.items() if name == model and row.format == mine.format and row != mine]
        for word, worse in (("agree", _agrees_less), ("rms", _errs_more), ("bytes", _is_larger)):
            better = [row for row in rivals if worse(mine, row)]
            if better:
                found.append((mine, word, better))
    return found


def _why(mine: Row, other: Row, word: str) -> str:
    """What the files say of a rival's lead: how many samples decide it, what it leaves in float, what it costs."""
    reasons = []
    if word == "agree" and mine.agree is not None and other.agree is not None and mine.samples:
        count = round((other.agree - mine.agree) * mine.samples)
        reasons.append(f"{count} of {mine.samples:,} samples")
    if other.in_float is not None and mine.in_float is not None and other.in_float != mine.in_float:
        reasons.append(
            f"leaves {other.in_float} of {other.operators} operators in float, ours {mine.in_float} of {mine.operators}"
        )
    if word != "bytes" and other.bytes > (1 + BYTES_SHARE) * mine.bytes:
        reasons.append(f"{100 * (other.bytes / mine.bytes - 1):.0f} % larger")
    if word == "bytes" and other.rms is not None and mine.rms and other.rms > mine.rms:
        reasons.append(f"rms {other.rms / mine.rms:.1f} times ours")
    return f" ({'; '.join(reasons)})" if reasons else ""


def _agrees_less(mine: Row, other: Row) -> bool:
    return mine.agree is not None and other.agree is not None and mine.agree < other.agree


def _errs_more(mine: Row, other: Row) -> bool:
    return mine.rms is not None and other.rms is not None and mine.rms > other.rms


def _is_larger(mine: Row, other: Row) -> bool:
    return mine.bytes > (1 + BYTES_SHARE) * other.bytes


def markdown(rows: Iterable[Row]) -> str:
    """A line for each quantizer, format by format."""
    words = (
        "models", "failures", "median_drop", "worst_drop", "within_a_point", "median_agree", "median_rms", "median_bytes",
        "wall_s", "rss_mib",
    )  # fmt: skip
    told = summary(rows)
    lines = [
        f"| {FORMAT[name]} | {name} | " + " | ".join(_word(one.get(word)) for word in words) + " |"
        for name, one in told.items()
    ]
    return "\n".join(["| format | quantizer | " + " | ".join(words) + " |", "|---" * (len(words) + 2) + "|", *lines])


def _word(value: Any) -> str:
    return "" if value is None else f"{value:,.4g}" if isinstance(value, float) and value < 1000 else f"{value:,.0f}"


def _middle(rows: list[Row], name: str) -> float | None:
    values = [value for row in rows if (value := getattr(row, name)) is not None]
    return round(float(median(values)), 4) if values else None


if __name__ == "__main__":
    main()
