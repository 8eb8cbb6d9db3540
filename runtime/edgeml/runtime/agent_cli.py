"""`edgeml agent`: run the agent, check its settings, see what it does."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from edgeml.runtime.agent import Agent, take_folder
from edgeml.runtime.arguments import Json
from edgeml.runtime.config import load_config
from edgeml.runtime.forget import Wish, erase_alone
from edgeml.runtime.samples import sample_hook
from edgeml.runtime.status import REWRITE_S, ModelStatus, Status, read_status, screen
from edgeml.runtime.supervisor import Supervisor
from edgeml.runtime.tls import broker_tls, service_tls
from edgeml.wire.errors import ConfigError, EnvironmentProblem, LinkError, ServiceError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="The agent of a device: run it, check its settings, see what it does. Every setting: docs/settings.md.",
)

Config = Annotated[Path, typer.Option("--config", metavar="FILE", help="The device's agent.toml.")]

LOOK_S = 0.5
_NOT_YET = "the agent that runs here has not done it yet; it will"
STALE_S = 3 * REWRITE_S  # a status older than this was left by an agent that ended or hangs


@app.command()
def run(config: Config) -> None:
    """Run until SIGTERM or Ctrl-C.

    It prints a line whenever something changes, and tells systemd, where that started it.
    """
    faulthandler.enable()  # a watchdog's SIGABRT leaves in the log where each thread hung
    supervisor = Supervisor()
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    with Agent(config) as agent:
        _say(f"device {agent.config.device.id} up")
        supervisor.ready()
        told: dict[str, str] = {}
        while not stopping.wait(LOOK_S):
            supervisor.ping(agent.rounds)
            news = [(subject, line) for subject, line in _lines(agent.status) if told.get(subject) != line]
            for subject, line in news:
                told[subject] = line
                _say(line)
            if news:
                supervisor.status("; ".join(told.values()))
        supervisor.stopping()
    _say("stopped")


@app.command()
def check(config: Config) -> None:
    """Read the settings, and say what they mean.

    Nothing is changed, and nobody is asked. Exit code 2 names what is wrong.
    """
    found = load_config(config)
    for table in (found.service,):
        if table is not None and not found.path(table.root).is_file():
            raise ConfigError(f"TUF root {str(found.path(table.root))!r} is not there", hint="copy root.json from your fleet")
    service_tls(found)
    broker_tls(found)
    for name, model in found.models.items():
        if model.bundle is not None and not found.path(model.bundle).exists():
            raise ConfigError(f"bundle of model {name!r}: {str(found.path(model.bundle))!r} is not there")
    fleet = found.service.url if found.service else "none"
    broker = (
        found.broker.url
        if found.broker
        else f"none; asks the service every {found.service.poll_s:.0f} s"
        if found.service
        else "none"
    )
    print(f"device   {found.device.id}\ndata     {found.data}\nservice  {fleet}\nbroker   {broker}")
    home = found.home_assistant
    if home is not None:
        address = home.url or (found.broker.url if found.broker else "")
        print(f"home     {address}{'' if home.enabled else ', to take back what was shown'}")
    if found.samples is not None:
        sample_hook(found.samples, Path(found.folder))
        redacted = f"redacted by {found.samples.redact}" if found.samples.redact else "as they are: no redaction"
        print(f"samples  inputs with a score below {found.samples.below:g} leave this device, {redacted}")
    for name, model in found.models.items():
        print(f"model    {name}  {model.bundle or '(waits for the fleet)'}")


@app.command()
def status(config: Config, json: Json = False) -> None:
    """Show what the agent does, from the file it keeps.

    Exit code 6 if it no longer keeps it.
    """
    found = read_status(load_config(config).data)
    now = time.time()
    print(msgspec.json.encode(found).decode() if json else screen(found, now))
    if now - found.at > STALE_S:
        hint = "start it: edgeml agent run --config …, or systemctl restart edgeml-agent"
        raise EnvironmentProblem(f"the agent has not been heard of for {now - found.at:.0f} s", hint=hint)


@app.command()
def forget(
    config: Config,
    wait: Annotated[float, typer.Option(min=0.0, metavar="SECONDS", help="How long to wait for a running agent.")] = 15.0,
) -> None:
    """Delete my data: what this device saw and said.

    It is erased here, and the service is asked to erase it too.

    A service that cannot be reached now is asked again by the agent until it has done so. Versions and settings stay.
    """
    found = load_config(config)
    wish = Wish(found.data)
    held = take_folder(found.data)
    try:
        wish.ask()
        if held is not None:
            erase_alone(found, wish)
        elif not _fulfilled(wish, wait):
            print("erased here; the service has not answered yet: the agent goes on asking" if wish.before_seq else _NOT_YET)
            return
    except OSError as error:
        raise EnvironmentProblem(f"the disk does not take the wish: {error.strerror}") from error
    except (LinkError, ServiceError) as error:
        print(f"erased here; the service was not reached ({error}): the next agent to run here asks again")
        return
    finally:
        if held is not None:
            os.close(held)
    print("erased here, and by the service" if found.service is not None else "erased here")


def _fulfilled(wish: Wish, wait_s: float) -> bool:
    """Wait for the agent that runs to fulfil it."""
    until = time.monotonic() + wait_s
    while wish.is_there and time.monotonic() < until:
        wish.is_new()
        time.sleep(LOOK_S / 2)
    return not wish.is_there


def _lines(found: Status) -> list[tuple[str, str]]:
    lines = [("link", f"link: {found.link}")]
    if found.service != "ok":
        lines.append(("service", f"service: {found.service}"))
    return [*lines, *((f"model {model.name}", _model_line(model)) for model in found.models)]


def _model_line(model: ModelStatus) -> str:
    line = f"{model.name}: answers with {model.active_version or 'nothing'}"
    if model.stage is not None:
        line += f"; {model.wanted} {model.stage} (rev {model.rev})"
    return line + (f"; {model.code}: {model.detail}" if model.code else "")


def _say(line: str) -> None:
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {line}", flush=True)


if __name__ == "__main__":
    sys.exit(app())
