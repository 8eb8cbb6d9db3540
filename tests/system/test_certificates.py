"""A device known by its certificate: service and broker that ask for one, over real TLS."""

from __future__ import annotations

import getpass
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgeml.runtime.agent import Agent
from edgeml.runtime.config import load_config
from edgeml.runtime.tls import broker_tls, service_tls
from edgeml.wire.errors import ConfigError, LinkError
from tests.system.brokers import free_port, mosquitto
from tests.system.certificates import Authority
from tests.system.fleet_clients import until
from tests.system.standin import TOKEN, Service
from tests.unit.bundles import make_bundle

SETTINGS = """
[device]
id = "gate-7"
data = "data"
[service]
url = "https://127.0.0.1:{port}"
token = "{token}"
root = "root.json"
poll_s = 0.1
{service}
[broker]
url = "mqtts://127.0.0.1:{broker_port}"
backoff_s = 0.1
{broker}
[update]
soak_s = 0.2
health_s = 0.1
[models.toy]
bundle = "toy-1.0.0.edgeml"
"""
OURS = 'ca = "ca.pem"\ncert = "gate-7.pem"\nkey = "gate-7.key"\n'


class Site:
    """A service and a broker that let nobody in without a certificate of the authority."""

    def __init__(self, folder: Path, service: Service, broker_port: int) -> None:
        self.folder, self.service, self._broker_port = folder, service, broker_port

    def settings(self, service: str = OURS, broker: str = OURS) -> Path:
        path = self.folder / "agent.toml"
        port = int(self.service.url.rsplit(":", 1)[1])
        path.write_text(SETTINGS.format(port=port, token=TOKEN, broker_port=self._broker_port, service=service, broker=broker))
        return path


@contextmanager
def tls_service(folder: Path, authority: Authority) -> Iterator[Service]:
    service = Service(folder)
    with service:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*authority.sign("service"))
        context.load_verify_locations(authority.certificate)
        context.verify_mode = ssl.CERT_REQUIRED
        assert service._server is not None
        service._server.socket = context.wrap_socket(service._server.socket, server_side=True)
        yield service


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    authority = Authority(tmp_path)
    authority.sign("gate-7")
    certificate, key = authority.sign("broker")
    make_bundle(tmp_path)
    port = free_port()
    lines = f"cafile {authority.certificate}\ncertfile {certificate}\nkeyfile {key}\nrequire_certificate true\n"
    lines += f"user {getpass.getuser()}\n"  # started by root, it would become a user who cannot read these files
    with tls_service(tmp_path, authority) as service, mosquitto(tmp_path, port, lines):
        yield Site(tmp_path, service, port)


def test_a_device_with_its_certificate_is_let_in_by_broker_and_service(site: Site) -> None:
    target = site.service.publish(make_bundle(site.folder, version="1.1.0", bias=0.5))
    with Agent(site.settings()) as agent:
        until(lambda: agent.status.link.startswith("connected"), "the broker")
        site.service.want(target)
    with Agent(site.settings()) as agent:  # asks the service once it is connected, and has its news from there
        until(lambda: agent.model("toy").version == "1.1.0", "the update", 20)


@pytest.mark.slow
def test_without_a_certificate_neither_lets_it_in_and_it_still_answers(site: Site) -> None:
    only_ca = 'ca = "ca.pem"\n'
    with Agent(site.settings(only_ca, only_ca)) as agent:
        until(lambda: "down:" in agent.status.link and "connecting" not in agent.status.link, "a refusal")
        assert agent._device.conversation.poller is not None
        with pytest.raises(LinkError, match="cannot be reached"):
            agent._device.conversation.poller.ask()
        assert agent.model("toy").version == "1.0.0"
    assert site.service.requests == []


@pytest.mark.slow
def test_a_service_that_another_authority_vouches_for_is_not_spoken_to(site: Site) -> None:
    Authority(site.folder, "stranger")
    theirs = OURS.replace("ca.pem", "stranger.pem")
    with Agent(site.settings(theirs, theirs)) as agent:
        assert agent._device.conversation.poller is not None
        with pytest.raises(LinkError, match="CERTIFICATE_VERIFY_FAILED"):
            agent._device.conversation.poller.ask()
    assert site.service.requests == []


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('cert = "gate-7.pem"\n', "'cert' without 'key'"),
        ('cert = "gate-7.pem"\nkey = "broker.key"\n', "cannot be used"),
        ('ca = "nothing.pem"\n', "nothing.pem"),
        ('ca = "gate-7.key"\n', "give a PEM file"),
    ],
    ids=["no key", "another's key", "no file", "no certificate"],
)
def test_certificates_that_cannot_be_used_are_named(site: Site, lines: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        service_tls(load_config(site.settings(service=lines)))
    with pytest.raises(ConfigError, match=words):
        broker_tls(load_config(site.settings(broker=lines)))


@pytest.mark.slow
def test_the_check_looks_at_certificates(site: Site) -> None:
    path = site.settings(broker='ca = "nothing.pem"\n')
    command = [sys.executable, "-m", "edgeml.cli", "agent", "check", "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "nothing.pem" in done.stderr) == (2, True), done.stderr
