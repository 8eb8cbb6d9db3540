"""Whether golden vectors stop a broken engine and let every healthy one through.

    scripts/bench golden [BUNDLE|FOLDER ...] [--json] [--misses] [--only onnx:int8]
    scripts/bench golden --on cortex-a76|haswell|haswell-stock [BUNDLE|FOLDER ...]

Each artifact of each bundle is run by its engine with one fault at a time, in what goes in and comes out (`answers`) or in
its file (`onnx_files`, `tflite_files`, `saturation`), and held to the bundle's golden vectors as a device does before it
serves; then by every healthy set of kernels of this machine; or, with --on, by the engines on an emulated processor.
Without BUNDLE: the digits bundle, exported now if there is none. The zoo's bundles: `scripts/bench zoo --keep FOLDER`.

A fault is *felt* if it changes the class of a golden sample, or moves a value by more than 1 % of the output's range (of its
channel's, where an output joins channels of different sizes). What was measured with the same bundle and code is read from the
file of results (EDGEML_GOLDEN_RESULTS, else in the cache).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from benchmarks.golden import emulated, results
from benchmarks.golden.board import KERNELS
from benchmarks.golden.trials import Found, look_at
from edgeml.exporter.pipeline import export
from edgeml.exporter.plan import make_plan
from edgeml.runtime.bundle import open_bundle
from edgeml.wire.contract import label
from examples.digits.data import write

ROOT: Final = Path(__file__).resolve().parent.parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", type=Path, metavar="BUNDLE|FOLDER")
    parser.add_argument("--on", choices=tuple(KERNELS), help="run the golden vectors there in place of faults here")
    parser.add_argument("--only", default="", metavar="LABELS", help="artifacts as format:precision, with commas between")
    parser.add_argument("--results", type=Path, default=results.place())
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--misses", action="store_true", help="list every fault that was let through")
    asked = parser.parse_args()
    bundles = list(_bundles(asked.bundles or [_digits()]))
    if asked.on:
        sys.exit(emulated.main(asked.on, bundles, asked.results.parent / asked.on, as_json=asked.json))
    found = [one for path in bundles for one in faults(path, asked.only, asked.results)]
    if not asked.json:
        print("\n".join(results.table(found, lambda _, trial: trial.fault, "fault")), end="\n\n")
        print("\n".join(results.table(found, lambda one, _: one.model, "model")), end="\n\n")
        print("\n".join(results.healthy(found)))
        if asked.misses:
            print("\n".join(results.misses(found)))
    print(json.dumps(results.summary(found)))


def _bundles(given: Sequence[Path]) -> Iterator[Path]:
    for path in given:
        if path.is_dir() and not (path / "manifest.json").exists():
            yield from sorted(path.glob("*.edgeml"))
        else:
            yield path


def faults(path: Path, only: str, file: Path) -> Iterator[Found]:
    """What became of each artifact: measured now, or read from the file of results."""
    known = results.read(file)
    with open_bundle(path) as bundle:
        for artifact in bundle.manifest.artifacts:
            name = label(artifact)
            if artifact.golden is None or artifact.format == "coreml" or (only and name not in only.split(",")):
                continue
            key = results.key(bundle.digest, name)
            if key not in known:
                found = look_at(bundle, artifact)
                results.append(found, key, file)
                print(f"{found.model} {name}: {results.share(found.trials)} faults caught", file=sys.stderr, flush=True)
            yield known.get(key) or found


def _digits() -> Path:
    bundle = results.CACHE / "meter-1.0.0.edgeml"
    if not bundle.exists():
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            plan = make_plan(
                f"{ROOT}/examples/digits/model.py:v1_0_0", to="onnx,tflite", precision="fp32,fp16,int8", out=results.CACHE,
                calib=Path(folder) / "calib.npz", evaluation=Path(folder) / "eval.npz", name="meter", version="1.0.0",
            )  # fmt: skip
            export(plan)
    return bundle


if __name__ == "__main__":
    main()
