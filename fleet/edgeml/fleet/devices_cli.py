"""`edgeml fleet devices`: enrol devices, see them, renew their tokens, forget and remove them."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeml.fleet import show
from edgeml.fleet.agent_file import ROOT_NAME, AgentFile, refuse_existing, write_agent_file
from edgeml.fleet.client import Client, find_access
from edgeml.fleet.disk import PRIVATE, write_whole
from edgeml.fleet.options import DEFAULT_DATA, Data, Device, Json, Tags, Url, open_client, parse_tags, print_answer
from edgeml.wire.errors import UsageError

app = typer.Typer(no_args_is_help=True, help="Who may speak: enrol, list, renew, remove devices.")


@app.command("list")
def list_devices(data: Data = DEFAULT_DATA, url: Url = None, json: Json = False) -> None:
    """Show every device: whether it is there, what it runs, what is wanted of it."""
    listed: list[Any] = []
    with open_client(data, url) as client:
        while page := client.get("/v1/devices", after=listed[-1]["id"] if listed else ""):
            listed += page
    print_answer(listed, json, show.devices(listed))


@app.command("add")
def add_devices(
    *,
    device: Annotated[str | None, typer.Argument(metavar="ID", help="The device's id.")] = None,
    tag: Tags = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="agent.toml, or devices.jsonl with --bulk.")
    ] = None,
    bulk: Annotated[int, typer.Option(metavar="NUMBER", min=0, max=10_000, help="Enrol this many: PREFIX-0001, …")] = 0,
    prefix: Annotated[str, typer.Option(metavar="PREFIX", help="Of the names that --bulk gives.")] = "device",
    data: Data = DEFAULT_DATA,
    url: Url = None,
    json: Json = False,
) -> None:
    """Enrol a device. Its token is shown once: in `-o agent.toml`, or here."""
    if (device is None) == (bulk == 0):
        raise UsageError("what to enrol", expected="an ID, or --bulk N", got="both" if bulk else "neither")
    if output is not None:
        refuse_existing(output)
    tags = parse_tags(tag or [])
    access = find_access(data, url)
    asked = {"ids": [device], "tags": tags} if device else {"prefix": prefix, "count": bulk, "tags": tags}
    with Client(access) as client:
        answer = client.post("/v1/devices", asked)
    files = [
        AgentFile(one["id"], one["token"], access.url, answer["broker"], answer["tenant"], tags) for one in answer["devices"]
    ]
    if output is None:
        print_answer(answer["devices"], json, "\n".join(f"{file.device}  {file.token}" for file in files))
    elif device:
        write_agent_file(output, files[0], answer["root"])
        print_answer({"device": device, "file": str(output)}, json, f"enrolled {device}: {output}, and {ROOT_NAME} beside it")
    else:
        _write_lines(output, files, answer["root"])
        print_answer(
            {"devices": len(files), "file": str(output)},
            json,
            f"enrolled {len(files)} devices: {output}, and {ROOT_NAME} beside it",
        )


@app.command("renew")
def renew_token(
    *,
    device: Device,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="A new agent.toml.")] = None,
    data: Data = DEFAULT_DATA,
    url: Url = None,
    json: Json = False,
) -> None:
    """Give a device a new token; the old one ends at once. For a lost or leaked agent.toml."""
    if output is not None:
        refuse_existing(output)
    access = find_access(data, url)
    with Client(access) as client:
        answer = client.post(f"/v1/devices/{device}/token")
        tags = client.get(f"/v1/devices/{device}")["device"]["tags"]
    [enrolled] = answer["devices"]
    if output is None:
        print_answer(enrolled, json, f"{device}  {enrolled['token']}")
        return
    file = AgentFile(device, enrolled["token"], access.url, answer["broker"], answer["tenant"], tags)
    write_agent_file(output, file, answer["root"])
    print_answer({"device": device, "file": str(output)}, json, f"new token for {device}: {output}, and {ROOT_NAME} beside it")


@app.command("remove")
def remove_device(device: Device, data: Data = DEFAULT_DATA, url: Url = None, json: Json = False) -> None:
    """Forget a device; it may not connect any more."""
    with open_client(data, url) as client:
        answer = client.delete(f"/v1/devices/{device}")
    print_answer(answer, json, f"removed {device}")


@app.command("forget")
def forget_device(device: Device, data: Data = DEFAULT_DATA, url: Url = None, json: Json = False) -> None:
    """Delete what a device said and showed: reports, telemetry, samples. It stays enrolled."""
    with open_client(data, url) as client:
        answer = client.post(f"/v1/devices/{device}/forget")
    words = ", ".join(f"{count} {what}" for what, count in answer.items())
    print_answer(answer, json, f"forgot what {device} said: {words}")


def _write_lines(path: Path, files: list[AgentFile], root: str) -> None:
    lines = [
        {
            "id": file.device,
            "token": file.token,
            "url": file.url,
            "broker": file.broker,
            "tenant": file.tenant,
            "tags": dict(file.tags),
        }
        for file in files
    ]
    write_whole(path.parent / ROOT_NAME, root.encode())
    write_whole(path, "".join(jsonlib.dumps(line) + "\n" for line in lines).encode(), PRIVATE)
