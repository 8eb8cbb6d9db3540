"""How often the stop gate stops a healthy rollout, and how soon a bad one: thousands of simulated rollouts.

    python -m benchmarks.gates [--json] [--runs 2000]

Every rollout has 500 canary devices and 9 hold-back devices for each, and is looked at after every canary device. A device
fails the gate's nine guards with the chances of its case; all guards are on and share alpha, as in production. The arithmetic
is the gate's own (`coin_log_e`, `ceiling_log_e`, `weights`), run over all rollouts at once; on a sample of them `stop_gate`
itself is asked at the look where it should stop and at the look before, and must agree. Peers see the very same devices.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Final

import numpy as np
from scipy import special

from edgeml.fleet.behaviour import BEHAVIOUR, Behaviour
from edgeml.fleet.evidence import INSTALL, Arms, Evidence
from edgeml.fleet.gates import stop_gate, weights
from edgeml.fleet.rollout import GateSpec, GuardName, RolloutSpec, RolloutState, Wave
from edgeml.fleet.statistics import Bools, Floats, Ints, ceiling_log_e, coin_log_e, log_mean_exp

CANARY: Final = 500
CONTROL: Final = 9  # hold-back devices for each canary device
GATE: Final = GateSpec()
SITE: Final = 25  # devices, in the correlated case
NEVER: Final = 10**9


@dataclass(frozen=True, slots=True)
class Case:
    """Chance of a device to fail each guard: on the new version, and on the old one. Sites correlate by `correlation`."""

    name: str
    new: Mapping[GuardName, float]
    old: Mapping[GuardName, float]
    correlation: float = 0.0


@dataclass(frozen=True, slots=True)
class Rollouts:
    """Simulated devices: bad canary devices (runs, canary) and bad hold-back devices per block (runs, canary)."""

    canary: dict[GuardName, Bools]
    control: dict[GuardName, Ints]
    canary_health: Bools
    control_health: Ints


@dataclass(frozen=True, slots=True)
class Result:
    """Share of rollouts stopped, and after how many canary devices (`None`: fewer than half, or a tenth, ever stopped late)."""

    stopped: float
    median: float | None
    p90: float | None


@dataclass(slots=True)
class Table:
    runs: int
    false_stop: float = 0.0
    false_stop_sites: float = 0.0
    stop_1_5_share: float = 0.0
    stop_1_5_median: float | None = None
    stop_1_10_share: float = 0.0
    stop_1_10_median: float | None = None
    stop_1_10_p90: float | None = None
    crash_median: float | None = None
    checked: int = 0
    seconds: float = 0.0
    peers: dict[str, dict[str, float | None]] = field(default_factory=dict)


def _shares(error_rate: float, others: float = 0.0, **install: float) -> dict[GuardName, float]:
    """Chances of the behaviour guards, and of the install guards where the version is new."""
    behaviour: dict[GuardName, float] = {**dict.fromkeys(BEHAVIOUR, others), "error_rate": error_rate}
    return behaviour | {guard: install[guard] for guard in INSTALL if guard in install}


NOISE: Final = dict.fromkeys(INSTALL, 0.01)  # every way an install can fail, under the ceiling of 5 %
CASES: Final = (
    Case("healthy", _shares(0.0025, 0.0025, **NOISE), _shares(0.0025, 0.0025)),  # 1 % of devices, by four guards
    Case("healthy, failures by site", _shares(0.02, **NOISE), _shares(0.02), correlation=0.05),
    Case("1 -> 5 %", _shares(0.05, **NOISE), _shares(0.01)),
    Case("1 -> 10 %", _shares(0.10, **NOISE), _shares(0.01)),
    Case("crash at load", _shares(0.01, **{**NOISE, "crash": 1.0}), _shares(0.01)),
)


def simulate(case: Case, runs: int, rng: np.random.Generator) -> Rollouts:
    canary: dict[GuardName, Bools] = {}
    control: dict[GuardName, Ints] = {}
    canary_health = np.zeros((runs, CANARY), dtype=np.bool_)
    control_devices = np.zeros((runs, CANARY, CONTROL), dtype=np.bool_)
    for guard, chance in case.new.items():
        site = _site_factor(case, runs, rng) if guard in BEHAVIOUR else np.ones((1, 1))
        canary[guard] = rng.random((runs, CANARY)) < np.minimum(chance * site, 1)
        if guard in case.old:
            bad = rng.random((runs, CANARY, CONTROL)) < np.minimum(case.old[guard] * site, 1)[..., None]
            control[guard] = bad.sum(axis=-1)
            control_devices |= bad
            canary_health |= canary[guard]
    return Rollouts(canary, control, canary_health, control_devices.sum(axis=-1))


def _site_factor(case: Case, runs: int, rng: np.random.Generator) -> Floats:
    """Each block of one canary and nine hold-back devices lies in one site, as strata see to: sites have good and bad days."""
    if not case.correlation:
        return np.ones((1, 1))
    mean = max(case.old["error_rate"], 1e-6)
    a = mean * (1 / case.correlation - 1)
    blocks_per_site = SITE // (CONTROL + 1)
    rates = rng.beta(a, a / mean - a, (runs, -(-CANARY // blocks_per_site))) / mean
    return np.repeat(rates, blocks_per_site, axis=1)[:, :CANARY]


def evidence_by_look(rollouts: Rollouts) -> Floats:
    """The strongest guard's log evidence, weighed, after each canary device: (runs, canary)."""
    share = weights(GATE)
    best = _coins(rollouts.canary_health, rollouts.control_health) + math.log(share["health"])
    looks = np.arange(1, CANARY + 1)
    for guard, bad in rollouts.canary.items():
        if guard in rollouts.control:
            log_e = _coins(bad, rollouts.control[guard])
        else:
            log_e = log_mean_exp(ceiling_log_e(np.cumsum(bad, axis=1), looks, ceiling=GATE.ceiling))
        best = np.maximum(best, log_e + math.log(share[guard]))
    return best


