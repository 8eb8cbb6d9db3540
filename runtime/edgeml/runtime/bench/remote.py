"""`--on ssh://user@board:port/folder`: the same benchmark on a board that has edgeml, over one ssh connection.

The bundle goes in by stdin, the record comes back by stdout, and the board's shell removes the bundle however it ends. ssh
never asks (BatchMode): it uses the keys and hosts that it knows. What comes back is another machine's word, and checked.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import unquote, urlsplit

import msgspec

from edgeml.runtime.bench.records import Bench
from edgeml.runtime.bench.rounds import Plan
from edgeml.runtime.bundle import Bundle, open_bundle, write_bundle
from edgeml.wire.contract import label
from edgeml.wire.errors import EnvironmentProblem, UsageError

CONNECT_S: Final = 15
ANSWER_LIMIT_BYTES: Final = 4 << 20  # a record has kilobytes
TEXT_LIMIT: Final = 2000  # characters of one word of a record
WORDS_LIMIT: Final = 300
NO_EDGEML: Final = 97
NO_FOLDER: Final = 98
NO_ROOM: Final = 99
SSH_FAILED: Final = 255
TIME_LIMIT_S: Final = 3600.0

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # a leading dash would be an option to ssh
_ADDRESS: Final = re.compile(r"[0-9A-Fa-f:.]+(%[A-Za-z0-9_.-]+)?")
_SCRIPT: Final = f"""
if command -v edgeml >/dev/null 2>&1; then run() {{ edgeml "$@"; }}
elif python3 -c 'import edgeml.runtime' >/dev/null 2>&1; then run() {{ python3 -m edgeml.cli "$@"; }}
elif [ -x /opt/edgeml/bin/edgeml ]; then run() {{ /opt/edgeml/bin/edgeml "$@"; }}
else exit {NO_EDGEML}; fi
folder=$(mktemp -d "$1/edgeml-bench.XXXXXX") || exit {NO_FOLDER}
trap 'rm -rf "$folder"' EXIT
trap 'exit 129' HUP INT TERM
cat > "$folder/bundle.edgeml" || exit {NO_ROOM}
shift
run bench "$folder/bundle.edgeml" --json "$@"
"""


@dataclass(frozen=True, slots=True)
class Place:
    """A board behind ssh; `port` and `user` are ssh's own choice where `None`. `folder` takes the bundle for a while."""

    host: str
    user: str | None
    port: int | None
    folder: str

    @property
    def shown(self) -> str:
        user = f"{self.user}@" if self.user else ""
        return f"ssh://{user}{self.host}" + (f":{self.port}" if self.port else "")


def parse_place(text: str) -> Place:
    """Read an ssh URL.

    Raises:
        UsageError: not an ssh URL, or one with a password, a query, or a name that is none.
    """
    expected = "ssh://[user@]host[:port][/folder]"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise UsageError("--on", expected=expected, got=repr(text)) from error
    if parts.scheme != "ssh" or parts.query or parts.fragment:
        raise UsageError("--on", expected=expected, got=repr(text))
    if parts.password is not None:
        raise UsageError("--on: a password in the address would be seen by others", hint="use a key: ssh-copy-id")
    named = _NAME.fullmatch(host) or (":" in host and _ADDRESS.fullmatch(host))
    if not named or (parts.username is not None and not _NAME.fullmatch(parts.username)):
        raise UsageError("--on", expected=expected, got=repr(text))
    return Place(host, parts.username, port, unquote(parts.path).rstrip("/") or "/tmp")  # noqa: S108 - mktemp makes a folder in it


def bench_there(path: Path, plan: Plan, place: Place, *, config: Path | None = None) -> Bench:
    """Measure on the board. `config` is an ssh configuration to use in place of the user's own.

    Raises:
        UsageError: the bundle has no such artifact.
        EnvironmentProblem: no ssh here, no connection, no edgeml there, or an answer that is not a benchmark of this bundle.
    """
    with tempfile.TemporaryDirectory() as scratch, open_bundle(path) as bundle:
        held = [label(artifact) for artifact in bundle.manifest.artifacts]
        for asked in plan.artifacts:
            if asked not in held:
                raise UsageError("no such artifact in the bundle", expected=", ".join(held), got=repr(asked))
        packed = path if path.is_file() else _pack(bundle, Path(scratch))
        with packed.open("rb") as content:
            answer, said, code = _run(_command(place, plan, config), content)
        if code and not answer:
            raise _refusal(place, code, _tidy(said))
        return _checked(answer, bundle, place)


def _command(place: Place, plan: Plan, config: Path | None) -> list[str]:
    options = ["--threads", str(plan.threads)]
    options += [] if plan.calls is None else ["--runs", str(plan.calls)]
    options += [word for artifact in plan.artifacts for word in ("--artifact", artifact)]
    there = shlex.join(["sh", "-c", _SCRIPT, "edgeml-bench", place.folder, *options])
    command = ["ssh", "-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_S}", "-o", "ServerAliveInterval=15"]
    command += [] if config is None else ["-F", str(config)]
    command += [] if place.port is None else ["-p", str(place.port)]
    command += [] if place.user is None else ["-l", place.user]
    return [*command, "--", place.host, there]


