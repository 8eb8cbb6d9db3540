"""Which precisions each format has: the one table that plans, converters and documents go by.

What a name means in each format stands in docs/export.md; what each is made of, in `quantize/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, get_args

from edgeml.wire.errors import PlanError
from edgeml.wire.manifest import Format, Precision

Ranges = Literal["auto", "min-max", "average", "percentile", "entropy", "mse"]
"""How activation ranges are found: by one observer, or by whichever errs least on calibration samples held out."""

RANGES: Final[tuple[Ranges, ...]] = get_args(Ranges)
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)

AVAILABLE: Final[dict[Format, tuple[Precision, ...]]] = {
    "onnx": ("fp32", "fp16", "int16", "int8-weights", "int8-dynamic", "int8", "int4-weights"),
    "tflite": ("fp32", "fp16", "int16", "int8-weights", "int8-dynamic", "int8", "int4-weights"),
    "coreml": ("fp32", "fp16", "palette8", "int8-weights", "int8", "w8a8", "palette6", "int4-weights", "palette4"),
}

CALIBRATED: Final[dict[Format, frozenset[Precision]]] = {
    "onnx": frozenset({"int8", "int16"}),
    "tflite": frozenset({"int8", "int16"}),
    "coreml": frozenset({"w8a8"}),
}
"""Those whose activations have fixed ranges, which only calibration samples can give."""

INTEGERS: Final = frozenset[Precision]({"int8", "int8-dynamic", "int16", "w8a8"})
"""Those computed in integers, by kernels that differ from board to board by whole steps."""


def computes_in_half(format_: Format, precision: Precision) -> bool:
    """Whether a healthy board may calculate in float16: everything but fp32 in Core ML does."""
    return precision == "fp16" or (format_ == "coreml" and precision != "fp32")


def left_out(formats: Sequence[Format], precisions: Sequence[Precision]) -> tuple[str, ...]:
    """A sentence for each format that lacks some of the precisions.

    Raises:
        PlanError: a precision that none of the formats has.
    """
    for precision in precisions:
        if not any(precision in AVAILABLE[format_] for format_ in formats):
            others = " or ".join(format_ for format_, held in AVAILABLE.items() if precision in held)
            raise PlanError(
                f"--precision {precision}: no format that was asked for has it",
                expected="; ".join(f"{format_}: {','.join(AVAILABLE[format_])}" for format_ in formats),
                hint=f"add {others} to --to" if others else "choose another precision",
            )
    lacking = {format_: [p for p in precisions if p not in AVAILABLE[format_]] for format_ in formats}
    return tuple(f"{format_} does not have {', '.join(missing)}: left out." for format_, missing in lacking.items() if missing)


def refuse_uncalibrated(formats: Sequence[Format], precisions: Sequence[Precision]) -> None:
    """Without samples.

    Raises:
        PlanError: a precision needs them.
    """
    for precision in precisions:
        needing = " and ".join(format_ for format_ in formats if precision in CALIBRATED[format_])
        if needing:
            raise PlanError(
                f"{precision} for {needing} needs activation ranges",
                hint=f"give samples with --calib FILE.npz, or leave {precision} out of --precision",
            )