def _coins(canary_bad: Bools, control_bad: Ints) -> Floats:
    """Log evidence of coin flips after each block."""
    x, y = np.arange(2)[:, None], np.arange(CONTROL + 1)[None, :]
    factors = coin_log_e(1, CONTROL, x, y, tolerance=GATE.tolerance)  # every block there can be
    return log_mean_exp(np.cumsum(factors[canary_bad.astype(np.int64), control_bad], axis=1))


def first_stop(fired: Bools) -> Ints:
    """Canary devices at the first look that stops; NEVER where none does."""
    return np.where(fired.any(axis=1), fired.argmax(axis=1) + 1, NEVER)


def summarise(stops: Ints) -> Result:
    median, p90 = (float(np.quantile(stops, q, method="inverted_cdf")) for q in (0.5, 0.9))
    return Result(float(np.mean(stops < NEVER)), median if median < NEVER else None, p90 if p90 < NEVER else None)


def agree(rollouts: Rollouts, stops: Ints, runs: int) -> int:
    """Ask `stop_gate` itself about some rollouts, at the look that should stop and the one before."""
    for run in range(runs):
        at = min(int(stops[run]), CANARY)
        should = stops[run] < NEVER
        assert (stop_gate(STATE, _evidence(rollouts, run, at), 0.0) is not None) == should, (run, at)
        assert at == 1 or stop_gate(STATE, _evidence(rollouts, run, at - 1), 0.0) is None, (run, at - 1)
    return runs


STATE: Final = RolloutState(
    RolloutSpec("r", "kws", "1.2.0", "0" * 64, "models/kws/1.2.0.edgeml", "salt", (Wave(0.1),), gate=GATE), "running", 0
)


def _evidence(rollouts: Rollouts, run: int, looks: int) -> Evidence:
    """What the controller would gather after `looks` canary devices, their blocks' hold-back, and nobody else."""
    bad: dict[GuardName, Bools] = {}
    for guard in BEHAVIOUR:
        held = np.arange(CONTROL) < rollouts.control[guard][run][:, None]
        bad[guard] = np.concatenate([rollouts.canary[guard][run], held.ravel()])
    # two guards bad on one hold-back device cannot be told from two devices here: lay them out so that health adds up
    bad = _spread(bad, rollouts.control_health[run])
    seen = np.concatenate([np.arange(CANARY) < looks, np.repeat(np.arange(CANARY) < looks, CONTROL)])
    canary = np.arange(CANARY * (CONTROL + 1)) < CANARY
    order = np.concatenate([np.arange(CANARY) / CANARY, np.arange(CANARY * CONTROL) / (CANARY * CONTROL)])
    judged = seen & canary
    return Evidence(
        version="1.2.0", previous="1.1.0", eligible=len(canary), told=CANARY, started=looks, settled=looks, pending=0,
        bad=0, judged=looks, turned_bad=int(rollouts.canary_health[run, :looks].sum()),
        install_bad={g: int(rollouts.canary[g][run, :looks].sum()) for g in INSTALL},
        behaviour_bad={g: int((bad[g] & judged).sum()) for g in BEHAVIOUR},
        arms=Arms(np.zeros(len(canary), dtype=np.int64), canary, order, Behaviour(seen, bad)),
    )  # fmt: skip


def _spread(bad: dict[GuardName, Bools], health: Ints) -> dict[GuardName, Bools]:
    counts = {guard: column[CANARY:].reshape(CANARY, CONTROL).sum(axis=1) for guard, column in bad.items()}
    spread = {guard: np.zeros((CANARY, CONTROL), dtype=np.bool_) for guard in bad}
    for block in np.flatnonzero(sum(counts.values())):
        left, seat = int(health[block]), 0
        for guard in bad:
            for _ in range(int(counts[guard][block])):
                while spread[guard][block, seat % max(left, 1)]:
                    seat += 1
                spread[guard][block, seat % max(left, 1)] = True
                seat += 1
    return {guard: np.concatenate([bad[guard][:CANARY], spread[guard].ravel()]) for guard in bad}


