"""A metric that is the user's own function: `--metric file.py:function`.

It is called with (outputs: dict[str, ndarray], labels: ndarray), samples on the first axis, and returns either one number for
all samples (mAP) or an array with one value a sample (n,), booleans for right and wrong. Values count as shares: 0.913 is
91.3 %. Higher is better, unless the function has an attribute `lower_is_better` that is true (word error rate).

Naming a file on the command line is asking for its code to be run, as with a factory: it needs no `--trust`. It runs in the
worker of each format.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgeml.exporter.parity.metrics import Floats
from edgeml.runtime.backends import Array
from edgeml.wire.errors import PlanError

CALLED_RESAMPLES: Final = 400  # of a function that may take a tenth of a second; the bound's level is known to 1 %


@dataclass(frozen=True, slots=True)
class Called:
    """The function, loaded; `what` names it in messages."""

    function: Callable[..., Any]
    what: str

    @property
    def sign(self) -> float:
        """1 where higher is better, else -1."""
        return -1.0 if getattr(self.function, "lower_is_better", False) else 1.0

    def __call__(self, outputs: Mapping[str, Array], labels: Array) -> float | Array:
        """One finite number, or one a sample: float64, or bool for right and wrong.

        Raises:
            PlanError: the function raised, or returned something else.
        """
        try:
            got = self.function({name: values.copy() for name, values in outputs.items()}, labels.copy())
        except Exception as error:
            text = " ".join(str(error).split())[:300]
            raise PlanError(f"{self.what} raised {type(error).__name__}: {text}") from error
        try:
            values = np.asarray(got)
            values = values if values.dtype.kind == "b" else values.astype(np.float64)
        except (TypeError, ValueError):
            raise self._wrong(type(got).__name__) from None
        if values.ndim == 0 and values.dtype.kind != "b":
            if not np.isfinite(values):
                raise self._wrong(str(values))
            return float(values)
        if values.shape != (len(labels),):
            raise self._wrong(f"shape {values.shape}")
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise self._wrong(f"{values[~np.isfinite(values)][0]} for sample {int(np.flatnonzero(~np.isfinite(values))[0])}")
        return values

    def _wrong(self, got: str) -> PlanError:
        return PlanError(
            f"{self.what} returned something else", expected="a finite number, or one for each sample (n,)", got=got
        )


@functools.cache
def load_metric(path: str, function: str) -> Called:
    """Import the file and take the function.

    Raises:
        PlanError: the file raises, or has no such function.
    """
    what = f"--metric {Path(path).name}:{function}"
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise PlanError(f"{what}: {path!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise PlanError(f"{what}: loading it raised {type(error).__name__}: {text}") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise PlanError(f"{what}: the file has no function {function!r}")
    return Called(found, what)


def resampled(called: Called, outputs: Mapping[str, Array], labels: Array, draws: Floats) -> Floats:
    """The function on each draw (draws, n) of the samples, each sample as often as it was drawn."""
    values = []
    for counts in draws:
        at = np.repeat(np.arange(len(labels)), counts.astype(np.int64))
        got = called({name: array[at] for name, array in outputs.items()}, labels[at])
        values.append(got if isinstance(got, float) else float(np.mean(got)))
    return np.asarray(values)
