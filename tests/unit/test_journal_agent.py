"""What `[log]` in an agent.toml does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgeml.runtime.config import load_config
from edgeml.runtime.host import Host
from edgeml.wire.errors import InputError
from tests.unit.bundles import make_bundle


def test_answers_and_errors_of_a_configured_model_are_logged(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    config = tmp_path / "agent.toml"
    config.write_text(
        f'[device]\nid = "d"\ndata = "data"\n[models.toy]\nbundle = "{bundle.name}"\n[log]\nto = "answers.log"\nshare = 1.0\n'
    )
    host = Host(load_config(config))
    host.switch("toy", host.check("toy", bundle), bundle)
    result = host.run("toy", {"x": np.zeros((1, 4), np.float32)}, "asked-1")
    with pytest.raises(InputError):
        host.run("toy", {"x": np.zeros((1, 5), np.float32)}, "asked-2")
    host.close()
    first, second = (json.loads(line) for line in (tmp_path / "answers.log").read_text().splitlines())
    assert (first["request_id"], first["model"], first["version"], first["source"]) == ("asked-1", "toy", "1.0.0", "device")
    assert first["latency_ms"] == pytest.approx(1e3 * result.latency_s, abs=1e-3)
    assert (second["request_id"], second["error"]) == ("asked-2", "input")
    assert "expected float32 (batch, 4)" in second["detail"]
