"""The command line's own reading and writing; what it does with a service is in tests/system."""

from __future__ import annotations

import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from edgeml.fleet import show
from edgeml.fleet.agent_file import AgentFile, write_agent_file
from edgeml.fleet.cli import parse_seconds, parse_share
from edgeml.fleet.client import find_access
from edgeml.fleet.options import parse_tags
from edgeml.fleet.plan import NewRollout, specify
from edgeml.fleet.store.versions import VersionRow
from edgeml.wire.errors import ConfigError, UsageError

ROW = VersionRow("kws", "1.0.0", "a" * 64, "b" * 64, 10, "models/kws/1.0.0.edgeml", "c" * 64, 1.0, "published")


@pytest.mark.parametrize(
    ("text", "share"), [("5%", 0.05), ("0.05", 0.05), ("25", 0.25), ("100", 1.0), ("1.0", 1.0), ("1%", 0.01), ("0", 0)]
)
def test_a_share_is_read_as_people_write_it(text: str, share: float) -> None:
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "%", "five", "101", "-1", "nan", "101%"])
def test_a_share_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"5% or 0\.05"):
        parse_share(text)


def test_a_bare_one_which_may_be_one_percent_or_everybody_is_refused() -> None:
    with pytest.raises(UsageError, match="expected 1% or 100%, got '1'"):
        parse_share("1")


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("7d", 604_800), ("0", 0)])
def test_a_time_is_read_with_its_unit(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "soon", "-1s", "inf", "nan", "1w"])
def test_a_time_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="90s"):
        parse_seconds(text)


def test_a_tag_may_hold_an_equals_sign_in_its_value() -> None:
    assert parse_tags(["site=north", "note=a=b", "empty="]) == {"site": "north", "note": "a=b", "empty": ""}


def test_the_last_wave_leaves_the_hold_back_alone() -> None:
    spec = specify(NewRollout("kws", "1.0.0", canary=0.05, waves=(0.25, 0.5, 1.0), hold_back=0.1, soak_s=5.0), ROW, 7.0, "ann")
    assert [wave.share for wave in spec.waves] == [0.05, 0.25, 0.5, 0.9]
    assert {wave.soak_s for wave in spec.waves} == {5.0}
    assert (spec.path, spec.manifest_sha256, spec.created_by) == (ROW.path, ROW.manifest_sha256, "ann")
    assert specify(NewRollout("kws", "1.0.0"), ROW, 7.0, "ann").salt != spec.salt


def test_a_canary_larger_than_what_the_hold_back_leaves_is_one_wave() -> None:
    spec = specify(NewRollout("kws", "1.0.0", canary=1.0, waves=(), hold_back=0.2), ROW, 7.0, "ann")
    assert [wave.share for wave in spec.waves] == [0.8]


def test_an_agent_file_is_never_written_over(tmp_path: Path) -> None:
    content = AgentFile("cam-1", "token", "http://fleet", None, "default", {})
    write_agent_file(tmp_path / "agent.toml", content, "root")
    assert "broker" not in tomllib.loads((tmp_path / "agent.toml").read_text())
    with pytest.raises(UsageError, match="exists"):
        write_agent_file(tmp_path / "agent.toml", content, "root")
    with pytest.raises(UsageError, match="another fleet"):
        write_agent_file(tmp_path / "other.toml", content, "another root")


def test_where_no_service_is_the_ways_to_name_one_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEML_FLEET_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"edgeml fleet serve.*--data.*EDGEML_FLEET_KEY"):
        find_access(tmp_path)


def test_the_environment_wins_over_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "operator.key").write_text("from the folder\n")
    (tmp_path / "service.json").write_text('{"url": "http://127.0.0.1:1"}')
    monkeypatch.delenv("EDGEML_FLEET_KEY", raising=False)
    monkeypatch.delenv("EDGEML_FLEET_URL", raising=False)
    assert (find_access(tmp_path).key, find_access(tmp_path).url) == ("from the folder", "http://127.0.0.1:1")
    monkeypatch.setenv("EDGEML_FLEET_KEY", "from outside")
    monkeypatch.setenv("EDGEML_FLEET_URL", "http://fleet/")
    assert (find_access(tmp_path).key, find_access(tmp_path).url) == ("from outside", "http://fleet")
    assert find_access(tmp_path, "http://given").url == "http://given"


def test_time_since_is_told_in_one_unit() -> None:
    now = time.time()
    assert [show.ago(None), show.ago(now - 30), show.ago(now - 600), show.ago(now - 7200)] == [
        "never",
        "30 s ago",
        "10 min ago",
        "2 h ago",
    ]


def test_the_operators_commands_load_no_server_and_no_database() -> None:
    heavy = ("sqlalchemy", "fastapi", "uvicorn", "tuf", "scipy")
    check = f"import sys, edgeml.fleet.cli; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout == "[]\n"
