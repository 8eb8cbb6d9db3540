"""`edgeml fleet`: run the service, and be its operator. Every command but `serve` and `keys` goes through its REST API."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from edgeml.fleet import show
from edgeml.fleet.client import Client
from edgeml.fleet.config import DEFAULT_MQTT_PORT, DEFAULT_PORT, Config, Places
from edgeml.fleet.devices_cli import app as devices_app
from edgeml.fleet.options import DEFAULT_DATA, Data, Json, Url, open_client, parse_tags, print_answer
from edgeml.fleet.rollout import GateSpec, Wave
from edgeml.fleet.samples_cli import app as samples_app
from edgeml.wire.errors import EnvironmentProblem, UsageError

_GATE: Final = GateSpec()
_LONGEST_S: Final = Wave(1.0).longest_s
_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}

app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True, help="Publish versions and roll them out."
)
rollout_app = typer.Typer(no_args_is_help=True, help="Bring a version to the fleet, on evidence.")
keys_app = typer.Typer(no_args_is_help=True, help="The keys that sign what may run.")
app.add_typer(devices_app, name="devices")
app.add_typer(rollout_app, name="rollout")
app.add_typer(keys_app, name="keys")
app.add_typer(samples_app, name="samples")


@app.command()
def serve(
    *,
    data: Data = DEFAULT_DATA,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; anything but loopback is open to its network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="NUMBER", min=0, max=65535, help="0 takes a free one.")] = DEFAULT_PORT,
    broker: Annotated[
        str | None,
        typer.Option(
            metavar="BROKER",
            envvar="EDGEML_FLEET_BROKER",
            show_default="mosquitto if it is installed, else amqtt",
            help="mqtt://user:password@host:port of an outside one; or mosquitto, amqtt or none.",
        ),
    ] = None,
    mqtt_host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where our own broker listens.")] = "127.0.0.1",
    mqtt_port: Annotated[int, typer.Option(metavar="NUMBER", min=0, max=65535, help="Of our own broker.")] = DEFAULT_MQTT_PORT,
    tick_s: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.01, max=60.0, help="How often rollouts are looked at.")
    ] = 1.0,
    public_url: Annotated[
        str | None, typer.Option(metavar="URL", show_default="http://HOST:PORT", help="Where devices are told to ask.")
    ] = None,
    samples_mb: Annotated[
        float, typer.Option(metavar="MB", min=0.0, help="Room for inputs that devices may send; 0: take none.")
    ] = 1024.0,
    samples_days: Annotated[float, typer.Option(metavar="DAYS", min=0.0, help="How long they are kept.")] = 90.0,
) -> None:
    """Run the service.

    The first start makes keys, database and the operator's key, and says where they are. Stop it with Ctrl-C.
    """
    from edgeml.fleet.serve import serve as run

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for noisy in ("uvicorn", "httpx", "amqtt"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    config = Config(
        data.absolute(), host, port, broker, mqtt_host, mqtt_port, tick_s, public_url=public_url,
        samples_bytes=int(samples_mb * 1e6), samples_days=samples_days,
    )  # fmt: skip
    run(config, say=_say)


@app.command()
def publish(
    bundle: Annotated[Path, typer.Argument(help="A packed bundle (.edgeml).")],
    data: Data = DEFAULT_DATA,
    url: Url = None,
    json: Json = False,
) -> None:
    """Check a bundle, keep it and sign that it may run.

    Exit codes: 0 published, or was already, 2 usage or another bundle of that version, 3 damaged, 6 no service.
    """
    with open_client(data, url) as client:
        row, is_new = client.publish(bundle)
    words = "published" if is_new else "was published already, with these very bytes:"
    print_answer(
        row,
        json,
        f"{words} {row['model']}@{row['version']} ({show.size(row['bytes'])}, manifest {row['manifest_sha256'][:12]})",
    )


def _check_events(data: Path, url: str | None, json: bool) -> None:
    with open_client(data, url) as client:
        found = client.get("/v1/events/check")
    print_answer(found, json, f"{found['events']} events")
    if found["broken_at"] is not None:
        raise EnvironmentProblem(
            f"event {found['broken_at']} does not follow from the one before it: one of them was changed, or one left out"
        )


@app.command()
def models(data: Data = DEFAULT_DATA, url: Url = None, json: Json = False) -> None:
    """Show what is published."""
    with open_client(data, url) as client:
        listed = client.get("/v1/models")
    print_answer(listed, json, show.models(listed))


@app.command()
def events(
    *,
    data: Data = DEFAULT_DATA,
    url: Url = None,
    json: Json = False,
    limit: Annotated[int, typer.Option(metavar="NUMBER", min=1, max=10_000, help="The newest so many.")] = 30,
    subject: Annotated[str | None, typer.Option(metavar="NAME", help="Of one device, version or rollout alone.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Say whether one was changed, or left out between others.")] = False,
) -> None:
    """Show what happened, and who did it. Events are chained by hashes; exit code 6 if --check finds the chain broken."""
    if check:
        _check_events(data, url, json)
        return
    query = {"limit": limit} | ({"subject": subject} if subject else {})
    with open_client(data, url) as client:
        listed = client.get("/v1/events", **query)
    print_answer(listed, json, show.events(listed))


@rollout_app.command("create")
def create_rollout(
    *,
    version: Annotated[str, typer.Argument(metavar="MODEL@VERSION", help="A published version.")],
    canary: Annotated[str, typer.Option(metavar="SHARE", help="Of the first wave: 5% or 0.05.")] = "5%",
    waves: Annotated[str, typer.Option(metavar="SHARES", help="Of the waves after it, growing.")] = "25,50,100",
    hold_back: Annotated[
        str, typer.Option(metavar="SHARE", help="Keeps the old version until the end, to compare with.")
    ] = "10%",
    soak: Annotated[str, typer.Option(metavar="TIME", help="At least so long a wave: 90s, 10m, 2h, 7d.")] = "1h",
    longest: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", show_default=f"{_LONGEST_S / 86_400:g}d", help="After it an undecided wave is held for a person."
        ),
    ] = None,
    limit: Annotated[
        str | None, typer.Option(metavar="SHARE", show_default=f"{_GATE.limit:.0%}", help="Of bad devices that is acceptable.")
    ] = None,
    margin: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE", show_default=f"{_GATE.margin:.0%}", help="How much worse than the hold-back is acceptable."
        ),
    ] = None,
    min_devices: Annotated[
        int, typer.Option(metavar="NUMBER", min=1, help="Devices that must have settled before a wave may end.")
    ] = 1,
    least_answers: Annotated[
        int | None,
        typer.Option(
            metavar="NUMBER", show_default=str(_GATE.least_answers), min=0, help="Answers before a device's telemetry counts."
        ),
    ] = None,
    silence: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            show_default=f"{_GATE.silence_s / 3600:g}h",
            help="After it a device that was told and says nothing is bad.",
        ),
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", metavar="KEY=VALUE", help="Only devices with this tag; may be repeated.")
    ] = None,
    confirm_small: Annotated[bool, typer.Option(help="Below 60 devices a person approves each wave.")] = True,
    auto_rollback: Annotated[bool, typer.Option(help="Roll back by itself when it stops.")] = True,
    data: Data = DEFAULT_DATA,
    url: Url = None,
    json: Json = False,
) -> None:
    """Start bringing a published version to the fleet, wave by wave."""
    model, _, number = version.partition("@")
    if not model or not number:
        raise UsageError("what to roll out", expected="MODEL@VERSION", got=repr(version))
    asked: dict[str, Any] = {
        "model": model,
        "version": number,
        "canary": parse_share(canary),
        "waves": [parse_share(share) for share in waves.split(",") if share.strip()],
        "hold_back": parse_share(hold_back),
        "soak_s": parse_seconds(soak),
        "least_devices": min_devices,
        "where": parse_tags(tag or []),
        "confirm_small": confirm_small,
        "auto_rollback": auto_rollback,
    }
    asked |= {name: parse_share(text) for name, text in {"limit": limit, "margin": margin}.items() if text is not None}
    asked |= {
        name: parse_seconds(text) for name, text in {"longest_s": longest, "silence_s": silence}.items() if text is not None
    }
    if least_answers is not None:
        asked["least_answers"] = least_answers
    with open_client(data, url) as client:
        answer = client.post("/v1/rollouts", asked)
    print_answer(answer, json, show.rollout(answer))


@rollout_app.command("status")
def rollout_status(
    rollout: Annotated[str | None, typer.Argument(metavar="ID", help="A rollout's id; without it, all of them.")] = None,
    data: Data = DEFAULT_DATA,
    url: Url = None,
    json: Json = False,
) -> None:
    """Show where it stands, and the evidence in a sentence."""
    with open_client(data, url) as client:
        answer = client.get(f"/v1/rollouts/{rollout}" if rollout else "/v1/rollouts")
    print_answer(answer, json, show.rollout(answer) if rollout else show.rollouts(answer))


def _command(name: str, words: str) -> None:
    """`edgeml fleet rollout NAME [ID]`; without an id, the newest rollout."""

    @rollout_app.command(name, help=words)
    def run(
        rollout: Annotated[str | None, typer.Argument(metavar="ID", help="A rollout's id; without it, the newest.")] = None,
        data: Data = DEFAULT_DATA,
        url: Url = None,
        json: Json = False,
    ) -> None:
        with open_client(data, url) as client:
            chosen = rollout or _newest(client)
            answer = client.post(f"/v1/rollouts/{chosen}/{name}")
        print_answer(answer, json, show.rollout(answer))


_command("pause", "Tell nobody new until it is resumed.")
_command("resume", "Go on where it was paused.")
_command("approve", "Let a held rollout go on to the next wave.")
_command("abort", "Stop, and leave the devices on what they run.")
_command("rollback", "Bring every device back to what it ran before.")


@keys_app.command("init")
def init_keys(
    data: Data = DEFAULT_DATA,
    solo: Annotated[bool, typer.Option("--solo", help="One person holds every key.")] = False,
    json: Json = False,
) -> None:
    """Make the signing keys and an empty signed repository.

    EDGEML_KEYS_PASSWORD encrypts the keys on disk.
    """
    from edgeml.fleet import trust

    if not solo:
        raise UsageError("only --solo keys can be made here so far", hint="add --solo")
    places = Places(data.absolute())
    made = not trust.exists(places)
    trust.create(places, time.time(), os.environ.get(trust.PASSWORD_VARIABLE))
    words = f"made keys in {places.keys}; keep a copy of them offline" if made else f"keys exist already in {places.keys}"
    print_answer({"keys": str(places.keys), "made": made}, json, words)


def parse_share(text: str) -> float:
    """`5%`, `5` and `0.05` are all five percent. A bare `1` could be 1 % or everybody, and is refused."""
    if text.strip() == "1":
        raise UsageError("a share", expected="1% or 100%", got="'1'")
    try:
        number = float(text.strip().removesuffix("%"))
    except ValueError:
        number = -1.0
    share = number / 100 if text.strip().endswith("%") or number > 1 else number
    if not 0.0 <= share <= 1.0:
        raise UsageError("a share", expected="like 5% or 0.05", got=repr(text))
    return share


def parse_seconds(text: str) -> float:
    """`90`, `90s`, `1.5m`, `2h`, `7d`."""
    body = text.strip()
    unit = _UNITS.get(body[-1:], None)
    try:
        seconds = float(body[:-1] if unit else body) * (unit or 1.0)
    except ValueError:
        seconds = -1.0
    if not 0.0 <= seconds < float("inf"):
        raise UsageError("a time", expected="like 90, 90s, 10m, 2h or 7d", got=repr(text))
    return seconds


def _newest(client: Client) -> str:
    listed = client.get("/v1/rollouts")
    if not listed:
        raise UsageError("there is no rollout yet", hint="`edgeml fleet rollout create MODEL@VERSION`")
    return str(listed[0]["id"])


def _say(line: str) -> None:
    print(line, flush=True)
