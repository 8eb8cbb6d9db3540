"""`edgeml agent run`, whose own thread hangs for as long as a file is there:  python hanging_agent.py FILE agent.toml"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from edgeml import cli
from edgeml.runtime.device import Device


def main(file: Path, config: str) -> None:
    tick, pause = Device.tick, threading.Event()

    def hanging(self: Device) -> None:
        while file.exists():
            pause.wait(0.02)
        tick(self)

    Device.tick = hanging  # type: ignore[method-assign]
    cli.main(["agent", "run", "--config", config])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
