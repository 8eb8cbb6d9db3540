"""How often drift is seen where there is none, and how soon where there is:  python -m benchmarks.drift [--json] [--months N]

Simulated devices, each with a reference of its own, drawn from the same truth as what the device is fed; every window goes
through the device's own `drift.step`. A device watches an input (10 bins), the confidence (20) and the classes (10), answers
30 times a minute and closes 43,200 windows in 30 days.

- clean: no drift, independent calls; every alarm is a false one
- alike: no drift, but each call resembles the one before (first-order autoregression, 0.95: 39 calls count as one)
- shifted: the input moves by 0.5 standard deviations at a random moment; found by how many calls later? A device that has just
  begun ("clean before" 0) meets it within its first 1,800 calls.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgeml.exporter.chance import make_nulls
from edgeml.exporter.reference import CONFIDENCE_BINS, INPUT_BINS
from edgeml.runtime.drift import Line, State, start, step
from edgeml.wire.manifest import Null

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MONTHS: Final = 1000
ALIKE_MONTHS: Final = 60
RUNS: Final = 2000  # shifted devices for each row of the table
WINDOWS: Final = 43_200  # 30 days of 60 s
CALLS: Final = 30  # a window
REFERENCE: Final = 1000  # samples at export
ALIKE: Final = 0.95
CLASSES: Final = (0.3, 0.2, 0.15, 0.1, 0.08, 0.06, 0.05, 0.03, 0.02, 0.01)
SOON: Final = 2000  # calls
CLEAN_CALLS: Final = 9000  # before a shift, at least: a device that has run for a while


@dataclass(frozen=True, slots=True)
class Stream:
    """One watched distribution and its truth."""

    name: str
    shares: Floats
    is_ordered: bool = True

    def reference(self, chance: np.random.Generator, devices: int, samples: int) -> Floats:
        return chance.multinomial(samples, self.shares, devices).astype(np.float64)


@dataclass(frozen=True, slots=True)
class Shift:
    """By `sigma` standard deviations, at `per_window` calls a window, against `samples` at export, `clean` calls before."""

    sigma: float
    per_window: int = CALLS
    samples: int = REFERENCE
    clean: int = CLEAN_CALLS


@dataclass(frozen=True, slots=True)
class Found:
    """Calls from the shift to the alarm; infinite where there was none in time."""

    shift: Shift
    calls: Floats

    @property
    def share(self) -> float:
        return float((self.calls <= SOON).mean())


STREAMS: Final = (
    Stream("input:x", np.full(INPUT_BINS, 1 / INPUT_BINS)),
    Stream("confidence", np.full(CONFIDENCE_BINS, 1 / CONFIDENCE_BINS)),
    Stream("classes", np.asarray(CLASSES), is_ordered=False),
)
SHIFTS: Final = (
    *(Shift(sigma) for sigma in (0.5, 0.25, 1.0)),
    Shift(0.5, per_window=5),
    Shift(0.5, per_window=120),
    Shift(0.5, samples=300),
    Shift(0.5, clean=0),
    Shift(0.5, samples=300, clean=0),
)
EDGES: Final = np.asarray([NormalDist().inv_cdf(i / INPUT_BINS) for i in range(1, INPUT_BINS)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="one object as the last line")
    parser.add_argument("--months", type=int, default=MONTHS, help="simulated device-months without drift")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    began = time.monotonic()
    parts = max(1, min(4, os.cpu_count() or 1))
    with ProcessPoolExecutor(parts) as pool:
        share = [arguments.months // parts + (part < arguments.months % parts) for part in range(parts)]
        clean_parts = [pool.submit(false_alarms, arguments.seed + part, months) for part, months in enumerate(share)]
        alike_part = pool.submit(alike_alarms, arguments.seed, max(1, arguments.months * ALIKE_MONTHS // MONTHS))
        powers = [pool.submit(power, arguments.seed, shift) for shift in SHIFTS]
        clean, alike = np.concatenate([part.result() for part in clean_parts]), alike_part.result()
        shifted = [one.result() for one in powers]
    print(f"clean    {_rate(clean)}")
    print(f"alike    {_rate(alike)}")
    print("shift    calls a window  reference  clean before  found within 2,000  median  95 %")
    for found in shifted:
        middle, late = np.quantile(found.calls, [0.5, 0.95], method="higher")
        shift = found.shift
        row = f"{shift.sigma:4.2f} s   {shift.per_window:14d}  {shift.samples:9d}  {shift.clean:12d}  {found.share:18.1%}"
        print(f"{row}  {middle:6.0f}  {late:6.0f}")
    print(f"{time.monotonic() - began:.0f} s")
    if arguments.json:
        half = [found.share for found in shifted if found.shift.sigma == 0.5]
        record = {
            "false_alarms_per_30d": float(clean.mean()),
            "power_half_sigma": half[0],
            "power_half_sigma_worst": min(half),
            "device_months": len(clean),
            "false_alarms_per_30d_alike": float(alike.mean()),
            "runs": RUNS,
            "peers": {},
        }
        print(json.dumps(record))


def false_alarms(seed: int, devices: int) -> Ints:
    """Alarms of each device in 30 days of independent calls from its reference's own truth."""
    chance = np.random.default_rng([seed, 1])
    lines = _lines(chance, devices, REFERENCE)
    states = [start(line, devices) for line in lines]
    alarms = np.zeros(devices, np.int64)
    calls = np.full(devices, float(CALLS))
    for _ in range(WINDOWS):
        for number, (line, stream) in enumerate(zip(lines, STREAMS, strict=True)):
            counts = chance.multinomial(CALLS, stream.shares, devices)
            states[number], began = _next(line, states[number], counts, calls)
            alarms += began
    return alarms