def _pack(bundle: Bundle, scratch: Path) -> Path:
    """A folder bundle as the one file that travels."""
    packed = scratch / "bundle.edgeml"
    write_bundle(bundle.manifest, {digest: bundle.blob(digest) for digest in bundle.manifest.blobs()}, packed)
    return packed


def _run(command: Sequence[str], content: IO[bytes]) -> tuple[bytes, bytes, int]:
    """stdout, stderr and exit code of a process that may say too much or never end.

    Raises:
        EnvironmentProblem: it did, or ssh is not here.
    """
    try:
        process = subprocess.Popen(command, stdin=content, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except FileNotFoundError as error:
        raise EnvironmentProblem("no `ssh` on this machine", hint="install openssh-client") from error
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        readers = [_Reader(process.stdout, process), _Reader(process.stderr, process)]
        try:
            code = process.wait(TIME_LIMIT_S)
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise EnvironmentProblem(
                f"no answer from the board in {TIME_LIMIT_S:.0f} s", hint="ask for fewer --runs"
            ) from error
        except BaseException:
            process.kill()
            raise
        out, errors = (reader.content() for reader in readers)
    if any(reader.over for reader in readers):
        raise EnvironmentProblem(f"the board said more than {ANSWER_LIMIT_BYTES} bytes", hint="is that edgeml there?")
    return out, errors, code


class _Reader(threading.Thread):
    """Reads a pipe up to the limit; beyond it, ends the process."""

    def __init__(self, pipe: IO[bytes], process: subprocess.Popen[bytes]) -> None:
        super().__init__(daemon=True)
        self._pipe, self._process = pipe, process
        self._content = bytearray()
        self.over = False
        self.start()

    def run(self) -> None:
        while chunk := self._pipe.read1(1 << 16):  # type: ignore[attr-defined]  # a BufferedReader
            self._content += chunk
            if len(self._content) > ANSWER_LIMIT_BYTES:
                self.over = True
                self._process.kill()
                return

    def content(self) -> bytes:
        self.join()
        return bytes(self._content)


def _refusal(place: Place, code: int, said: str) -> EnvironmentProblem:
    if code == SSH_FAILED:
        hint = f"try `ssh {place.host}` by hand: it must connect without asking for anything"
        return EnvironmentProblem(f"{place.shown}: {said or 'ssh gave no reason'}", hint=hint)
    if code == NO_EDGEML:
        hint = "install edgeml-toolkit[tflite] or [onnx] there, on the PATH of that user or in /opt/edgeml"
        return EnvironmentProblem(f"{place.shown} has no edgeml", hint=hint)
    if code == NO_FOLDER:
        return EnvironmentProblem(f"{place.shown}: no folder can be made in {place.folder!r}: {said}")
    if code == NO_ROOM:
        return EnvironmentProblem(f"{place.shown}: the bundle cannot be written to {place.folder!r}: {said}")
    return EnvironmentProblem(f"edgeml on {place.shown} refused: {said or f'exit code {code}'}")


def _checked(answer: bytes, bundle: Bundle, place: Place) -> Bench:
    """The record, if it is one of this bundle.

    Raises:
        EnvironmentProblem: it is not.
    """
    wrong = f"{place.shown} answered with something that is no benchmark of this bundle"
    try:
        found = msgspec.json.decode(answer, type=Bench)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise EnvironmentProblem(f"{wrong}: {_tidy(str(error).encode())}", hint="is edgeml there as new as here?") from error
    held = {label(artifact) for artifact in bundle.manifest.artifacts}
    labels = [timing.label for timing in found.artifacts]
    if found.digest != bundle.digest or not set(labels) <= held or len(set(labels)) != len(labels):
        raise EnvironmentProblem(f"{wrong}: another bundle's digest or artifacts")
    if not _printable(msgspec.to_builtins(found)):
        raise EnvironmentProblem(f"{wrong}: text that a terminal should not print")
    return found


def _printable(value: Any) -> bool:
    """Whether every text in a record is short and holds no control character."""
    if isinstance(value, str):
        return len(value) <= TEXT_LIMIT and value.isprintable()
    if isinstance(value, dict):
        return all(_printable(inner) for inner in (*value, *value.values()))
    return all(map(_printable, value)) if isinstance(value, list | tuple) else True


def _tidy(said: bytes) -> str:
    """The last line of what was said, for a terminal."""
    lines = [line.strip() for line in said.decode("utf-8", "replace").splitlines() if line.strip()]
    words = "".join(character if character.isprintable() else "?" for character in lines[-1]) if lines else ""
    return words.removeprefix("error: ")[-WORDS_LIMIT:]
