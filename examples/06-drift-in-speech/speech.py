"""A device that was tried on five speakers hears a sixth:  python examples/06-drift-in-speech/speech.py [-o out/speech]

Four figures of each spoken digit (pitch, brightness, loudness, length) are the inputs of a model. The reference is of five
speakers' recordings; the device's own window and drift decision then hear other recordings of the same five, and after some
hours only those of the sixth. Each speaker is the sixth once; a picture shows one of them.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np

from edgeml.exporter.reference import make_reference
from edgeml.exporter.samples import make_samples
from edgeml.runtime.backends import Array
from edgeml.runtime.telemetry import Window
from edgeml.wire.manifest import SCHEMA, Manifest, Signature, SourceFile, TensorSpec

FIGURES: Final = ("pitch_hz", "brightness_hz", "loudness_db", "length_s")
RATE_HZ: Final = 8000
FRAME: Final = 400  # 50 ms: two periods of the lowest voice
PITCH_HZ: Final = (60, 400)
CALLS: Final = 30  # a window of a minute
CLEAN_WINDOWS: Final = 300
SIXTH_WINDOWS: Final = 120
COLOURS: Final = ("#1f6feb", "#b35900", "#2da44e", "#8250df")
PICTURED: Final = "theo"


@dataclass(frozen=True, slots=True)
class Heard:
    """What the device said: (calls so far, PSI) of each comparison by figure, and calls from the change to the first alarm."""

    compared: dict[str, list[tuple[int, float]]]
    found: dict[str, int]
    false_alarms: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-o", "--out", type=Path, default=Path("out/speech"))
    out = parser.parse_args().out
    data = find_data()
    if data is None:
        print("the spoken digits (fsdd.npz) are not here: set EDGEML_MODELS to the folder beside data/; nothing was done")
        return
    with np.load(data, allow_pickle=False) as file:
        names = [str(name) for name in np.unique(file["speaker"])]
        figures = np.stack([figures_of(one) for one in recordings(file["samples"], file["offset"])])
        speaker, index = np.asarray(file["speaker"]).astype(str), np.asarray(file["index"])
    out.mkdir(parents=True, exist_ok=True)
    print("sixth speaker   recordings until an alarm, by figure")
    for name in names:
        known = speaker != name
        heard = listen(figures[known & (index % 2 == 0)], figures[known & (index % 2 == 1)], figures[~known])
        words = ", ".join(f"{figure} {calls}" for figure, calls in heard.found.items()) or "none"
        print(f"{name:14s}  {words}" + (f"; {heard.false_alarms} before the change" if heard.false_alarms else ""))
        if name == PICTURED:
            (out / "speaker.svg").write_text(picture(heard, name))
    print(f"picture: {out / 'speaker.svg'}")


def find_data() -> Path | None:
    """`fsdd.npz` beside the published models, or beside the checkout."""
    places = [Path(os.environ["EDGEML_MODELS"]).parent / "data"] if os.environ.get("EDGEML_MODELS") else []
    places.append(Path(__file__).resolve().parents[3] / "shared" / "data")
    return next((place / "fsdd.npz" for place in places if (place / "fsdd.npz").is_file()), None)


def recordings(samples: Array, offset: Array) -> list[Array]:
    return [samples[start:end].astype(np.float64) / 32768 for start, end in pairwise(offset)]


def figures_of(wave: Array) -> Array:
    """(4,): median pitch and centroid of the loud frames, level in dB, seconds."""
    padded = np.pad(wave, (0, max(0, FRAME - len(wave))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, FRAME)[:: FRAME // 2]
    power = (frames**2).mean(axis=1)
    loud = frames[power >= np.quantile(power, 0.5)]
    spectrum = np.abs(np.fft.rfft(loud * np.hanning(FRAME), 2 * FRAME)) ** 2
    frequencies = np.fft.rfftfreq(2 * FRAME, 1 / RATE_HZ)
    centroid = (spectrum @ frequencies) / np.maximum(spectrum.sum(axis=1), 1e-12)
    lags = np.arange(RATE_HZ // PITCH_HZ[1], RATE_HZ // PITCH_HZ[0])
    correlation = np.fft.irfft(spectrum)[:, lags]  # of the signal with itself, by its power spectrum
    pitch = RATE_HZ / lags[correlation.argmax(axis=1)]
    level_db = 10 * np.log10(power.max() + 1e-9)
    return np.asarray([np.median(pitch), np.median(centroid), level_db, len(wave) / RATE_HZ], np.float32)


def listen(reference: Array, usual: Array, sixth: Array) -> Heard:
    """Feed the device's window and read what it says once a minute. Recordings (n, 4) are drawn with replacement."""
    window, chance = Window(manifest(reference), now=0.0), np.random.default_rng(0)
    heard = Heard({figure: [] for figure in FIGURES}, {}, 0)
    false_alarms = 0
    for minute in range(CLEAN_WINDOWS + SIXTH_WINDOWS):
        source = usual if minute < CLEAN_WINDOWS else sixth
        for row in source[chance.integers(len(source), size=CALLS)]:
            window.observe({figure: row[i : i + 1] for i, figure in enumerate(FIGURES)})
        calls = (minute + 1) * CALLS
        for stream, drift in window.take(60.0 * (minute + 1)).drift.items():
            figure = stream.removeprefix("input:")
            heard.compared[figure].append((calls, drift.psi))
            if drift.alarm and minute >= CLEAN_WINDOWS:
                heard.found.setdefault(figure, calls - CLEAN_WINDOWS * CALLS)
            false_alarms += drift.alarm and minute < CLEAN_WINDOWS
    return Heard(heard.compared, heard.found, false_alarms)