def alike_alarms(seed: int, devices: int) -> Ints:
    """The same for an input whose calls resemble each other."""
    chance = np.random.default_rng([seed, 2])
    line = _lines(chance, devices, REFERENCE)[0]
    state, alarms = start(line, devices), np.zeros(devices, np.int64)
    calls = np.full(devices, float(CALLS))
    for counts in _alike(chance, devices):
        state, began = _next(line, state, counts, calls)
        alarms += began
    return alarms


def power(seed: int, shift: Shift) -> Found:
    """How many calls after a shift of the input the device of each run says so."""
    chance, per_window = np.random.default_rng([seed, 3]), shift.per_window
    line = _lines(chance, RUNS, shift.samples)[0]
    state = start(line, RUNS)
    shares = [_shares_of_normal(0.0), _shares_of_normal(shift.sigma)]
    calls = np.full(RUNS, float(per_window))
    onset = shift.clean // per_window + chance.integers(0, max(1, 1800 // per_window), RUNS)
    found = np.full(RUNS, np.inf)
    for window in range(int(onset.max()) + -(-3 * SOON // per_window)):
        is_shifted = window >= onset
        usual, moved = (chance.multinomial(per_window, one, RUNS) for one in shares)
        counts = np.where(is_shifted[:, None], moved, usual)
        state, began = _next(line, state, counts, calls)
        now = began & is_shifted & np.isinf(found)
        found[now] = (window - onset[now] + 1) * per_window
    return Found(shift, found)


def _next(line: Line, state: State, counts: Ints, calls: Floats) -> tuple[State, NDArray[np.bool_]]:
    state, verdict = step(line, state, counts.astype(np.float64), calls, 60.0)
    return state, verdict.began if verdict is not None else np.zeros(len(calls), np.bool_)


def _lines(chance: np.random.Generator, devices: int, samples: int) -> list[Line]:
    return [
        Line(
            stream.name,
            stream.reference(chance, devices, samples),
            _null(stream, samples),
            streams=len(STREAMS),
            is_ordered=stream.is_ordered,
        )
        for stream in STREAMS
    ]


def _null(stream: Stream, samples: int) -> Null:
    """The calibration that the exporter freezes for such a stream."""
    bins = np.random.default_rng(samples).choice(len(stream.shares), samples, p=stream.shares)
    return make_nulls({stream.name: np.eye(len(stream.shares))[bins]}, seed=0)[stream.name]


def _shares_of_normal(mean: float) -> Floats:
    below = [NormalDist(mean).cdf(edge) for edge in EDGES]
    return np.diff([0.0, *below, 1.0])


def _alike(chance: np.random.Generator, devices: int) -> Iterator[Ints]:
    """Windows of counts of x' = ALIKE * x + sqrt(1 - ALIKE^2) * noise."""
    x = chance.standard_normal(devices)
    step_size = np.sqrt(1 - ALIKE**2)
    rows = np.arange(devices)[:, None] * INPUT_BINS
    for _ in range(WINDOWS):
        noise = chance.standard_normal((CALLS, devices)) * step_size
        for call in range(CALLS):
            x = ALIKE * x + noise[call]
            noise[call] = x
        bins = np.searchsorted(EDGES, noise.T, side="right")
        yield np.bincount((bins + rows).ravel(), minlength=devices * INPUT_BINS).reshape(devices, INPUT_BINS)


def _rate(alarms: Ints) -> str:
    return (
        f"{alarms.sum()} false alarms in {len(alarms)} device-months of {WINDOWS:,} windows: {alarms.mean():.4f} in 30 days,"
        f" {(alarms > 0).sum()} devices"
    )


if __name__ == "__main__":
    main()
