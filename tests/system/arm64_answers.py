"""What every artifact of a bundle answers on this processor:  python arm64_answers.py BUNDLE SAMPLES.npz OUT.npz

Runs the golden vectors of each artifact that has an engine here, then the samples; writes `tflite:int8/logits` and so on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from edgeml.runtime.backends import EngineOptions
from edgeml.runtime.bundle import open_bundle
from edgeml.runtime.choose import rank, this_board
from edgeml.runtime.golden import self_test
from edgeml.runtime.npz import read_samples
from edgeml.runtime.session import open_session
from edgeml.wire.contract import label


def main(path: Path, samples: Path, out: Path) -> None:
    answers = {}
    with open_bundle(path) as bundle:
        feeds, count = read_samples(samples, bundle.manifest.signature)
        for choice in rank(bundle.manifest, this_board()):
            if not choice.fits:
                continue
            with open_session(bundle, choice.artifact, options=EngineOptions()) as session:
                golden = self_test(bundle, choice.artifact, session)
                assert golden.samples >= 32, "the bundle carries golden vectors"
                rows = [session.run({name: values[i] for name, values in feeds.items()}) for i in range(count)]
            for name in rows[0]:
                answers[f"{label(choice.artifact)}/{name}"] = np.concatenate([row[name].reshape(1, -1) for row in rows])
    np.savez(out, **answers)  # type: ignore[arg-type]  # numpy types the keywords as its own flag


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
