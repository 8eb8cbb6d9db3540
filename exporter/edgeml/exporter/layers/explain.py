"""What `edgeml explain` shows: each operator's precision, the noise it adds, and why it stayed float."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from edgeml.exporter.layers.difference import Difference
from edgeml.exporter.layers.trace import Operator
from edgeml.exporter.repair import share_of
from edgeml.wire.manifest import KeptFloat


class OperatorLine(msgspec.Struct, frozen=True):
    """One operator. `snr_db` and `own_db` are as in `LayerDifference`, against the fp32 artifact of the bundle."""

    tensor: str
    kind: str
    precision: str
    snr_db: float | None = None
    own_db: float | None = None
    kept_float: str | None = None  # why it is float


class Explanation(msgspec.Struct, frozen=True):
    """`quantization_max_abs` and `kernel_max_abs` split the difference of the outputs, in units of their range.

    The first is what the numbers in the file do, as far as plain kernels show it, the second what this machine's kernels did
    when it was exported. `against` names what it was compared with; `notes` are those of the export.
    """

    model: str
    operators: tuple[OperatorLine, ...]
    counts: dict[str, int]
    precisions: dict[str, int]
    against: str | None = None
    samples: int = 0
    quantization_max_abs: float | None = None
    kernel_max_abs: float | None = None
    notes: tuple[str, ...] = ()


def lines(operators: Sequence[Operator], found: Difference | None, kept: Sequence[KeptFloat]) -> tuple[OperatorLine, ...]:
    """One for each operator of the model that is explained; `found` compares the fp32 model (first) with it."""
    layers = {layer.other: layer for layer in found.layers} if found is not None else {}
    reasons = {one.name: one for one in kept}
    result = []
    for operator in operators:
        layer = layers.get(operator.name)
        reason = reasons.get(layer.tensor if layer is not None else operator.name)
        why = None
        if reason is not None:
            why = f"alone costs {share_of(reason.error)} of the outputs' deviation"
            why = f"at 16 bits: {why}" if reason.bits == 16 else f"left float: {why}; {reason.extra_bytes:+,} bytes"
        result.append(
            OperatorLine(
                operator.name,
                operator.kind,
                operator.precision,
                layer.snr_db if layer is not None else None,
                layer.own_db if layer is not None else None,
                why,
            )
        )
    return tuple(result)


def explained(
    model: str,
    operators: Sequence[Operator],
    found: Difference | None = None,
    *,
    kept: Sequence[KeptFloat] = (),
    against: str | None = None,
    outputs: Sequence[str] = (),
    kernel_max_abs: float | None = None,
    notes: tuple[str, ...] = (),
) -> Explanation:
    """Everything about one model; `outputs` are its output tensors."""
    ends = [layer.max_abs for layer in found.layers if layer.other in outputs] if found is not None else []
    known = [one for one in ends if one is not None]
    return Explanation(
        model=model,
        operators=lines(operators, found, kept),
        counts=dict(sorted(Counter(operator.kind for operator in operators).items())),
        precisions=dict(sorted(Counter(operator.precision for operator in operators).items())),
        against=against,
        samples=found.samples if found is not None else 0,
        quantization_max_abs=max(known, default=None),
        kernel_max_abs=kernel_max_abs,
        notes=notes,
    )
