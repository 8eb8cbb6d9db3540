"""An artifact at other sizes than the samples': several of them in one call, and named axes of another size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from edgeml.exporter.axes import fixed_axes
from edgeml.exporter.free import FreeAxis
from edgeml.exporter.parity import FLOAT_LIMIT, answers
from edgeml.exporter.parity.metrics import max_abs
from edgeml.exporter.samples import Samples
from edgeml.runtime.backends import Array
from edgeml.runtime.session import Session
from edgeml.wire.errors import ParityError, UnsupportedError
from edgeml.wire.manifest import BATCH, Binding, Signature

STACKED: Final = 3  # samples of one call; neither 1 nor 2, which converters are shown


def refuse_fixed(signature: Signature, inputs: tuple[Binding, ...], free: Sequence[FreeAxis]) -> None:
    """Raises:
    UnsupportedError: an axis that was to be free is not.
    """
    fixed = fixed_axes(signature, inputs, batch=True)
    for axis in free:
        if axis.name in fixed:
            raise UnsupportedError(
                f"axis {axis.name!r} cannot be free in this format: the conversion has it at {fixed[axis.name]}",
                hint="leave it out of --free",
            )


def describe_free(free: Sequence[FreeAxis]) -> Iterator[str]:
    """Notes on what may vary."""
    return (f"axis {axis.name!r} is free, from {axis.least} to {axis.most}" for axis in free)


def check_stacked(
    session: Session, samples: Samples, got: Mapping[str, Array], free: Sequence[FreeAxis] = (), limit: float = FLOAT_LIMIT
) -> None:
    """Several samples in one call must be answered as each by itself: a converter may have frozen the example's batch.

    Args:
        session: of the artifact.
        samples: of which the first few go into one call.
        got: its answers to each by itself.
        free: axes with an upper end, which the batch may be one of.
        limit: of the difference, in units of the range.

    Raises:
        ParityError: they are not.
    """
    most = next((axis.most for axis in free if axis.name == BATCH), None) or STACKED
    count = min(STACKED, most)
    specs = (*session.signature.inputs, *session.signature.outputs)
    if len(samples) < count or not all(spec.has_batch for spec in specs):
        return
    stacked = session.run({name: values[:count] for name, values in samples.inputs.items()})
    for name, values in stacked.items():
        error = max_abs(got[name][:count], values)
        if error > limit:
            raise ParityError(
                f"output {name!r} for {count} samples in one call differs from one call each",
                expected=f"at most {limit:.1g} of the range",
                got=f"{error:.1e}",
            )


def check_sizes(
    session: Session, inputs: tuple[Binding, ...], given: Samples, wanted: Mapping[str, Array], limit: float | None
) -> list[str]:
    """Named axes must take another size too, unless the artifact has them at one size; gives notes that say which it is.

    Args:
        session: of the artifact.
        inputs: its bindings.
        given: samples of another size.
        wanted: the source's answers to them.
        limit: of the difference, in units of the range; `None`: it must run, as its accuracy is judged elsewhere.

    Raises:
        ParityError: it answers otherwise than the source there.
    """
    unchanged = {
        name: size for name, size in fixed_axes(session.signature, inputs).items() if _size(session, given, name) != size
    }
    if unchanged:
        return [f"axis {name!r} is fixed at {size}, the samples' size" for name, size in unchanged.items()]
    got = answers(session.run, given, session.signature)
    for name, values in wanted.items():
        if got[name].shape != values.shape or (limit is not None and max_abs(values, got[name]) > limit):
            raise ParityError(
                f"output {name!r} at another size of the named axes is not the source's", hint="a converter froze it"
            )
    shapes = ", ".join(f"{name!r} {tuple(values.shape[1:])}" for name, values in given.inputs.items())
    return [f"also run at another size of its named axes: {shapes}"]


def _size(session: Session, samples: Samples, name: str) -> int:
    """Of a named axis in samples."""
    return next(
        int(samples.inputs[spec.name].shape[axis + (not spec.has_batch)])
        for spec in session.signature.inputs
        for axis, size in enumerate(spec.shape)
        if size == name
    )
