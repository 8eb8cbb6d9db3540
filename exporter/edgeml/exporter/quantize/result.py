"""What quantizing a model gives."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quantized:
    """`notes` say in plain words what was chosen: the observer that won, what was kept float; `warnings` what to look at."""

    model: bytes
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