def z_test(rollouts: Rollouts) -> Bools:
    """Peeking: a pooled two-proportion z-test after every device, p < 0.05 and the new version worse."""
    n = np.arange(1, CANARY + 1)
    x, y = np.cumsum(_any_failure(rollouts), axis=1), np.cumsum(rollouts.control_health, axis=1)
    pooled = (x + y) / (n * (CONTROL + 1))
    spread = np.sqrt(np.maximum(pooled * (1 - pooled), 1e-12) * (1 + 1 / CONTROL) / n)
    z = (x / n - y / (n * CONTROL)) / spread
    return np.asarray((special.ndtr(-np.abs(z)) * 2 < 0.05) & (z > 0) & (x + y > 0))


def aws_style(rollouts: Rollouts) -> Bools:
    """At least 20 % failed after at least 100 devices."""
    n = np.arange(1, CANARY + 1)
    return np.asarray((n >= 100) & (np.cumsum(_any_failure(rollouts), axis=1) >= 0.2 * n))


def hawkbit_style(rollouts: Rollouts) -> Bools:
    """Failed devices reach 10 % of the group, however many have answered."""
    return np.cumsum(_any_failure(rollouts), axis=1) >= 0.1 * CANARY


def _any_failure(rollouts: Rollouts) -> Bools:
    """The failure the case is about: behaviour, or the crash where that is the case (background install failures left out)."""
    return rollouts.canary_health | (rollouts.canary["crash"] if rollouts.canary["crash"].all() else False)


PEERS: Final[dict[str, Callable[[Rollouts], Bools]]] = {
    "z_test_peeking": z_test,
    "aws_style_20_percent_after_100": aws_style,
    "hawkbit_style_10_percent_of_group": hawkbit_style,
}


def measure(runs: int, seed: int = 20261123, batch: int = 250) -> Table:
    """All cases; a batch at a time, so that memory stays small."""
    begun = time.perf_counter()
    table = Table(runs)
    ours: dict[str, Result] = {}
    for number, case in enumerate(CASES):
        rng = np.random.default_rng((seed, number))
        stops: dict[str, list[Ints]] = {name: [] for name in ("ours", *PEERS)}
        for start in range(0, runs, batch):
            rollouts = simulate(case, min(batch, runs - start), rng)
            mine = first_stop(evidence_by_look(rollouts) >= -math.log(GATE.alpha))
            table.checked += agree(rollouts, mine, 5)
            stops["ours"].append(mine)
            for name, peer in PEERS.items():
                stops[name].append(first_stop(peer(rollouts)))
        results = {name: summarise(np.concatenate(found)) for name, found in stops.items()}
        ours[case.name] = results.pop("ours")
        for name, result in results.items():
            table.peers.setdefault(name, {}).update(_peer_row(case.name, result))
    table.false_stop, table.false_stop_sites = ours["healthy"].stopped, ours["healthy, failures by site"].stopped
    table.stop_1_5_share, table.stop_1_5_median = ours["1 -> 5 %"].stopped, ours["1 -> 5 %"].median
    ten = ours["1 -> 10 %"]
    table.stop_1_10_share, table.stop_1_10_median, table.stop_1_10_p90 = ten.stopped, ten.median, ten.p90
    table.crash_median = ours["crash at load"].median
    table.seconds = round(time.perf_counter() - begun, 1)
    return table


def _peer_row(case: str, result: Result) -> dict[str, float | None]:
    match case:
        case "healthy":
            return {"false_stop": result.stopped}
        case "1 -> 5 %":
            return {"stop_1_5_share": result.stopped, "stop_1_5_median": result.median}
        case "1 -> 10 %":
            return {"stop_1_10_share": result.stopped, "stop_1_10_median": result.median, "stop_1_10_p90": result.p90}
        case "crash at load":
            return {"crash_median": result.median}
        case _:
            return {"false_stop_sites": result.stopped}


def show(table: Table) -> None:
    half = 1.96 * math.sqrt(max(table.false_stop * (1 - table.false_stop), 1 / table.runs) / table.runs)
    print(
        f"{table.runs} rollouts a case, {CANARY} canary devices, hold-back {CONTROL}x, looked at after each; alpha {GATE.alpha}"
    )
    print(f"{'':36}{'false stops':>14}{'by site':>10}{'1->5 % (median)':>18}{'1->10 % (median, p90)':>24}{'crash':>8}")
    mine = {**asdict(table)}
    for name, row in {"edgeml": mine, **table.peers}.items():
        five = f"{row['stop_1_5_share']:.1%} ({_count(row['stop_1_5_median'])})"
        ten = f"{row['stop_1_10_share']:.1%} ({_count(row['stop_1_10_median'])}, {_count(row['stop_1_10_p90'])})"
        crash = _count(row["crash_median"])
        print(f"{name:36}{row['false_stop']:>14.2%}{row['false_stop_sites']:>10.2%}{five:>18}{ten:>24}{crash:>8}")
    print(f"false stops within ± {half:.2%} (95 %); the gate itself asked about {table.checked} rollouts; {table.seconds} s")


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.gates", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    table = measure(asked.runs)
    show(table)
    if asked.json:
        print(json.dumps(asdict(table)))


if __name__ == "__main__":
    main()