def manifest(reference: Array) -> Manifest:
    samples = make_samples({figure: reference[:, i : i + 1] for i, figure in enumerate(FIGURES)})
    return Manifest(
        schema=SCHEMA,
        name="speech",
        version="1.0.0",
        signature=Signature(
            tuple(TensorSpec(figure, "float32", ("batch", 1)) for figure in FIGURES),
            (TensorSpec("digit", "float32", ("batch", 10)),),
        ),
        source=SourceFile("none", "0" * 64, 0),
        exporter={},
        options={},
        seed=0,
        artifacts=(),
        reference=make_reference(samples, {}, None),
    )


def picture(heard: Heard, name: str) -> str:
    """PSI of each figure over the calls, on a logarithmic scale, as an SVG."""
    left, top, width, height, total = 60, 40, 620, 260, (CLEAN_WINDOWS + SIXTH_WINDOWS) * CALLS
    low, high = np.log10(0.005), np.log10(10)

    def x(calls: float) -> float:
        return left + width * calls / total

    def y(psi: float) -> float:
        return float(top + height * (high - np.log10(np.clip(psi, 0.005, 10))) / (high - low))

    change = x(CLEAN_WINDOWS * CALLS)
    title = f"Five known speakers, then {name} alone: PSI against the export"
    marks = [
        f'<text x="{left}" y="22" font-size="15" fill="#1f2328">{title}</text>',
        f'<rect x="{change:.1f}" y="{top}" width="{left + width - change:.1f}" height="{height}" fill="#f6f8fa"/>',
        f'<line x1="{left}" x2="{left + width}" y1="{y(0.1):.1f}" y2="{y(0.1):.1f}" stroke="#57606a" stroke-dasharray="4 4"/>',
        f'<text x="{left + 4}" y="{y(0.1) - 5:.1f}">least effect that counts</text>',
        f'<text x="{change + 4:.1f}" y="{top + height - 8}">sixth speaker</text>',
    ]
    marks += [f'<text x="{left - 8}" y="{y(v) + 4:.1f}" text-anchor="end">{v:g}</text>' for v in (0.01, 0.1, 1, 10)]
    marks += [
        f'<text x="{x(c):.1f}" y="{top + height + 18}" text-anchor="middle">{c:,}</text>' for c in range(0, total + 1, 3000)
    ]
    marks.append(f'<text x="{left + width / 2}" y="{top + height + 36}" text-anchor="middle">recordings heard</text>')
    for figure, colour in zip(FIGURES, COLOURS, strict=True):
        points = list(dict(heard.compared[figure]).items())
        path = " ".join(f"{x(calls):.1f},{y(psi):.1f}" for calls, psi in points)
        marks.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        marks.append(f'<text x="{left + width + 8}" y="{y(points[-1][1]) + 4:.1f}" fill="{colour}">{figure}</text>')
        if figure in heard.found:
            at = CLEAN_WINDOWS * CALLS + heard.found[figure]
            psi = next(value for calls, value in points if calls >= at)
            marks.append(f'<circle cx="{x(at):.1f}" cy="{y(psi):.1f}" r="5" fill="{colour}"/>')
    body = "\n".join(marks)
    head = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 350" font-family="sans-serif" font-size="12" fill="#57606a">'
    )
    return f'{head}\n<rect width="800" height="350" fill="white"/>\n{body}\n</svg>\n'


if __name__ == "__main__":
    main()
