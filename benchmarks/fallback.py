"""Whether deferrals keep what export promised, and whether answers come in time whatever the cloud does.

    python -m benchmarks.fallback [--json] [--models FOLDER] [--only a,b] [--part promise|deadline]

promise   Models are exported with --defer. Their artifacts answer samples that export never saw, on the device's own session,
          with the bundle's own temperature and threshold: accuracy with the cloud, offload and calibration error, against the
          promise and its intervals. One deal of some hundreds of samples strays by more than a point through chance alone, so
          the same is done for 40 other ways to deal all samples out, through the exporter's own function: `bias` is the mean
          difference, `sd` its spread, `inside` how many fields lay in the intervals. The bearings are 20,000 samples on
          either side: enough that a single deal must land within a point.
deadline  A device that is never sure asks about every answer: a real `edgeml serve`, the same one killed, a server that takes a
          second, one that answers noise. The breaker is off but for the killed one, so that every call meets the others.

The digits come with scikit-learn and the bearings are simulated; keyword spotting, CIFAR and spoken digits need the published
models and data (scripts/models).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks._calibrators import compared
from benchmarks._clouds import CALLS, DEADLINE_S, Timed, deadlines
from benchmarks._deferral import Kept, cases, digits, promises


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="one object as the last line")
    parser.add_argument("--models", type=Path, default=os.environ.get("EDGEML_MODELS"), help="the published models")
    parser.add_argument("--only", help="models, by name")
    parser.add_argument("--part", choices=("promise", "deadline"))
    asked = parser.parse_args()
    kept: list[Kept] = []
    timed: list[Timed] = []
    by_calibrator: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if asked.part != "deadline":
            for case in cases(folder, asked.models):
                if asked.only and case.name not in asked.only.split(","):
                    continue
                for one, answers in promises(case, folder):
                    kept.append(one)
                    show_promise(one)
                    if one.artifact == "onnx fp32":
                        by_calibrator[case.name] = compared(answers)
            show_calibrators(by_calibrator)
        if asked.part != "promise":
            timed = deadlines(digits_bundle(folder), digits().rest["x"])
            show_deadlines(timed)
    if asked.json:
        print(json.dumps(record(kept, timed, by_calibrator)))


def digits_bundle(folder: Path) -> Path:
    bundle = folder / "digits-0.1.0.edgeml"
    if not bundle.exists():
        list(promises(digits(), folder))
    return bundle


def record(kept: list[Kept], timed: list[Timed], by_calibrator: dict[str, dict[str, float]]) -> dict[str, Any]:
    single = [one for one in kept if one.model == "bearings"]
    return {
        "worst_accuracy_bias": max((abs(one.accuracy_bias) for one in kept), default=None),
        "worst_offload_bias": max((abs(one.offload_bias) for one in kept), default=None),
        "least_both_inside": min((one.both_inside for one in kept), default=None),
        "bearings_accuracy_points": max((100 * abs(one.accuracy - one.promise.accuracy) for one in single), default=None),
        "bearings_offload_points": max((100 * abs(one.offload - one.promise.offload) for one in single), default=None),
        "worst_ece": max((one.ece_of_all for one in kept), default=None),
        "in_deadline_share": min((one.in_deadline / one.calls for one in timed), default=None),
        "kept": [
            asdict(one) | {"promise": {f: getattr(one.promise, f) for f in one.promise.__struct_fields__}} for one in kept
        ],
        "timed": [asdict(one) for one in timed],
        "ece_by_calibrator": by_calibrator,
    }


def show_promise(one: Kept) -> None:
    promise = one.promise
    print(f"{one.model} {one.artifact}, {one.status}: {promise.n:,} samples, the device alone {one.alone:.2%}")
    lines = (
        ("accuracy", promise.accuracy, promise.accuracy_within, one.accuracy),
        ("offload", promise.offload, promise.offload_within, one.offload),
    )
    deals = (
        (one.accuracy_bias, one.accuracy_sd, one.accuracy_inside),
        (one.offload_bias, one.offload_sd, one.offload_inside),
    )
    for (name, promised, interval, got), (bias, sd, inside) in zip(lines, deals, strict=True):
        low, high = interval or (0.0, 1.0)
        between = f"({100 * low:.2f} to {100 * high:.2f})"
        print(f"    {name:10} {promised:7.2%} {between:18} → {got:7.2%}  [{bias:+.2f} ± {sd:.2f}, {inside:.1%} inside]")
    others = f"(at temperature 1 {one.ece_before:.2%}) [all deals {one.ece_of_all:.2%}, perfect {one.perfect:.2%}]"
    print(f"    ECE        {promise.ece:7.2%} → {one.ece:7.2%}  {others}; both inside {one.both_inside:.1%}", flush=True)


def show_calibrators(found: dict[str, dict[str, float]]) -> None:
    for name, errors in found.items():
        print(f"{name}: held-out ECE " + ", ".join(f"{calibrator} {error:.2%}" for calibrator, error in errors.items()))


def show_deadlines(timed: list[Timed]) -> None:
    within = f"within {1e3 * DEADLINE_S:.0f} ms"
    print(f"{'cloud':14} {within:>16} {'from the cloud':>15} {'slowest, ms':>12} {'kept free, ms':>14}")
    for row in timed:
        share = f"{row.in_deadline} of {CALLS}"
        print(f"{row.cloud:14} {share:>16} {row.from_cloud:15d} {row.slowest_ms:12.1f} {row.kept_ms:14.1f}")


if __name__ == "__main__":
    main()
