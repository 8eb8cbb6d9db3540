"""An application with an agent inside, to be killed: prints a JSON line for its first answer and whenever the version changes.

    python agent_process.py agent.toml

It runs the same sample all the time. `slowest_s` is the longest a call took since the last line.
"""

from __future__ import annotations

import json
import sys
import threading
import time

import numpy as np

from edgeml.runtime.agent import Agent
from edgeml.wire.errors import EdgemlError

SAMPLE = np.array([1.0, -0.5, 0.25, 2.0], np.float32)
PAUSE_S = 0.005


def main(path: str) -> None:
    pause = threading.Event()
    told, slowest_s, errors = "", 0.0, 0
    with Agent(path) as agent:
        model = agent.model("toy")
        while True:
            began = time.perf_counter()
            try:
                result = model.run({"x": SAMPLE})
            except EdgemlError as error:
                errors += 1
                print(json.dumps({"error": str(error)}), flush=True)
                pause.wait(0.2)
                continue
            slowest_s = max(slowest_s, time.perf_counter() - began)
            if result.version != told:
                told = result.version
                line = {"version": told, "logits": result.outputs["logits"].ravel().tolist(), "slowest_s": slowest_s}
                print(json.dumps({**line, "errors": errors}), flush=True)
                slowest_s = 0.0
            pause.wait(PAUSE_S)


if __name__ == "__main__":
    main(sys.argv[1])
