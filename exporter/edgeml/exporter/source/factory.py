"""What a function in a user's Python file builds; the file may import its neighbours."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np

from edgeml.exporter.source.model import SourceRef
from edgeml.wire.errors import ModelError


def build(source: SourceRef) -> Any:
    """Call the factory, once for each source; numpy's global generator is seeded for those that draw from it.

    Raises:
        ModelError: the file has no such function. What the function raises goes on as it is.
    """
    return _build(Path(source.path).resolve(), source.factory or "", source.seed)


@functools.lru_cache(maxsize=1)
def _build(path: Path, name: str, seed: int) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None, "a .py file has a loader"  # noqa: PT018 - one fact, two halves
    sys.path.insert(0, str(path.parent))
    code = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = code
    np.random.seed(seed)  # noqa: NPY002 - what the user's code may draw from
    spec.loader.exec_module(code)
    factory = code.__dict__.get(name)
    if not callable(factory):
        raise ModelError(f"{path.name!r} has no function {name!r}")
    return factory()


def is_estimator(made: Any) -> bool:
    """Whether it is scikit-learn's; what never imported scikit-learn made none."""
    base = sys.modules.get("sklearn.base")
    return base is not None and isinstance(made, base.BaseEstimator)
