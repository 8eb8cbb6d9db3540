"""The drift decision of one model version on one device: what the manifest's reference says is watched, window by window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgeml.runtime.drift import Line, State, start, step
from edgeml.wire.manifest import Artifact, Reference
from edgeml.wire.messages import Drift

ACTED_ON: Final = ("input:", "confidence")  # another mix of classes may well be the world; its answers are as good as before


@dataclass(slots=True)
class _Watched:
    line: Line
    state: State
    newest: Drift | None = None


class DriftWatch:
    """Watches every stream that the reference has a calibration for. One thread feeds it; `is_drifting` may be read by any."""

    def __init__(self, reference: Reference | None, artifact: Artifact | None = None) -> None:
        lines = [] if reference is None else _lines(reference, artifact)
        self._watched = {line.name: _Watched(line, start(line)) for line in lines}
        self.is_drifting = False

    def see(self, streams: Mapping[str, tuple[tuple[int, ...], int]], seconds: float) -> dict[str, Drift]:
        """Add one window: (counts, calls) by stream. Gives the streams that were compared in it, or stand in alarm."""
        news: dict[str, Drift] = {}
        for name, one in self._watched.items():
            bins = one.line.counts.shape[-1]
            counts, calls = streams.get(name, ((), 0))
            row = np.asarray(counts if len(counts) == bins else (0,) * bins, np.float64)[None]
            one.state, verdict = step(one.line, one.state, row, np.asarray([float(calls)]), seconds)
            if verdict is not None:
                one.newest = Drift(
                    calls=int(verdict.calls[0]),
                    psi=float(f"{verdict.psi[0]:.4g}"),
                    js=float(f"{verdict.js[0]:.4g}"),
                    alarm=bool(one.state.alarmed[0]),
                )
            if one.newest is not None and (verdict is not None or one.newest.alarm):
                news[name] = one.newest
        self.is_drifting = any(
            one.newest is not None and one.newest.alarm for name, one in self._watched.items() if name.startswith(ACTED_ON)
        )
        return news


def _lines(reference: Reference, artifact: Artifact | None) -> list[Line]:
    counts: dict[str, tuple[int, ...]] = {f"input:{name}": sketch.counts for name, sketch in reference.inputs.items()}
    if reference.confidence is not None:
        counts["confidence"] = reference.confidence.counts
        counts["classes"] = reference.classes
        if artifact is not None and len(artifact.confidence) == len(reference.confidence.counts):
            counts["confidence"] = artifact.confidence
            counts["classes"] = artifact.classes if len(artifact.classes) == len(reference.classes) else reference.classes
    watched = {name: counts[name] for name in reference.nulls if sum(counts.get(name, ()))}
    return [
        Line(
            name,
            np.asarray(found, np.float64) * (reference.nulls[name].n / sum(found)),
            reference.nulls[name],
            len(watched),
            is_ordered=name != "classes",
        )
        for name, found in watched.items()
    ]
