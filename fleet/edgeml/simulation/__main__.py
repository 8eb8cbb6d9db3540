"""`python -m edgeml.simulation --config swarm.toml`: run a simulated fleet until SIGTERM, one line when something changes."""

from __future__ import annotations

import signal
import sys
import threading
import time
from pathlib import Path
from typing import Annotated

import typer

from edgeml.simulation.settings import load_settings
from edgeml.simulation.swarm import Summary, Swarm
from edgeml.wire.errors import EdgemlError

LOOK_S = 1.0

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def run(config: Annotated[Path, typer.Option("--config", help="The swarm.toml.")]) -> None:
    """Run simulated devices against a real service."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    try:
        with Swarm(load_settings(config)) as swarm:
            told = ""
            while not stopping.wait(LOOK_S):
                line = _line(swarm.summary())
                if line != told:
                    told = line
                    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)
    except EdgemlError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _line(summary: Summary) -> str:
    versions = ", ".join(f"{count} on {version}" for version, count in sorted(summary.versions.items()))
    stages = ", ".join(f"{count} {stage}" for stage, count in sorted(summary.stages.items()))
    problems = "".join(f"; {count} x {problem[:120]}" for problem, count in summary.problems.items())
    return f"{summary.devices} devices, {summary.connected} connected: {versions or 'no model'}; {stages or 'idle'}{problems}"


if __name__ == "__main__":
    app()
