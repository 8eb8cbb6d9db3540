"""What the worker does for `edgeml explain`, `diff` and `bisect`: models may crash, hang or grow, and the command must not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from edgeml.exporter.layers.bisect import Piece, worst_piece
from edgeml.exporter.layers.compared import compare_subjects, explain_subjects
from edgeml.exporter.layers.difference import Difference
from edgeml.exporter.layers.measure import decibels
from edgeml.exporter.layers.reproducer import write_reproducer
from edgeml.exporter.layers.subject import open_explained, open_subject


class Diff(msgspec.Struct, frozen=True):
    """`a` and `b` name the models, `samples` says what both were fed."""

    a: str
    b: str
    samples: str
    found: Difference


class Bisection(msgspec.Struct, frozen=True):
    """`found` says whether a piece fails by itself; the rest is of the worst piece, `output` empty if there is none.

    `about` is all of it in words, `files` the reproducer.
    """

    found: bool
    about: str
    operators: tuple[dict[str, str], ...] = ()
    inputs: tuple[str, ...] = ()
    output: str = ""
    snr_db: float | None = None
    least_db: float | None = None
    max_abs: float | None = None
    files: tuple[str, ...] = ()


def explain(*, model: str, samples: str | None) -> Any:
    """Job: an `Explanation` of the model, or of each artifact of a bundle."""
    path = Path(samples) if samples is not None else None
    return [msgspec.to_builtins(explain_subjects(subject, whole, path)) for subject, whole in open_explained(model)]


def diff(*, a: str, b: str, samples: str | None) -> Any:
    """Job: a `Diff`."""
    compared = compare_subjects(open_subject(a), open_subject(b), Path(samples) if samples is not None else None)
    return msgspec.to_builtins(Diff(*compared.names, compared.samples, compared.found))


def bisect(*, a: str, b: str, samples: str | None, least_db: float | None, out: str) -> Any:
    """Job: a `Bisection`; a piece that fails is written to the folder `out`."""
    compared = compare_subjects(open_subject(a), open_subject(b), Path(samples) if samples is not None else None)
    piece = worst_piece(compared.a, compared.b, compared.model_b, least_db)
    about = _about(piece, compared.names)
    if piece is None:
        return msgspec.to_builtins(Bisection(found=False, about=about))
    files = write_reproducer(piece, compared.b.format, Path(out), about) if piece.fails else ()
    return msgspec.to_builtins(
        Bisection(
            found=piece.fails,
            about=about,
            operators=tuple({"name": one.name, "kind": one.kind, "precision": one.precision} for one in piece.operators),
            inputs=tuple(name for name, _ in piece.inputs),
            output=piece.output,
            snr_db=piece.snr_db,
            least_db=piece.least_db,
            max_abs=piece.max_abs,
            files=tuple(map(str, files)),
        )
    )


def _about(piece: Piece | None, names: tuple[str, str]) -> str:
    """What was found, in words; also the reproducer's README."""
    if piece is None:
        return f"No inner tensor of {names[1]} could be told to be one of {names[0]}.\n"
    chain = " > ".join(operator.kind for operator in piece.operators)
    held = f"{decibels(piece.snr_db)} dB of signal to noise, at least {piece.least_db:g} asked"
    if not piece.fails:
        return (
            f"No piece of {names[1]} is wrong by itself. The worst is {chain}, which gives {piece.output!r} with {held}.\n"
            "Where outputs differ, noise of many layers adds up: `edgeml diff` shows it.\n"
        )
    return (
        f"{names[1]} goes wrong in {chain}, which gives {piece.output!r}.\n"
        f"Fed with what {names[0]} computes there, it leaves {held}.\n"
        f"Inputs, by position: {', '.join(name for name, _ in piece.inputs)}.\n"
    )
