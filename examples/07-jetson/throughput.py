"""How fast a Jetson reads meters, and how warm it gets:  python throughput.py agent.toml IMAGES.npz"""

import sys
import time

import numpy as np

from edgeml.runtime import Agent
from edgeml.runtime.board import read_board
from edgeml.runtime.doctor import examine

CALLS = 2000


def main(config: str, path: str) -> None:
    before = read_board()
    if not before.is_jetson:
        print("this is no Jetson: the model runs on the CPU")
    for finding in examine():
        if finding.what.startswith("provider ") or finding.what in {"board", "power mode", "engine onnx"}:
            print(f"{finding.what}: {finding.detail}")
    with np.load(path, allow_pickle=False) as stored:
        images, digits = stored["image"], stored["y"]
    with Agent(config) as agent:
        meter = agent.model("meter")
        began = time.perf_counter()
        results = [meter.run({"image": images[i % len(images)][None]}) for i in range(CALLS)]
        took_s = time.perf_counter() - began
        artifact = agent.status.models[0].artifact
    right = sum(result.class_index == digits[i % len(digits)] for i, result in enumerate(results))
    latencies_us = np.array([result.latency_s for result in results]) * 1e6
    print(f"{artifact}: {CALLS / took_s:.0f} answers a second, one after the other, {100 * right / CALLS:.1f} % right")
    print(f"latency {np.median(latencies_us):.0f} us, one in a hundred over {np.quantile(latencies_us, 0.99):.0f} us")
    if (hottest := read_board().hottest) is not None and before.hottest is not None:
        print(f"hottest: {hottest.name}, {before.hottest.celsius:.0f} °C before, {hottest.celsius:.0f} °C after")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
