"""The samples of an export: read from the plan's files, or drawn when there are none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from edgeml.exporter.calibrate.samples import sample_warnings
from edgeml.exporter.plan import ExportPlan
from edgeml.exporter.samples import Samples, load_samples, make_samples
from edgeml.exporter.sequences import from_zero, load_sequences
from edgeml.runtime.backends import Array
from edgeml.wire.errors import PlanError
from edgeml.wire.manifest import Signature, TensorSpec

DRAWN: Final = 64  # samples of noise when none are given
DRAWN_STEPS: Final = 8  # that are one sequence, where a model has states
DRAWN_LIMIT_BYTES: Final = 1 << 30  # of them, for one input


@dataclass(frozen=True, slots=True)
class Data:
    """`judging` is what verdicts are made on: the evaluation samples, else the calibration samples, else noise."""

    judging: Samples
    calibration: Samples | None
    evaluation: Samples | None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def replaced(self, made: Mapping[str, Samples]) -> Data:
        """The same sets as others, by their digests."""
        calibration, evaluation = (None if one is None else made[one.sha256] for one in (self.calibration, self.evaluation))
        warnings = sample_warnings(calibration, evaluation) if calibration is not None else self.warnings
        return Data(made[self.judging.sha256], calibration, evaluation, self.notes, warnings)


def read_data(plan: ExportPlan, signature: Signature, classes: Sequence[int] = ()) -> Data:
    """Load what the plan names. Labels that are among `classes` become their positions there.

    Raises:
        PlanError: a file that does not fit the model.
    """
    own = plan.metric.kind == "call"  # a function takes what labels it likes
    numbers = () if own else classes

    def read(path: Path) -> Samples:
        if signature.states:
            return load_sequences(path, signature)
        return _numbered(load_samples(path, signature, any_labels=own), numbers)

    calibration = read(plan.calib) if plan.calib else None
    evaluation = read(plan.evaluation) if plan.evaluation else None
    if evaluation is not None:
        warnings = sample_warnings(calibration, evaluation) if calibration is not None else ()
        return Data(evaluation, calibration, evaluation, warnings=warnings)
    if calibration is not None:
        notes = ("Judged on the calibration samples: no evaluation samples were given.",)
        return Data(calibration, calibration, None, notes, sample_warnings(calibration, None))
    drawn = {spec.name: _draw(spec, plan.seed + index) for index, spec in enumerate(signature.inputs)}
    given = {name: values for name, values in drawn.items() if name not in signature.states}
    noise = from_zero(given, signature, DRAWN_STEPS if signature.states else 1)
    return Data(noise, None, None, (f"Judged on {DRAWN} samples of noise: no samples were given.",))


def _numbered(samples: Samples, classes: Sequence[int]) -> Samples:
    """Labels as positions in `classes`.

    Raises:
        PlanError: a label that is none of them.
    """
    labels = samples.labels
    if not classes or labels is None or labels.dtype.kind != "i":
        return samples
    if unknown := sorted(set(labels.tolist()) - set(classes)):
        raise PlanError(
            f"label {unknown[0]} in 'y' is no class of the model", expected=f"some of {list(classes)}", got=str(unknown)
        )
    places = {number: place for place, number in enumerate(classes)}
    return make_samples(samples.inputs, np.array([places[label] for label in labels.tolist()], np.int64))


def _draw(spec: TensorSpec, seed: int) -> Array:
    sample = spec.shape[1:] if spec.has_batch else spec.shape
    free = [size for size in sample if isinstance(size, str)]
    if free:
        raise PlanError(f"input {spec.name!r} has free axes {', '.join(map(repr, free))}", hint="give samples with --eval")
    shape = (DRAWN, *(size for size in sample if isinstance(size, int)))
    if (size := math.prod(shape) * np.dtype(spec.dtype).itemsize) > DRAWN_LIMIT_BYTES:
        raise PlanError(
            f"{DRAWN} samples of noise for input {spec.name!r}",
            expected=f"at most {DRAWN_LIMIT_BYTES:,} bytes",
            got=f"{size:,}",
            hint="give samples with --eval",
        )
    generator = np.random.default_rng(seed)
    if np.dtype(spec.dtype).kind == "f":
        return generator.uniform(0.0, 1.0, shape).astype(spec.dtype)
    return generator.integers(0, 2, shape).astype(spec.dtype)
