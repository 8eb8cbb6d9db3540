"""The agent as an application meets it: answers through updates, damage, rollbacks and nonsense."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeml.runtime.agent import Agent
from edgeml.runtime.setup import Setup
from edgeml.runtime.trial import try_bundle
from edgeml.wire.errors import BundleError, ConfigError, EngineError, InputError, SelfTestError, WorkerError
from edgeml.wire.messages import Target
from tests.system.agent_toml import GATE_7
from tests.system.standin import TOKEN, Service
from tests.unit.bundles import logits, make_bundle, samples

SETTINGS = f"""{GATE_7}poll_s = 0.1
[update]
soak_s = 0.3
health_s = 0.1
least_runs = 5
backoff_s = 0.1
[telemetry]
window_s = 0.3
[models.toy]
bundle = "toy-1.0.0.edgeml"
"""
BIASES = {"1.0.0": 0.0, "1.1.0": 0.5, "1.2.0": 1.0}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path) as started:
        (tmp_path / "agent.toml").write_text(SETTINGS.format(url=started.url, token=TOKEN))
        yield started


@pytest.fixture
def targets(service: Service, tmp_path: Path) -> dict[str, Target]:
    return {version: service.publish(make_bundle(tmp_path, version=version, bias=bias)) for version, bias in BIASES.items()}


def test_no_answer_is_dropped_or_wrong_while_versions_change(
    service: Service, targets: dict[str, Target], tmp_path: Path
) -> None:
    stop = threading.Event()
    wrong: list[object] = []
    seen: set[str] = set()
    sample = samples(1)[0]

    def load() -> None:
        while not stop.is_set():
            try:
                result = model.run({"x": sample})
            except Exception as error:  # noqa: BLE001 - any error is a dropped answer
                wrong.append(error)
                return
            seen.add(result.version)
            if not np.allclose(result.outputs["logits"].ravel(), logits(sample, BIASES[result.version]), atol=1e-5):
                wrong.append(result)

    with Agent(tmp_path / "agent.toml") as agent:
        model = agent.model("toy")
        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        for version in ("1.1.0", "1.2.0", "1.1.0"):
            rev = service.want(targets[version])
            service.wait_for(rev, "confirmed")
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert seen == set(BIASES)


def test_going_back_moves_no_bytes(service: Service, targets: dict[str, Target], tmp_path: Path) -> None:
    with Agent(tmp_path / "agent.toml") as agent:
        service.wait_for(service.want(targets["1.1.0"]), "confirmed")
        moved = service.target_bytes
        report = service.wait_for(service.want(targets["1.0.0"]), "confirmed")
        assert agent.model("toy").version == "1.0.0"
    assert service.target_bytes == moved
    assert "downloaded_bytes" not in report


def test_a_bundle_that_misses_its_golden_vectors_is_refused_and_the_old_one_answers(
    service: Service, targets: dict[str, Target], tmp_path: Path
) -> None:
    bad = service.publish(make_bundle(tmp_path, version="2.0.0", golden_error=0.1))
    with Agent(tmp_path / "agent.toml") as agent:
        report = service.wait_for(service.want(bad), "failed")
        assert (report["code"], report.get("retryable")) == ("self_test", None)
        assert agent.model("toy").version == "1.0.0"


def test_what_the_service_says_must_be_what_is_signed(service: Service, targets: dict[str, Target], tmp_path: Path) -> None:
    forged = Target("toy", "1.1.0", targets["1.2.0"].manifest_sha256, targets["1.1.0"].path)
    with Agent(tmp_path / "agent.toml"):
        report = service.wait_for(service.want(forged), "rejected")
    assert report["code"] == "untrusted"
    assert service.target_bytes == 0


def test_bytes_swapped_behind_the_signature_are_never_installed(
    service: Service, targets: dict[str, Target], tmp_path: Path
) -> None:
    files = service.repository.targets_files
    names = sorted(files)
    for name in names:
        files[name] = files[name][:-1] + bytes([files[name][-1] ^ 1])
    with Agent(tmp_path / "agent.toml") as agent:
        report = service.wait_for(service.want(targets["1.1.0"]), "failed")
        assert (report["code"], agent.model("toy").version) == ("download", "1.0.0")


def test_a_damaged_slot_gives_way_to_the_previous_version_and_is_fetched_again(
    service: Service, targets: dict[str, Target], tmp_path: Path
) -> None:
    with Agent(tmp_path / "agent.toml"):
        service.wait_for(service.want(targets["1.1.0"]), "confirmed")
    (slot,) = (tmp_path / "data" / "models" / "toy" / "slots").iterdir()
    data = bytearray(slot.read_bytes())
    data[len(data) // 2] ^= 1
    slot.write_bytes(data)
    service.reports.clear()
    with Agent(tmp_path / "agent.toml") as agent:
        assert agent.model("toy").run({"x": samples(1)[0]}).version == "1.0.0"
        service.wait_for(1, "confirmed")
        assert agent.model("toy").version == "1.1.0"


def test_a_version_that_fails_on_real_inputs_is_taken_back_while_it_soaks(
    service: Service, targets: dict[str, Target], tmp_path: Path
) -> None:
    poison = np.full(4, np.inf, np.float32)
    with Agent(tmp_path / "agent.toml") as agent:
        rev = service.want(targets["1.1.0"])
        model = agent.model("toy")
        pause = threading.Event()
        while "rolled_back" not in service.states(rev) and "confirmed" not in service.states(rev):
            if model.version == "1.1.0":
                with pytest.raises(EngineError):
                    model.run({"x": poison})
            pause.wait(0.005)
        report = service.wait_for(rev, "rolled_back")
        assert report["code"] == "health"
        assert model.version == "1.0.0"


def test_a_mistake_of_the_caller_is_no_failure_of_the_version(
    service: Service, targets: dict[str, Target], tmp_path: Path
) -> None:
    with Agent(tmp_path / "agent.toml") as agent:
        rev = service.want(targets["1.1.0"])
        model = agent.model("toy")
        while not {"rolled_back", "confirmed"} & set(service.states(rev)):
            with pytest.raises(InputError):
                model.run({"x": np.zeros(5, np.float32)})
            threading.Event().wait(0.01)
        assert service.states(rev)[-1] == "confirmed"


def test_telemetry_of_both_versions_adds_up_to_every_call(service: Service, targets: dict[str, Target], tmp_path: Path) -> None:
    runs = 0
    with Agent(tmp_path / "agent.toml") as agent:
        model = agent.model("toy")
        rev = service.want(targets["1.1.0"])
        while "confirmed" not in service.states(rev):
            model.run({"x": samples(1)[0]})
            runs += 1
            threading.Event().wait(0.002)
    with Agent(tmp_path / "agent.toml"):  # sends what the first left in its spool
        while (heard := sum(window["runs"] for window in list(service.telemetry.values()))) < runs:
            threading.Event().wait(0.05)
    assert heard == runs
    assert {window["version"] for window in service.telemetry.values()} == {"1.0.0", "1.1.0"}


def test_nonsense_on_the_wire_changes_nothing(service: Service, targets: dict[str, Target], tmp_path: Path) -> None:
    nonsense = [
        b"",
        b"{",
        b"null",
        b'{"rev": "high"}',
        b"\xff" * 100,
        b"[" * 60_000,
        b'{"rev":1,"targets":[{"model":"../x"}]}',
        b"x" * 70_000,
    ]
    with Agent(tmp_path / "agent.toml") as agent:
        for payload in nonsense:
            agent._device.desired(payload)
        service.wait_for(service.want(targets["1.1.0"]), "confirmed")
        assert agent.status.ignored == len(nonsense)


def test_two_agents_do_not_share_a_folder(service: Service, targets: dict[str, Target], tmp_path: Path) -> None:
    with Agent(tmp_path / "agent.toml"), pytest.raises(ConfigError, match="another agent"):
        Agent(tmp_path / "agent.toml").__enter__()


def test_a_factory_bundle_with_a_changed_byte_is_refused_at_start(
    service: Service, targets: dict[str, Target], tmp_path: Path
) -> None:
    path = tmp_path / "toy-1.0.0.edgeml"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError):
        Agent(tmp_path / "agent.toml").__enter__()


def test_a_model_that_is_not_known_is_named_with_the_nearest(
    service: Service, targets: dict[str, Target], tmp_path: Path
) -> None:
    with Agent(tmp_path / "agent.toml") as agent, pytest.raises(ConfigError, match="did you mean 'toy'"):
        agent.model("tay")


def test_an_engine_that_dies_in_the_trial_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dies = tmp_path / "sitecustomize.py"
    dies.write_text("import os, sys\nif 'edgeml.runtime.trial' in ' '.join(sys.orig_argv): os.kill(os.getpid(), 11)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(WorkerError, match="SIGSEGV"):
        try_bundle(make_bundle(tmp_path), Setup(), timeout_s=30.0)


def test_the_trial_passes_on_what_the_child_met(tmp_path: Path) -> None:
    with pytest.raises(SelfTestError, match="golden sample 0"):
        try_bundle(make_bundle(tmp_path, golden_error=0.1), Setup(), timeout_s=60.0)


def test_a_trial_that_never_ends_is_ended(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="did not end"):
        try_bundle(make_bundle(tmp_path), Setup(), timeout_s=0.01)


def test_the_command_line_runs_and_stops_on_sigterm(service: Service, targets: dict[str, Target], tmp_path: Path) -> None:
    edgeml = [sys.executable, "-m", "edgeml.cli", "agent"]
    config = ["--config", str(tmp_path / "agent.toml")]
    check = subprocess.run([*edgeml, "check", *config], capture_output=True, text=True, check=True)
    assert "device   gate-7" in check.stdout
    process = subprocess.Popen([*edgeml, "run", *config], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    service.wait_for(service.want(targets["1.1.0"]), "confirmed", timeout_s=60.0)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert out.splitlines()[-1].endswith("stopped")
    status = subprocess.run([*edgeml, "status", *config, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(status.stdout)["models"][0]["name"] == "toy"


def test_a_mistake_in_the_settings_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text('[device]\nid = "d"\ndatta = "x"\n')
    command = [sys.executable, "-m", "edgeml.cli", "agent", "run", "--config", str(tmp_path / "agent.toml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "did you mean 'data'?" in done.stderr


def test_a_dead_cloud_costs_no_answer(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    (tmp_path / "agent.toml").write_text(
        '[device]\nid = "d"\ndata = "data"\n[models.toy]\nbundle = "toy-1.0.0.edgeml"\n'
        '[fallback]\nurl = "http://127.0.0.1:9"\nleast_score = 1.0\ndeadline_ms = 500\n'
    )
    with Agent(tmp_path / "agent.toml") as agent:
        results = [agent.model("toy").run({"x": sample}) for sample in samples(20)]
    assert {result.source for result in results} == {"device"}
    assert max(result.latency_s for result in results) < 0.5
