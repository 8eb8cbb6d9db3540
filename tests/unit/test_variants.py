"""Which of two versions answers a request, and that an application never pays for the experiment."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from edgeml.runtime.config import AgentConfig, ChallengerTable, DeviceTable, ModelTable
from edgeml.runtime.host import Host
from edgeml.runtime.variants import takes_part
from edgeml.wire.errors import EngineError, InputError
from tests.unit.bundles import logits, make_bundle, samples

REQUESTS = [f"r{number}" for number in range(2000)]
X = samples(1)[0]
BIASES = {"1.0.0": 0.0, "1.1.0": 50.0}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    paths = {version: make_bundle(tmp_path, version=version, bias=bias) for version, bias in BIASES.items()}
    challenger = ChallengerTable(str(paths["1.1.0"]), mode="ab", share=0.3, salt="s")
    table = ModelTable(challenger=challenger, measure=False)
    host = Host(AgentConfig(DeviceTable("d", str(tmp_path)), models={"toy": table}))
    host.switch("toy", host.check("toy", paths["1.0.0"]), paths["1.0.0"])
    return host


def test_the_share_is_kept() -> None:
    """Of 2,000 requests at 0.3, 600 are expected with a standard deviation of 20.5: five of them each way."""
    assert abs(sum(takes_part(request, "s", 0.3) for request in REQUESTS) - 600) < 103
    assert not any(takes_part(request, "s", 0.0) for request in REQUESTS)
    assert all(takes_part(request, "s", 1.0) for request in REQUESTS)


def test_as_the_share_grows_requests_only_join() -> None:
    for request in REQUESTS:
        taking = [takes_part(request, "s", share / 10) for share in range(11)]
        assert taking == sorted(taking)


def test_another_salt_deals_the_requests_anew() -> None:
    """Two independent halves agree on half of the requests: 1,000 of 2,000, standard deviation 22.4."""
    same = sum(takes_part(request, "s", 0.5) == takes_part(request, "t", 0.5) for request in REQUESTS)
    assert abs(same - 1000) < 112


def test_a_request_is_answered_by_its_version_each_time(host: Host) -> None:
    for request in REQUESTS[:100]:
        digest = hashlib.sha256(b"s\0" + request.encode()).digest()
        version = "1.1.0" if int.from_bytes(digest[:8], "big") < 0.3 * 2**64 else "1.0.0"
        for _ in range(2):
            result = host.run("toy", {"x": X}, request)
            assert (result.version, result.request_id) == (version, request)
            np.testing.assert_allclose(result.outputs["logits"], logits(X, BIASES[version]), atol=1e-4)
    host.close()


def test_both_versions_have_windows_of_their_own(host: Host) -> None:
    for request in REQUESTS[:100]:
        host.run("toy", {"x": X}, request)
    runs = {window.version: window.runs for window in host.windows("d", 1, lambda: 1)}
    expected = sum(takes_part(request, "s", 0.3) for request in REQUESTS[:100])
    assert runs == {"1.0.0": 100 - expected, "1.1.0": expected}
    host.close()


def test_a_request_that_the_challenger_fails_on_is_answered_by_the_champion(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> list[object]:
        raise EngineError("the delegate gave up")

    monkeypatch.setattr(host._arms["toy"].model.session.backend, "run", fail)
    assert {host.run("toy", {"x": X}, request).version for request in REQUESTS[:20]} == {"1.0.0"}
    errors = {window.version: window.errors for window in host.windows("d", 1, lambda: 1)}
    assert errors["1.1.0"] == {"engine": sum(takes_part(request, "s", 0.3) for request in REQUESTS[:20])}
    host.close()


def test_a_wrong_input_is_the_caller_s_mistake_in_both(host: Host) -> None:
    for request in REQUESTS[:10]:
        with pytest.raises(InputError):
            host.run("toy", {"y": X}, request)
    host.close()


def test_when_the_challenger_becomes_the_champion_the_experiment_is_over(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "toy-1.1.0.edgeml"
    host.switch("toy", host.check("toy", path), path)
    assert {host.run("toy", {"x": X}, request).version for request in REQUESTS[:20]} == {"1.1.0"}
    assert host._arms == {}
    host.close()
