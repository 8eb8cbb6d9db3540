"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GET_MODELS = "run `scripts/models` or set EDGEML_MODELS to the folder that holds mlperf-tiny/"


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
