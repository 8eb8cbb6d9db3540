"""`edgeml serve` as a real process, asked by our own client, by plain JSON, and by people who get it wrong."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import urllib3

from edgeml.runtime import load
from edgeml.runtime.cloud import CloudClient
from edgeml.runtime.cloud_gate import CloudGate
from edgeml.runtime.config import load_config
from edgeml.runtime.fallback import Policy
from edgeml.runtime.host import Host
from edgeml.runtime.hybrid import Hybrid
from edgeml.wire.errors import ConfigError, LinkError, ServiceError
from tests.unit.bundles import FULL, logits, make_bundle, samples

UNSURE = np.zeros(4, np.float32)
INTERRUPTED = 130  # Ctrl-C, after the requests in flight are answered
EDGEML = [sys.executable, "-m", "edgeml.cli"]


@dataclass
class Served:
    url: str
    process: subprocess.Popen[str]
    bundle: Path


def start(bundle: Path, *options: str) -> Served:
    command = [*EDGEML, "serve", str(bundle), "--port", "0", "--json", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    return Served(json.loads(line)["url"], process, bundle)


def stop(served: Served) -> int:
    served.process.send_signal(signal.SIGINT)
    assert served.process.stdout is not None
    served.process.stdout.close()
    return served.process.wait(timeout=20)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    bundle = make_bundle(tmp_path_factory.mktemp("serve"), artifacts=FULL, bias=3.0, version="2.0.0", defer_below=0.6)
    running = start(bundle, "--body-limit", "65536")
    yield running
    assert stop(running) == INTERRUPTED


@pytest.fixture(scope="module")
def http() -> Iterator[urllib3.PoolManager]:
    with urllib3.PoolManager(retries=False) as pool:
        yield pool


def ask(http: urllib3.PoolManager, served: Served, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    answer = http.request("GET" if data is None else "POST", served.url + path, body=data, headers=headers or None)
    return answer.status, json.loads(answer.data) if answer.data[:1] in b"{[" else answer.data


def tensor(**changes: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 0, 0, 0], **changes}]}


def test_the_server_says_who_it_is(http: urllib3.PoolManager, served: Served) -> None:
    assert ask(http, served, "/v2") == (200, {"name": "edgeml", "version": "0.1.0", "extensions": ["binary_tensor_data"]})
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/toy/ready", "/v2/models/toy/versions/2.0.0/ready"):
        assert ask(http, served, path)[0] == 200
    status, about = ask(http, served, "/v2/models/toy")
    assert (status, about["name"], about["versions"]) == (200, "toy", ["2.0.0"])
    assert about["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]


@pytest.mark.parametrize("path", ["/v2/models/toy/infer", "/v2/models/toy/versions/2.0.0/infer"])
def test_plain_json_is_answered_and_the_id_comes_back(http: urllib3.PoolManager, served: Served, path: str) -> None:
    status, answer = ask(http, served, path, {"id": "mine", **tensor()})
    assert (status, answer["id"], answer["model_version"]) == (200, "mine", "2.0.0")
    # x = (1, 0, 0, 0): first row of the weights plus the offsets, plus a bias of 3 for class 0
    assert answer["outputs"] == [{"name": "logits", "shape": [1, 3], "datatype": "FP32", "data": [4.25, -1.0, -0.25]}]


@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
def test_our_client_gets_the_formulas_numbers(served: Served, binary: bool) -> None:
    with load(served.bundle) as model:
        client = CloudClient(served.url, "toy", model.manifest.signature, binary=binary)
        answer = client.infer({"x": samples()}, request_id="r-1", deadline_s=10)
    assert (answer.model, answer.version) == ("toy", "2.0.0")
    assert np.allclose(answer.outputs["logits"], logits(samples(), bias=3.0), atol=1e-5)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"not json", 400, "not an Open Inference Protocol body"),
        (tensor(shape=[1, 5], data=[0] * 5), 400, "input 'x': expected float32 (batch, 4), got float32 (1, 5)"),
        (tensor(datatype="FP64"), 400, "got float64"),
        (tensor(name="X"), 400, "names of the inputs: expected 'x', got 'X'"),
        ({**tensor(), "outputs": [{"name": "nope"}]}, 400, "outputs asked for: expected logits, got 'nope'"),
        (tensor(data=[1e39, 0, 0, 0], datatype="FP32"), 400, "does not fit"),
        (b"x" * 70_000, 413, "at most 65536 bytes, got 70000"),
    ],
    ids=["garbage", "shape", "dtype", "name", "output", "overflow", "long"],
)
def test_a_bad_request_is_told_what_is_wrong(
    http: urllib3.PoolManager, served: Served, body: Any, status: int, said: str
) -> None:
    got, answer = ask(http, served, "/v2/models/toy/infer", body)
    assert got == status
    assert said in answer["error"]


@pytest.mark.parametrize("path", ["/v2/models/other", "/v2/models/toy/versions/9.0.0/ready", "/nothing"])
def test_what_is_not_there_is_404_in_the_protocols_words(http: urllib3.PoolManager, served: Served, path: str) -> None:
    status, answer = ask(http, served, path)
    assert status == 404
    assert "here" in answer["error"]


@pytest.mark.parametrize("length", ["-5", "99999999999999999999", "ten", "500"])
def test_a_lying_header_length_is_refused(http: urllib3.PoolManager, served: Served, length: str) -> None:
    status, answer = ask(http, served, "/v2/models/toy/infer", tensor(), **{"Inference-Header-Content-Length": length})
    assert status == 400
    assert "Inference-Header-Content-Length" in answer["error"]


def test_metrics_count_answers_and_refusals(http: urllib3.PoolManager, served: Served) -> None:
    ask(http, served, "/v2/models/toy/infer", tensor())
    ask(http, served, "/v2/models/toy/infer", b"bad")
    _, text = ask(http, served, "/metrics")
    lines = text.decode().splitlines()
    counted = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line.startswith("edgeml_requests_total")
    }
    assert counted['edgeml_requests_total{code="200",model="toy",version="2.0.0"}'] >= 1
    assert counted['edgeml_requests_total{code="400",model="toy",version="2.0.0"}'] >= 1


def test_many_clients_at_once_get_their_own_answers(served: Served) -> None:
    x = samples(40)
    expected = logits(x, bias=3.0)
    right: list[bool] = []
    with load(served.bundle) as model:
        client = CloudClient(served.url, "toy", model.manifest.signature)

        def work(first: int) -> None:
            for i in range(first, 40, 8):
                answer = client.infer({"x": x[i : i + 1]}, request_id=str(i), deadline_s=20)
                right.append(np.allclose(answer.outputs["logits"], expected[i : i + 1], atol=1e-5))

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert right == [True] * 40


def test_a_port_that_is_taken_is_exit_6_in_words(served: Served) -> None:
    port = served.url.rpartition(":")[2]
    second = subprocess.run([*EDGEML, "serve", str(served.bundle), "--port", port], capture_output=True, text=True, check=False)
    assert second.returncode == 6
    assert second.stderr.startswith(f"error: port {port} on 127.0.0.1 is taken by another program; choose another with --port")


def test_a_damaged_bundle_is_not_served(tmp_path: Path) -> None:
    path = make_bundle(tmp_path)
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    tried = subprocess.run([*EDGEML, "serve", str(path), "--port", "0"], capture_output=True, text=True, check=False)
    assert tried.returncode == 3
    assert tried.stderr.startswith("error: ")


def test_low_confidence_goes_to_the_cloud_and_stays_here_when_it_dies(tmp_path: Path) -> None:
    """The whole fall-back: a real server answers, is killed, and no call fails or waits."""
    device = load(make_bundle(tmp_path, defer_below=0.6))
    served = start(make_bundle(tmp_path, version="1.1.0", bias=5.0))
    client = CloudClient(served.url, "toy", device.manifest.signature)
    with device, Hybrid(device, client, CloudGate(Policy(deadline_s=5))) as hybrid:
        first = hybrid.run({"x": UNSURE})
        assert (first.source, first.version, first.fallback) == ("cloud", "1.1.0", "low_confidence")
        assert first.score == pytest.approx(np.exp(5.25) / (np.exp(5.25) + 1 + np.exp(-0.25)), abs=1e-5)
        os.kill(served.process.pid, signal.SIGKILL)
        served.process.wait(timeout=10)
        for _ in range(10):
            started = time.monotonic()
            result = hybrid.run({"x": UNSURE})
            assert (result.source, result.version) == ("device", "1.0.0")
            assert time.monotonic() - started < 5
        assert hybrid.last_problem == "breaker_open"
    assert served.process.stdout is not None
    served.process.stdout.close()


AGENT = """
[device]
id = "gate-7"
data = "data"
[models.toy]
measure = false
[fallback]
url = "{url}"
least_score = 1.0
deadline_ms = 5000
"""


def host_of(served: Served, folder: Path, more: str) -> Host:
    (folder / "agent.toml").write_text(AGENT.format(url=served.url) + more)
    return Host(load_config(folder / "agent.toml"))


def serve_version(host: Host, bundle: Path) -> None:
    host.switch("toy", host.check("toy", bundle), bundle)


def test_a_days_budget_holds_over_versions_and_restarts(served: Served, tmp_path: Path) -> None:
    """A call takes about 700 bytes: the first is asked, then nobody."""
    first, second = make_bundle(tmp_path), make_bundle(tmp_path, version="1.1.0")
    host = host_of(served, tmp_path, "daily_bytes = 900\n")
    serve_version(host, first)
    assert [host.run("toy", {"x": UNSURE}).source for _ in range(3)] == ["cloud", "device", "device"]
    serve_version(host, second)
    assert host.run("toy", {"x": UNSURE}).source == "device"
    host.close()
    again = host_of(served, tmp_path, "daily_bytes = 900\n")
    serve_version(again, second)
    assert again.run("toy", {"x": UNSURE}).source == "device"
    again.close()


def test_a_function_of_the_application_decides_what_leaves(served: Served, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    (tmp_path / "privacy_switch.py").write_text("ON = True\ndef shown(inputs):\n    return None if ON else inputs\n")
    host = host_of(served, tmp_path, 'redact = "privacy_switch:shown"\n')
    serve_version(host, bundle)
    assert host.run("toy", {"x": UNSURE}).source == "device"
    sys.modules["privacy_switch"].ON = False  # type: ignore[attr-defined]
    assert host.run("toy", {"x": UNSURE}).source == "cloud"
    host.close()
    with pytest.raises(ConfigError, match=r"\[fallback\] redact = 'privacy_switch:gone' cannot be loaded: AttributeError"):
        host_of(served, tmp_path, 'redact = "privacy_switch:gone"\n')


def test_a_server_that_accepts_and_says_nothing_costs_the_deadline_and_no_more(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, load(make_bundle(tmp_path, defer_below=0.6)) as device:
        client = CloudClient(f"http://127.0.0.1:{silent.getsockname()[1]}", "toy", device.manifest.signature)
        with Hybrid(device, client, CloudGate(Policy(deadline_s=0.3))) as hybrid:
            started = time.monotonic()
            assert hybrid.run({"x": UNSURE}).source == "device"
            assert time.monotonic() - started < 2
            assert hybrid.last_problem == "deadline"


def read_request(connection: socket.socket) -> None:
    """All of one request: closing over bytes not read would reset the connection and take the answer with it."""
    with connection.makefile("rb") as file:
        length = 0
        while (line := file.readline().strip().lower()) != b"":
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        file.read(length)


class Scripted:
    """A server that reads one request and answers with the given bytes, slice by slice."""

    def __init__(self, *slices: bytes, pause_s: float = 0.0) -> None:
        self._slices = slices
        self._pause_s = pause_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            read_request(connection)
            for part in self._slices:
                try:
                    connection.sendall(part)
                except OSError:
                    return
                if self._stopped.wait(self._pause_s):
                    return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._listener.close()


def http_answer(record: Any, status: str = "200 OK") -> bytes:
    body = record if isinstance(record, bytes) else json.dumps(record).encode()
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


def output(**changes: Any) -> dict[str, Any]:
    head = {"name": "logits", "shape": [1, 3], "datatype": "FP32", "data": [0, 0, 1], **changes}
    return {"model_name": "toy", "model_version": "1.0.0", "id": "r", "outputs": [head]}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (http_answer(output(shape=[1, 4], data=[0] * 4)), "output 'logits': expected float32"),
        (http_answer(output(datatype="FP64")), "got float64"),
        (http_answer(output(name="other")), "output 'logits'"),
        (http_answer({**output(), "id": "another"}), "answered request 'another' instead of 'r'"),
        (http_answer(b"<html>"), "not usable"),
        (http_answer({"error": "full"}, "503 Service Unavailable"), "answered 503"),
        (http_answer({}, "302 Found\r\nLocation: http://127.0.0.1:1/"), "answered 302"),
        (http_answer(b" " * (17 * 2**20)), "longer than 16777216 bytes"),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b" " * (17 * 2**20), "longer than 16777216 bytes"),
    ],
    ids=["shape", "dtype", "name", "id", "html", "503", "redirect", "long", "long-unannounced"],
)
def test_a_cloud_that_lies_is_an_error(tmp_path: Path, answer: bytes, said: str) -> None:
    with load(make_bundle(tmp_path)) as model, Scripted(answer) as server:
        client = CloudClient(server.url, "toy", model.manifest.signature)
        with pytest.raises(ServiceError) as caught:
            client.infer({"x": UNSURE[None]}, request_id="r", deadline_s=5)
    assert said in str(caught.value)


def test_an_answer_cut_off_is_a_link_error(tmp_path: Path) -> None:
    with load(make_bundle(tmp_path)) as model, Scripted(http_answer(output())[:-10]) as server:
        client = CloudClient(server.url, "toy", model.manifest.signature)
        with pytest.raises(LinkError):
            client.infer({"x": UNSURE[None]}, request_id="r", deadline_s=5)


def test_an_answer_that_trickles_is_given_up_at_the_deadline(tmp_path: Path) -> None:
    answer = http_answer(output())
    slices = [answer[i : i + 1] for i in range(len(answer))]
    with load(make_bundle(tmp_path)) as model, Scripted(*slices, pause_s=0.02) as server:
        client = CloudClient(server.url, "toy", model.manifest.signature)
        started = time.monotonic()
        with pytest.raises(LinkError, match="in time"):
            client.infer({"x": UNSURE[None]}, request_id="r", deadline_s=0.5)
        assert time.monotonic() - started < 3
