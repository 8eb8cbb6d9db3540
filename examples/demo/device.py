"""The application on the one real device: an endless stream of samples, each answered through the agent.

`python -m examples.demo.device agent.toml MODEL SAMPLES.npz` prints one JSON line per answer.
"""

from __future__ import annotations

import argparse
import json
import signal
import threading
from pathlib import Path

import numpy as np

from edgeml.runtime import Agent
from edgeml.wire.errors import EngineError

PERIOD_S = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("model")
    parser.add_argument("samples", type=Path)
    arguments = parser.parse_args()
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    with np.load(arguments.samples, allow_pickle=False) as stored:
        inputs = {name: stored[name] for name in stored.files if name != "y"}
        labels = stored["y"]
    with Agent(arguments.config) as agent:
        model = agent.model(arguments.model)
        turn = 0
        while not stopping.wait(PERIOD_S):
            sample = turn % len(labels)
            turn += 1
            try:
                result = model.run({name: values[sample][None] for name, values in inputs.items()})
            except EngineError:
                continue  # nothing is installed yet: the fleet has not spoken
            line = {
                "sample": sample, "version": result.version, "source": result.source, "answer": result.class_index,
                "label": result.label, "right": result.class_index == int(labels[sample]), "score": result.score,
                "latency_ms": result.latency_s * 1e3, "fallback": result.fallback,
            }  # fmt: skip
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
