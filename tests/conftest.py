"""What every test may ask for."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GET_MODELS = "run `scripts/models` or set EDGEML_MODELS to the folder that holds mlperf-tiny/"


@pytest.fixture(scope="session", autouse=True)
def temporary_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What libraries leave in the system's folder for such files goes to one that pytest removes.

    coremltools deletes its packages when a process ends in order: hundreds stayed of each run that was killed.
    """
    before, tempfile.tempdir = tempfile.tempdir, str(tmp_path_factory.mktemp("temporary"))
    yield
    shutil.rmtree(tempfile.tempdir, ignore_errors=True)
    tempfile.tempdir = before


def _published(name: str) -> Path:
    """The first folder called `name` in EDGEML_MODELS, the models' cache, or beside the checkout."""
    places = [Path(value) for value in [os.environ.get("EDGEML_MODELS", "")] if value]
    places += [Path.home() / ".cache" / "edgeml" / "models", ROOT.parent / "shared" / "models", ROOT.parent / "shared"]
    for place in places:
        for folder in (place / name, place.parent / name):
            if folder.is_dir():
                return folder
    pytest.skip(f"no published {name!r} here: {GET_MODELS}")


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """MLPerf Tiny models as published."""
    return _published("mlperf-tiny")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Evaluation data for the published models."""
    return _published("data")
