from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from edgeml.runtime import load
from edgeml.runtime.backends import OpenBackend
from edgeml.runtime.bundle import open_bundle
from edgeml.runtime.config import AgentConfig, DeviceTable, ModelTable
from edgeml.runtime.host import Host
from edgeml.runtime.model import load_as
from edgeml.runtime.setup import Setup
from edgeml.runtime.swap import HotModel
from edgeml.wire.errors import EngineDownError, EngineError, ModelError, SelfTestError
from edgeml.wire.manifest import Format
from tests.unit import crashing
from tests.unit.bundles import logits, make_bundle, samples
from tests.unit.slow_engine import END_S, SlowBackend, slow_engine

BIASES = {"1.0.0": 0.0, "1.1.0": 50.0}
CALLERS = 3


@pytest.fixture
def versions(tmp_path: Path) -> dict[str, Path]:
    return {version: make_bundle(tmp_path, version=version, bias=bias) for version, bias in BIASES.items()}


def crashing_engine(format_: Format) -> OpenBackend:
    assert format_ == "onnx"
    return crashing.open_crashing


def slow_model(path: Path) -> tuple[HotModel, SlowBackend]:
    with open_bundle(path) as bundle:
        model = load_as(bundle, Setup(), engines=slow_engine)
    assert isinstance(model.session.backend, SlowBackend)
    return HotModel(model), model.session.backend


def test_while_versions_change_every_call_is_answered_by_the_version_it_names(versions: dict[str, Path]) -> None:
    x = samples(8)
    wrong: list[str] = []
    answered = dict.fromkeys(BIASES, 0)
    stop = threading.Event()

    def call() -> None:
        while not stop.is_set():
            for one in x:
                try:
                    result = live.run({"x": one})
                except EngineError as error:
                    wrong.append(str(error))
                    continue
                answered[result.version] += 1
                if not np.allclose(result.outputs["logits"], logits(one, BIASES[result.version]), atol=1e-4):
                    wrong.append(result.version)

    with HotModel(load(versions["1.0.0"])) as live:
        callers = [threading.Thread(target=call) for _ in range(CALLERS)]
        for caller in callers:
            caller.start()
        for number in range(10):
            live.swap(versions["1.0.0" if number % 2 else "1.1.0"])
        stop.set()
        for caller in callers:
            caller.join()
    assert wrong == []
    assert all(answered.values())


def test_a_version_is_closed_by_its_last_call_and_no_switch_waits_for_it(versions: dict[str, Path]) -> None:
    live, old = slow_model(versions["1.0.0"])
    old.hold()
    answers: list[str] = []
    caller = threading.Thread(target=lambda: answers.append(live.run({"x": samples(1)[0]}).version))
    caller.start()
    assert old.is_in_call.wait(END_S)
    live.swap(versions["1.1.0"])
    assert live.run({"x": samples(1)[0]}).version == "1.1.0"
    assert not old.is_closed.is_set()
    old.may_go_on.set()
    caller.join()
    assert answers == ["1.0.0"]
    assert old.is_closed.wait(END_S)
    live.close()


def test_a_version_that_fails_its_self_test_leaves_the_old_one(versions: dict[str, Path], tmp_path: Path) -> None:
    with HotModel(load(versions["1.0.0"])) as live:
        with pytest.raises(SelfTestError):
            live.swap(make_bundle(tmp_path, version="2.0.0", golden_error=0.1))
        assert live.run({"x": samples(1)[0]}).version == "1.0.0"


def test_a_version_that_wants_other_inputs_is_refused(versions: dict[str, Path], tmp_path: Path) -> None:
    renamed = make_bundle(tmp_path, version="2.0.0", input_name="y")
    with HotModel(load(versions["1.0.0"])) as live:
        with pytest.raises(ModelError, match=r"toy 2\.0\.0 has other inputs or outputs than toy 1\.0\.0"):
            live.swap(renamed)
        assert live.run({"x": samples(1)[0]}).version == "1.0.0"


def test_a_closed_model_says_so(versions: dict[str, Path]) -> None:
    live = HotModel(load(versions["1.0.0"]))
    live.close()
    with pytest.raises(EngineError, match="the model is closed"):
        live.swap(versions["1.1.0"])
    with pytest.raises(EngineError, match="the model is closed"):
        live.run({"x": samples(1)[0]})


def test_a_delegate_that_crashes_while_it_is_loaded_leaves_the_old_version(
    versions: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = tmp_path / "crash"
    monkeypatch.setenv(crashing.FLAG, str(flag))
    config = AgentConfig(DeviceTable("d", str(tmp_path)), models={"toy": ModelTable(isolated=True)})
    host = Host(config, engines=crashing_engine)
    digests = {version: host.check("toy", path) for version, path in versions.items()}
    host.prepare("toy", digests["1.0.0"], versions["1.0.0"])
    host.switch("toy", digests["1.0.0"], versions["1.0.0"])
    flag.touch()
    with pytest.raises(EngineDownError, match="SIGSEGV"):
        host.prepare("toy", digests["1.1.0"], versions["1.1.0"])
    assert host.run("toy", {"x": samples(1)[0]}).version == "1.0.0"
    flag.unlink()
    host.prepare("toy", digests["1.1.0"], versions["1.1.0"])
    host.switch("toy", digests["1.1.0"], versions["1.1.0"])
    assert host.run("toy", {"x": samples(1)[0]}).version == "1.1.0"
    host.close()
