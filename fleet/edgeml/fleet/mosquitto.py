"""A Mosquitto that the service starts and owns: configuration, password file, access rules, life and death.

A device may publish under its own name only, and read nothing but what is wanted of it; its client id is its user name, so
that nobody else can take it. If the service is killed, the broker lives on and keeps the devices' messages; the next service
finds it by its pid file and takes it over (or replaces it, if it was started with other settings).
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from edgeml.fleet.broker import Address, admits, free_port, refuse_taken_port, service_address
from edgeml.fleet.devices import PROBE_USER, SERVICE_USER, password_hash
from edgeml.fleet.disk import PRIVATE, private_folder, write_whole
from edgeml.wire.errors import EnvironmentProblem
from edgeml.wire.messages import MESSAGE_LIMIT_BYTES

START_LIMIT_S: Final = 10.0
STOP_LIMIT_S: Final = 5.0
_POLL_S: Final = 0.02
log = logging.getLogger(__name__)


class Mosquitto:
    """See the module. `port` 0 takes a free one."""

    name = "mosquitto"

    def __init__(self, binary: Path, folder: Path, host: str, port: int, tenant: str) -> None:
        self._binary = binary
        self._folder = folder.absolute()
        self._tenant = tenant
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None
        self._passwords: dict[str, str] = {}
        self._password = secrets.token_urlsafe(24)
        self.address: Address = service_address(host, port or free_port(host), self._password)

    def start(self, passwords: Mapping[str, str]) -> None:
        with self._lock:
            private_folder(self._folder)
            self._passwords = dict(passwords)
            if not self._take_over():
                refuse_taken_port(self.address.host, self.address.port)
                self._launch()

    def admit(self, passwords: Mapping[str, str]) -> None:
        with self._lock:
            self._passwords = dict(passwords)
            if self._pid is not None and _is_ours(self._pid, self._config):
                self._reload()

    def check(self) -> bool:
        with self._lock:
            if self._pid is None or self._is_alive():
                return False
            log.warning("the broker ended; starting it again (see %s)", self._log)
            self._launch()
            return True

    def stop(self) -> None:
        with self._lock:
            if self._pid is not None:
                self._end(self._pid)
            self._pid = None

    @property
    def _config(self) -> Path:
        return self._folder / "mosquitto.conf"

    @property
    def _log(self) -> Path:
        return self._folder / "mosquitto.log"

    @property
    def _pid_file(self) -> Path:
        return self._folder / "mosquitto.pid"

    def _take_over(self) -> bool:
        """Go on with the broker that a killed service left behind, if it is as we would start it; end it if not."""
        pid = _read_pid(self._pid_file)
        if pid is None or not _is_ours(pid, self._config):
            return False
        wanted = self._configuration().encode()
        if self._config.read_bytes() == wanted:
            self._pid = pid
            with contextlib.suppress(EnvironmentProblem):
                write_whole(self._folder / "acl", self._access().encode(), PRIVATE)
                self._reload()
                log.info("taking over the broker that runs already (pid %d)", pid)
                return True
        self._end(pid)
        self._pid = None
        return False

    def _launch(self) -> None:
        """Write every file anew and start the program; returns when it lets us in."""
        write_whole(self._config, self._configuration().encode(), PRIVATE)
        write_whole(self._folder / "acl", self._access().encode(), PRIVATE)
        probe = self._write_passwords()
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                [str(self._binary), "-c", str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in a terminal reaches the service, which ends the broker in order
            )
        self._pid = self._process.pid
        write_whole(self._pid_file, f"{self._pid}\n".encode(), PRIVATE)
        self._wait(probe)

    def _reload(self) -> None:
        probe = self._write_passwords()
        assert self._pid is not None
        os.kill(self._pid, signal.SIGHUP)
        self._wait(probe)

    def _write_passwords(self) -> str:
        """Gives the new password of the probe: a broker that accepts it has read this file."""
        probe = secrets.token_urlsafe(24)
        own = {SERVICE_USER: password_hash(self._password), PROBE_USER: password_hash(probe)}
        lines = [f"{user}:{stored}\n" for user, stored in {**self._passwords, **own}.items()]
        write_whole(self._folder / "passwords", "".join(lines).encode(), PRIVATE)
        return probe

    def _wait(self, probe: str) -> None:
        until = time.monotonic() + START_LIMIT_S
        while not admits(self.address, PROBE_USER, probe):
            if not self._is_alive() or time.monotonic() > until:
                raise EnvironmentProblem(f"mosquitto does not serve: {self._last_words()}", hint=f"see {str(self._log)!r}")
            time.sleep(_POLL_S)

    def _is_alive(self) -> bool:
        if self._process is not None:
            return self._process.poll() is None
        return self._pid is not None and _is_ours(self._pid, self._config)

    def _end(self, pid: int) -> None:
        for name, limit_s in ((signal.SIGTERM, STOP_LIMIT_S), (signal.SIGKILL, STOP_LIMIT_S)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, name)
            until = time.monotonic() + limit_s
            while time.monotonic() < until:
                if not _is_ours(pid, self._config):
                    if self._process is not None:
                        self._process.wait()
                        self._process = None
                    self._pid_file.unlink(missing_ok=True)
                    return
                time.sleep(_POLL_S)

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines() if self._log.is_file() else []
        return lines[-1].strip() if lines else "it said nothing"

    def _configuration(self) -> str:
        lines = [
            "# Written by `edgeml fleet serve` at every start.",
            f"listener {self.address.port} {self.address.host}",
            "allow_anonymous false",
            f"password_file {self._folder}/passwords",
            f"acl_file {self._folder}/acl",
            "use_username_as_clientid true",
            f"user {getpass.getuser()}",  # started by root, it would become a user who cannot read these files
            "persistence true",
            f"persistence_location {self._folder}/",
            "autosave_interval 60",
            "persistent_client_expiration 30d",
            f"message_size_limit {MESSAGE_LIMIT_BYTES}",
            "max_inflight_messages 500",
            "max_queued_messages 200000",  # what waits for the service while it restarts
            "log_dest stderr",
            "log_timestamp_format %Y-%m-%dT%H:%M:%S",
            "log_type error",
            "log_type warning",
            "log_type notice",
            "connection_messages false",
        ]
        return "\n".join(lines) + "\n"

    def _access(self) -> str:
        own = f"edgeml/v1/{self._tenant}/d/%u"
        lines = [f"user {SERVICE_USER}", f"topic readwrite edgeml/v1/{self._tenant}/d/#", ""]
        lines += [f"pattern write {own}/{kind}" for kind in ("report", "telemetry", "state")]
        lines += [f"pattern read {own}/desired"]
        return "\n".join(lines) + "\n"


def _read_pid(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _is_ours(pid: int, config: Path) -> bool:
    """Whether the process lives and was started with this configuration: a pid alone may belong to somebody else by now."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\x00")
    except OSError:
        return False
    return str(config).encode() in arguments
