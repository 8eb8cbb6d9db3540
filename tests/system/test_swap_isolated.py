from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.bundles import make_bundle

END_S = 20.0
APPLICATION = """
import sys
from edgeml.runtime.bundle import open_bundle
from edgeml.runtime.isolated import isolate
from edgeml.runtime.session import open_session
from tests.unit.crashing import HANG, open_crashing
import numpy as np
with open_bundle({bundle!r}) as bundle:
    session = open_session(bundle, bundle.manifest.artifacts[0], open_backend=isolate(open_crashing))
print(session.backend.pid, flush=True)
if {hangs}:
    session.run({{"x": np.array([HANG, 0, 0, 0], np.float32)}})
sys.stdin.read()
"""


@pytest.mark.parametrize("hangs", [False, True], ids=["idle", "while-it-hangs"])
def test_an_engine_ends_with_an_application_that_is_killed(tmp_path: Path, *, hangs: bool) -> None:
    code = APPLICATION.format(bundle=str(make_bundle(tmp_path)), hangs=hangs)
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as application:
        assert application.stdout is not None
        engine = os.pidfd_open(int(application.stdout.readline()))
        application.kill()
        has_ended = bool(select.select([engine], [], [], END_S)[0])
        os.close(engine)
    assert has_ended
