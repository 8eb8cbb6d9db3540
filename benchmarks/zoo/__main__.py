"""The zoo: train its models, export each by the product's own pipeline with plain options, and say what became of it.

    scripts/bench zoo [train|export|table] [--json] [--models a,b] [--formats onnx,tflite] [--precisions int8] [--fresh]
                      [--keep FOLDER]

`export` (the default) trains what is not trained yet, and skips models whose result by this very code is already in the file of
results (EDGEML_ZOO_RESULTS, else in the zoo's cache). `table` prints what is there.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.zoo import results
from benchmarks.zoo.registry import ZOO
from benchmarks.zoo.running import FORMATS, PRECISIONS, code_digest, run
from benchmarks.zoo.training import make


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", nargs="?", choices=("train", "export", "table"), default="export")
    parser.add_argument("--models", default=",".join(ZOO))
    parser.add_argument("--formats", default=FORMATS)
    parser.add_argument("--precisions", default=PRECISIONS)
    parser.add_argument("--results", type=Path, default=results.place())
    parser.add_argument("--fresh", action="store_true", help="export again what has a result")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep each model's bundle there, as MODEL.edgeml")
    parser.add_argument("--markdown", action="store_true", help="int8 alone, as a table for a document")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    names = asked.models.split(",")
    if unknown := [name for name in names if name not in ZOO]:
        sys.exit(f"no model {', '.join(unknown)} in the zoo; there are {', '.join(ZOO)}")
    if asked.step == "train":
        train(names)
        return
    if asked.step == "export":
        export(names, asked)
    known = results.read(asked.results)
    lines = [known[name] for name in names if name in known]
    if asked.markdown:
        print(results.markdown(lines))
    elif not asked.json:
        print("\n".join(map(results.table, lines)))
    print(json.dumps(results.summary(lines)))


def train(names: list[str]) -> None:
    for name in names:
        facts = make(ZOO[name])
        print(
            f"{name:20} {facts['parameters']:8,} parameters  score {facts['score']:.4f}  chance {facts['chance']:.3f}"
            f"  {facts['seconds']:6.1f} s  {facts['train']}/{facts['calibrate']}/{facts['evaluate']} samples",
            flush=True,
        )


def export(names: list[str], asked: argparse.Namespace) -> None:
    for name in names:
        known = results.read(asked.results).get(name)
        kept = asked.keep is None or (asked.keep / f"{name}.edgeml").exists()
        is_known = known is not None and (known.code, known.recipe) == (code_digest(), ZOO[name].digest())
        if is_known and kept and not asked.fresh:
            continue
        line = run(ZOO[name], formats=asked.formats, precisions=asked.precisions, keep=asked.keep)
        results.append(line, asked.results)
        print(results.table(line), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
