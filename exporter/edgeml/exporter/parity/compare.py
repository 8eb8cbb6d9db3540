"""Does an artifact compute what its source computes?

In this order, stopping at the first failure: non-finite outputs, then the contract (names, shapes, dtypes), then values. What
the values are held to depends on the precision:

- fp32: every |difference| at most `FLOAT_LIMIT` of the source's output range, and the same top-1 class on every sample;
- fp16: the same top-1 class on 99.5 % of the samples; for regression, rms error at most 1 % of the source's standard deviation;
- everything smaller: finite and of the right contract; the accuracy budget (`edgeml.exporter.parity.budget`) judges the rest.

Top-1 agreement treats ties as `edgeml.exporter.parity.metrics.agrees` says.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Final, Literal

import numpy as np

from edgeml.exporter.parity.metrics import agrees, class_output, max_abs, relative_rms, spread
from edgeml.runtime.backends import Array
from edgeml.wire.manifest import Parity, Precision, Where

FLOAT_LIMIT: Final = 1e-4  # of the source's output range; engines of one float32 model were seen to differ by 2e-5 at most
FP16_AGREEMENT: Final = 0.995
FP16_RMS: Final = 1e-2
UNMEASURED: Final = sys.float_info.max  # stands for an error that has no number; JSON has no infinity

TaskKind = Literal["classify", "regress"]
Outputs = Mapping[str, Array]


def compare(
    reference: Outputs,
    got: Outputs,
    *,
    task: TaskKind,
    where: Where,
    limit: float | None = FLOAT_LIMIT,
    precision: Precision = "fp32",
    scores: str | None = None,
    exact: Outputs | None = None,
) -> Parity:
    """Compare outputs (n, ...) of the same samples.

    Args:
        reference: the source's outputs.
        got: the artifact's outputs, as its session gives them.
        task: whether top-1 agreement is asked for.
        where: what ran the artifact.
        limit: of |difference| in units of the source's range, for fp32; `None` leaves the verdict to the budget.
        precision: which rule holds.
        scores: the output with class scores; found if not given.
        exact: the artifact's outputs by kernels without shortcuts; gives `kernel_max_abs`.

    Returns:
        A `Parity` whose `status` is never "inconclusive"; when it is "fail", `reason` names output, sample, got and limit.
        Where no number could be computed, `max_abs` and `rms` are `UNMEASURED`.
    """
    count = len(next(iter(reference.values())))
    broken = _non_finite(reference, "the source") or _non_finite(got, "the artifact") or _contract(reference, got)
    if broken is not None:
        return Parity("fail", where, count, UNMEASURED, UNMEASURED, limit=limit, reason=broken)
    scores = (scores or class_output(reference)) if task == "classify" else None
    agreeing = agrees(reference[scores], got[scores]) if scores is not None else None
    parity = Parity(
        status="pass",
        where=where,
        n=count,
        max_abs=max(max_abs(reference[name], got[name]) for name in reference),
        rms=max(relative_rms(reference[name], got[name]) for name in reference),
        top1_agreement=None if agreeing is None else float(agreeing.mean()),
        limit=limit if precision == "fp32" else None,
        kernel_max_abs=_kernel_error(reference, got, exact),
    )
    if precision == "fp32" and limit is not None:
        return _judge_float(parity, reference, got, limit, agreeing)
    return _judge_half(parity) if precision == "fp16" else parity


def _judge_float(parity: Parity, reference: Outputs, got: Outputs, limit: float, agreeing: Array | None) -> Parity:
    if parity.max_abs > limit:
        return _failed(parity, _worst(reference, got, limit))
    if agreeing is not None and not agreeing.all():
        flipped = np.flatnonzero(~agreeing)
        return _failed(
            parity,
            f"sample {flipped[0]}: another top-1 class than the source ({len(flipped)} of {parity.n} samples differ, limit 0)",
        )
    return parity


def _judge_half(parity: Parity) -> Parity:
    if parity.top1_agreement is not None:
        if parity.top1_agreement < FP16_AGREEMENT:
            return _failed(parity, f"top-1 agreement {parity.top1_agreement:.2%}, limit {FP16_AGREEMENT:.1%}")
    elif parity.rms > FP16_RMS:
        return _failed(parity, f"rms error {parity.rms:.2e} of the source's standard deviation, limit {FP16_RMS:g}")
    return parity


def _failed(parity: Parity, reason: str) -> Parity:
    return Parity(
        "fail",
        parity.where,
        parity.n,
        parity.max_abs,
        parity.rms,
        parity.top1_agreement,
        parity.limit,
        parity.kernel_max_abs,
        reason,
    )


def _non_finite(outputs: Outputs, whose: str) -> str | None:
    for name, values in outputs.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            at = np.argwhere(~np.isfinite(values))
            samples = len(np.unique(at[:, 0]))
            first = tuple(int(axis) for axis in at[0])
            where = f"output {name!r} of {whose}, sample {first[0]}, element {first[1:]}"
            return f"{where}: {values[first]} ({samples} of {len(values)} samples)"
    return None


def _contract(reference: Outputs, got: Outputs) -> str | None:
    if set(reference) != set(got):
        return f"outputs: expected {sorted(reference)}, got {sorted(got)}"
    for name, values in reference.items():
        mine = got[name]
        if mine.shape != values.shape:
            return f"output {name!r}: expected shape (samples, element) {values.shape}, got {mine.shape}"
        if mine.dtype != values.dtype:
            return f"output {name!r}: expected {values.dtype}, got {mine.dtype}"
    return None


def _worst(reference: Outputs, got: Outputs, limit: float) -> str:
    """The element that is farthest off, in words."""
    name = max(reference, key=lambda name: max_abs(reference[name], got[name]))
    truth, mine = reference[name], got[name]
    at = np.unravel_index(int(np.argmax(np.abs(mine.astype(np.float64) - truth))), truth.shape)
    sample, element = int(at[0]), tuple(int(axis) for axis in at[1:])
    return (
        f"output {name!r}, sample {sample}, element {element}: expected {float(truth[at]):.6g}, got {float(mine[at]):.6g}; "
        f"|difference| {max_abs(truth, mine):.2e} of the range {spread(truth):.4g}, limit {limit:g}"
    )


def _kernel_error(reference: Outputs, got: Outputs, exact: Outputs | None) -> float | None:
    """Max |got - exact| in units of the source's range: what this machine's kernels add to the numbers in the file."""
    if exact is None or any(not np.isfinite(values).all() for values in exact.values() if values.dtype.kind == "f"):
        return None
    return max(
        float(np.max(np.abs(got[name].astype(np.float64) - exact[name]))) / spread(reference[name]) for name in reference
    )
