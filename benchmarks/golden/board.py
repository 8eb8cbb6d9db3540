"""Runs the golden vectors of every artifact of a bundle on this processor:  python -m benchmarks.golden.board BUNDLE OUT.npz

Prints one JSON object, artifact -> `null`, or why a device would refuse to serve; OUT holds what each engine answered, as
`onnx:int8/0` for the first output as its file has it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from benchmarks.golden.runs import run, verdict
from edgeml.runtime.backends import Array, EngineOptions, opener
from edgeml.runtime.bundle import open_bundle
from edgeml.wire.contract import label


def main(path: Path, out: Path) -> None:
    answers: dict[str, Array] = {}
    verdicts: dict[str, str | None] = {}
    with open_bundle(path) as bundle:
        for artifact in bundle.manifest.artifacts:
            if artifact.golden is None or artifact.format == "coreml":
                continue
            found = run(bundle, artifact, opener(artifact.format))
            if found is None:
                verdicts[label(artifact)] = "the engine does not run it"
                continue
            verdicts[label(artifact)] = verdict(bundle, artifact, found.again, EngineOptions())
            for at in range(len(found.raw[0])):
                answers[f"{label(artifact)}/{at}"] = np.stack([one[at] for one in found.raw])
    np.savez(out, **answers)  # type: ignore[arg-type]  # numpy types the keywords as its own flag
    print(json.dumps(verdicts))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
