"""`edgeml bench --on ssh://…`: through a real sshd on loopback, and against boards that answer wrongly."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from edgeml.runtime.bench import remote
from edgeml.runtime.bench.records import Bench, Machine, Timing
from edgeml.runtime.bench.remote import bench_there, parse_place
from edgeml.runtime.bench.rounds import Plan
from edgeml.runtime.bundle import open_bundle, unpack_bundle
from edgeml.wire.errors import EnvironmentProblem, UsageError
from tests.unit.bundles import make_bundle

SSHD = Path("/usr/sbin/sshd")


@dataclass(frozen=True, slots=True)
class Board:
    """An sshd that only a temporary key opens, whose shells find the programs in `bin` and nothing else of ours."""

    url: str
    config: Path
    bin: Path


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    if not SSHD.exists() or shutil.which("ssh-keygen") is None:
        pytest.skip("no sshd here: install openssh-server")
    if os.geteuid() != 0:
        pytest.skip("sshd runs sessions only as root")
    Path("/run/sshd").mkdir(exist_ok=True)  # where it separates privileges
    home, programs = tmp_path / "ssh", tmp_path / "bin"
    home.mkdir(mode=0o700)
    programs.mkdir()
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", home / name], check=True)
    port = _free_port()
    (home / "authorized").write_text((home / "user.pub").read_text())
    (home / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {home}/host\nAuthorizedKeysFile {home}/authorized\nUsePAM no\n"
        f"PidFile none\nPasswordAuthentication no\nStrictModes no\nSetEnv PATH={programs}:/usr/bin:/bin\n"
    )
    (home / "known").write_text(f"[127.0.0.1]:{port} {(home / 'host.pub').read_text()}")
    config = home / "config"
    config.write_text(
        f"Host *\n  IdentityFile {home}/user\n  IdentitiesOnly yes\n  UserKnownHostsFile {home}/known\n"
        f"  StrictHostKeyChecking yes\n"
    )
    daemon = subprocess.Popen([SSHD, "-D", "-E", home / "log", "-f", home / "sshd_config"])
    try:
        _wait_for(port)
        yield Board(f"ssh://{getpass.getuser()}@127.0.0.1:{port}{tmp_path}", config, programs)
    finally:
        daemon.terminate()
        daemon.wait(10)


def edgeml(board: Board) -> None:
    """Install the command there, with the packages of this environment."""
    paths = ":".join(path for path in sys.path if path)
    script = board.bin / "edgeml"
    script.write_text(f'#!/bin/sh\nPYTHONPATH={paths} exec {sys.executable} -m edgeml.cli "$@"\n')
    script.chmod(0o755)


@pytest.mark.slow
def test_a_board_behind_ssh_measures_and_keeps_nothing(board: Board, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, artifacts=(("tflite", "fp32"),))
    folder = tmp_path / "unpacked"
    unpack_bundle(bundle, folder)
    edgeml(board)
    found = bench_there(folder, Plan(calls=20), parse_place(board.url), config=board.config)
    (timing,) = found.artifacts
    assert (timing.label, timing.state, timing.calls) == ("tflite:fp32", "measured", 20)
    assert not list(tmp_path.glob("edgeml-bench.*"))


def test_a_board_without_edgeml_says_how_to_install_it(board: Board, tmp_path: Path) -> None:
    (board.bin / "python3").write_text("#!/bin/sh\nexit 1\n")
    (board.bin / "python3").chmod(0o755)
    if Path("/opt/edgeml/bin/edgeml").exists():
        pytest.skip("this machine has edgeml where boards do")
    with pytest.raises(EnvironmentProblem, match=r"127.0.0.1:\d+ has no edgeml; install edgeml-toolkit\[tflite\]"):
        bench_there(make_bundle(tmp_path), Plan(), parse_place(board.url), config=board.config)


def test_an_error_there_arrives_as_its_sentence(board: Board, tmp_path: Path) -> None:
    script = board.bin / "edgeml"
    script.write_text("#!/bin/sh\necho \"error: no command 'bench'; export, \033[2Jinspect\" >&2\nexit 2\n")
    script.chmod(0o755)
    with pytest.raises(EnvironmentProblem, match=r"refused: no command 'bench'; export, \?\[2Jinspect$"):
        bench_there(make_bundle(tmp_path), Plan(), parse_place(board.url), config=board.config)


def test_a_host_that_is_not_known_is_refused_and_nothing_is_asked(board: Board, tmp_path: Path) -> None:
    (tmp_path / "ssh" / "known").write_text("")
    with pytest.raises(EnvironmentProblem, match=r"verification failed.*; try `ssh 127.0.0.1` by hand"):
        bench_there(make_bundle(tmp_path), Plan(), parse_place(board.url), config=board.config)


def test_a_folder_that_is_not_there_is_named(board: Board, tmp_path: Path) -> None:
    edgeml(board)
    with pytest.raises(EnvironmentProblem, match=r"no folder can be made in '/nowhere'"):
        bench_there(make_bundle(tmp_path), Plan(), parse_place(f"{board.url.partition(str(tmp_path))[0]}/nowhere"),
                    config=board.config)  # fmt: skip


@pytest.fixture
def liar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file: what it holds is what `ssh` answers, however it is called."""
    (tmp_path / "bin").mkdir()
    answer = tmp_path / "answer"
    script = tmp_path / "bin" / "ssh"
    script.write_text(f"#!/bin/sh\ncat >/dev/null\ncat {answer}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return answer


def record(bundle: Path) -> Bench:
    with open_bundle(bundle) as opened:
        digest = opened.digest
    return Bench("toy", "1.0.0", digest, Machine("aarch64", 4), 1, (Timing("onnx", "fp32", "not run", "for a reason"),))


def test_a_record_of_this_bundle_is_taken(liar: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    liar.write_bytes(msgspec.json.encode(record(bundle)))
    assert bench_there(bundle, Plan(), parse_place("ssh://board")) == record(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"digest": "f" * 64}, "another bundle's digest"),
        ({"artifacts": (Timing("tflite", "int8", "not run", ""),)}, "another bundle's digest or artifacts"),
        ({"name": "\033]0;owned\007"}, "text that a terminal should not print"),
        ({"notes": ("x" * 3000,)}, "text that a terminal should not print"),
        ({"threads": -1}, "no benchmark of this bundle"),
    ],
    ids=["digest", "artifacts", "escape", "long", "negative"],
)
def test_a_record_that_lies_is_refused(liar: Path, tmp_path: Path, change: dict[str, object], message: str) -> None:
    bundle = make_bundle(tmp_path)
    liar.write_bytes(msgspec.json.encode(msgspec.structs.replace(record(bundle), **change)))
    with pytest.raises(EnvironmentProblem, match=message):
        bench_there(bundle, Plan(), parse_place("ssh://board"))


def test_a_board_that_never_stops_talking_is_cut_off(liar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "ANSWER_LIMIT_BYTES", 10_000)
    (tmp_path / "bin" / "ssh").write_text("#!/bin/sh\nexec cat /dev/zero\n")
    with pytest.raises(EnvironmentProblem, match="said more than 10000 bytes"):
        bench_there(make_bundle(tmp_path), Plan(), parse_place("ssh://board"))


def test_a_bundle_without_the_artifact_is_told_before_anything_travels(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such artifact"):
        bench_there(make_bundle(tmp_path), Plan(artifacts=("onnx:int4",)), parse_place("ssh://nowhere.invalid"))


def test_without_ssh_here_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentProblem, match="install openssh-client"):
        bench_there(make_bundle(tmp_path), Plan(), parse_place("ssh://board"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int) -> None:
    until = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
