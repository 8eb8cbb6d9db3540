"""A hundred meters, two models, one agent:  python gateway.py agent.toml IMAGES.npz"""

import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeml.runtime import Agent
from edgeml.wire.errors import EdgemlError

SENSORS = 100
WORKERS = 4
BROKEN = 13  # this one sends an image of another size


@dataclass(frozen=True)
class Sensor:
    number: int
    model: str


def look(sensor: Sensor, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the sensor sees; yours asks Modbus, LoRa or a serial line."""
    image: NDArray[np.float32] = images[sensor.number % len(images)][None]
    return image[:, :, :4] if sensor.number == BROKEN else image


def main(config: str, path: str) -> None:
    with np.load(path, allow_pickle=False) as stored:
        images = stored["image"]
    sensors = [Sensor(number, "heat" if number % 4 == 0 else "meter") for number in range(SENSORS)]
    with Agent(config) as agent, ThreadPoolExecutor(WORKERS) as pool:
        models = {name: agent.model(name) for name in ("meter", "heat")}

        def read(sensor: Sensor) -> tuple[str, str]:
            try:
                models[sensor.model].run({"image": look(sensor, images)})
            except EdgemlError as error:
                print(f"sensor {sensor.number}: {error}")
                return sensor.model, "refused"
            return sensor.model, "read"

        counts = Counter(pool.map(read, sensors))
    for (model, what), count in sorted(counts.items()):
        print(f"{model:<6} {count:>3} {what}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
