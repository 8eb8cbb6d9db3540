"""Runs the golden vectors of a bundle on this processor:  python -m benchmarks.golden.board BUNDLE OUT.npz BOARD

Prints one JSON object, artifact -> `null`, or why a device would refuse to serve; OUT holds what each engine answered, as
`onnx:int8/0` for the first output as its file has it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.golden.runs import run, verdict
from edgeml.runtime.backends import Array, EngineOptions, OpenBackend, opener
from edgeml.runtime.bundle import open_bundle
from edgeml.wire.contract import label
from edgeml.wire.manifest import Format

KERNELS: Final[dict[str, dict[Format, str]]] = {
    "cortex-a76": {"onnx": "default", "tflite": "default"},
    "haswell": {"onnx": "exact", "tflite": "default"},  # what `default` is there; an emulator does not hide the real one's VNNI
    "haswell-stock": {"onnx": "stock"},
}


def main(path: Path, out: Path, board: str) -> None:
    answers: dict[str, Array] = {}
    verdicts: dict[str, str | None] = {}
    with open_bundle(path) as bundle:
        for artifact in bundle.manifest.artifacts:
            kernels = KERNELS[board].get(artifact.format)
            if artifact.golden is None or kernels is None:
                continue
            found = run(bundle, artifact, _by(opener(artifact.format), kernels))
            if found is None:
                verdicts[label(artifact)] = "the engine does not run it"
                continue
            verdicts[label(artifact)] = verdict(bundle, artifact, found.again, EngineOptions())
            for at in range(len(found.raw[0])):
                answers[f"{label(artifact)}/{at}"] = np.stack([one[at] for one in found.raw])
    np.savez(out, **answers)  # type: ignore[arg-type]  # numpy types the keywords as its own flag
    print(json.dumps(verdicts))


def _by(opens: OpenBackend, kernels: str) -> OpenBackend:
    return lambda model, _: opens(model, EngineOptions(kernels=kernels))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
