"""What the gates say, on evidence made by hand."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from benchmarks.gates import measure
from edgeml.fleet.behaviour import BEHAVIOUR, LowRule, judge, low_rules
from edgeml.fleet.behaviour import Behaviour as Rows
from edgeml.fleet.evidence import INSTALL, Arms, Evidence
from edgeml.fleet.gates import forecast, go_on_gate, log_evidence, stop_gate, weights
from edgeml.fleet.ledger import TelemetrySum, VersionFacts
from edgeml.fleet.rollout import GateSpec, GuardName, RolloutSpec, RolloutState, Seen, Wave, step
from edgeml.fleet.statistics import upper_bound
from edgeml.wire.sketches import Histogram, LatencySketch, latency_bucket

WAVES = (Wave(0.1, soak_s=60, longest_s=600), Wave(0.9, soak_s=60, longest_s=600))


def running(gate: GateSpec | None = None, **settings: object) -> RolloutState:
    spec = RolloutSpec("r", "kws", "1.2.0", "0" * 64, "p", "salt", WAVES, gate=gate or GateSpec(), **settings)  # type: ignore[arg-type]
    return RolloutState(spec, "running", 0, started_at=0.0, wave_started_at=0.0)


def arms(canary: int, control: int, bad: dict[GuardName, tuple[int, int]] | None = None) -> Arms:
    """The first devices of either arm are the bad ones, after a shuffle of the hashes."""
    order = np.random.default_rng(7).random(canary + control)
    columns = {}
    for guard in BEHAVIOUR:
        on_canary, on_control = (bad or {}).get(guard, (0, 0))
        columns[guard] = np.r_[np.arange(canary) < on_canary, np.arange(control) < on_control]
    everybody = np.ones(canary + control, dtype=np.bool_)
    return Arms(
        np.zeros(canary + control, dtype=np.int64), np.arange(canary + control) < canary, order, Rows(everybody, columns)
    )


def evidence(rows: Arms, *, install: dict[GuardName, int] | None = None, eligible: int = 200, **changes: int) -> Evidence:
    canary = int(rows.canary.sum())
    bad = {guard: int((column & rows.canary).sum()) for guard, column in rows.behaviour.bad.items()}
    turned = int((np.any(np.stack(list(rows.behaviour.bad.values())), axis=0) & rows.canary).sum())
    failed = sum((install or {}).values())
    plain = {
        "eligible": eligible, "told": canary, "started": canary, "settled": canary, "pending": 0, "bad": turned + failed,
        "judged": canary, "turned_bad": turned, **changes,
    }  # fmt: skip
    return Evidence(
        version="1.2.0", previous="1.1.0" if rows.has_control else None, behaviour_bad=bad, arms=rows,
        install_bad=dict.fromkeys(INSTALL, 0) if install is None else install, **plain,  # type: ignore[arg-type]
    )  # fmt: skip


def test_the_sentence_names_devices_versions_and_how_unlikely_it_is() -> None:
    verdict = stop_gate(running(), evidence(arms(12, 188, {"confidence": (9, 0)})), 1.0)
    assert verdict is not None
    assert verdict.sentence.startswith(
        "stopped: 9 of 12 devices on 1.2.0 lost confidence, 0 of 188 on 1.1.0; "
        "if 1.2.0 were no worse this would happen less than once in "
    )
    assert (verdict.canary, verdict.bad, verdict.control, verdict.control_bad) == (12, 9, 188, 0)
    assert verdict.e_value is not None
    assert verdict.e_value > 100


def test_alpha_is_shared_out_whole() -> None:
    assert sum(weights(GateSpec()).values()) == pytest.approx(1.0)
    assert sum(weights(GateSpec(guards=("crash", "silence"))).values()) == pytest.approx(1.0)
    assert sum(weights(GateSpec(guards=("latency",))).values()) == pytest.approx(1.0)


def test_a_guard_that_is_off_stops_nothing() -> None:
    rows = arms(12, 188, {"confidence": (9, 0)})
    only = Arms(rows.stratum, rows.canary, rows.order, Rows(rows.behaviour.judged, {"latency": rows.behaviour.bad["latency"]}))
    assert stop_gate(running(GateSpec(guards=("latency",))), evidence(only, install={}), 1.0) is None


def test_both_arms_alike_stop_nothing_however_bad() -> None:
    assert stop_gate(running(), evidence(arms(20, 180, {"confidence": (20, 180)})), 1.0) is None
    assert stop_gate(running(), evidence(arms(20, 180, {"error_rate": (4, 36)})), 1.0) is None


def test_two_ways_of_being_bad_are_both_named() -> None:
    verdict = stop_gate(running(), evidence(arms(40, 160, {"confidence": (9, 0), "latency": (12, 0)})), 1.0)
    assert verdict is not None
    assert "12 of 40 devices on 1.2.0 became slower" in verdict.sentence


def test_install_failures_are_held_against_a_ceiling() -> None:
    assert stop_gate(running(), evidence(arms(100, 100), install={"install_failure": 6}), 1.0) is None
    verdict = stop_gate(running(), evidence(arms(100, 100), install={"install_failure": 25}), 1.0)
    assert verdict is not None
    assert "25 of 100 devices told to run 1.2.0 could not install it; if no more than 5 % of devices did" in verdict.sentence


def test_evidence_of_a_wave_is_carried_into_the_next() -> None:
    state = running()
    first = evidence(arms(20, 180, {"error_rate": (2, 1)}))
    assert stop_gate(state, first, 1.0) is None
    carried, _ = step(state, Seen(go_on_gate(running(GateSpec(limit=0.5)), first, 100.0), log_evidence(state, first)), 100.0)
    assert carried.wave == 1
    quiet = evidence(arms(20, 20))
    both = log_evidence(carried, quiet)["health"]
    assert both == pytest.approx(log_evidence(state, first)["health"])


@pytest.mark.parametrize(
    ("good", "bad", "limit", "outcome"),
    [(59, 0, 0.075, "proceed"), (20, 0, 0.05, "hold"), (58, 1, 0.075, "hold"), (300, 6, 0.05, "proceed")],
)
def test_a_wave_goes_on_only_when_the_bound_is_under_the_limit(good: int, bad: int, limit: float, outcome: str) -> None:
    # two waves share 5 %: 0 of 59 shows < 1 - 0.025 ** (1 / 59) = 6.06 %, 0 of 20 < 16.8 %, 1 of 59 < 9.1 %, 6 of 306 < 4.2 %
    rows = arms(good + bad, 200, {"error_rate": (bad, 0)})
    verdict = go_on_gate(running(GateSpec(limit=limit)), evidence(rows, eligible=1000), 100.0)
    assert verdict.outcome == outcome, verdict.sentence


def test_an_inconclusive_wave_says_how_many_good_devices_would_decide() -> None:
    verdict = go_on_gate(running(), evidence(arms(20, 180)), 100.0)
    assert verdict.outcome == "hold"
    assert "fewer than 17 % are, limit 5 %; 72 devices with no more bad ones would show it" in verdict.sentence
    assert 1 - 0.025 ** (1 / 72) <= 0.05 < 1 - 0.025 ** (1 / 71)


def test_nothing_goes_on_before_the_soak_or_while_devices_are_pending() -> None:
    gate = GateSpec(limit=0.5)
    assert go_on_gate(running(gate), evidence(arms(60, 140)), 59.0).outcome == "wait"
    waiting = evidence(arms(60, 140), settled=40, pending=20)
    assert go_on_gate(running(gate), waiting, 61.0).outcome == "wait"
    assert go_on_gate(running(gate), waiting, 601.0).outcome == "proceed"
    assert go_on_gate(running(gate), evidence(arms(60, 140), settled=0, pending=60), 601.0).outcome == "hold"


def test_the_forecast_says_which_waves_will_need_a_person() -> None:
    lines = forecast(GateSpec(), (0.1, 0.9), 200)
    assert "wave 1: 20 devices; none bad shows fewer than 17 %, not the limit of 5 %" in lines[0]
    assert "hold" not in lines[1]
    assert "too few for a statistical guarantee" in forecast(GateSpec(), (0.1, 0.9), 40)[0]


EDGES = (0.5, 0.6, 0.7, 0.8, 0.9)


def version(name: str, counts: tuple[int, ...], edges: tuple[float, ...] = EDGES) -> VersionFacts:
    return VersionFacts("kws", name, name.ljust(64, "0"), "p", "s", frozenset({"onnxruntime"}), Histogram(edges, counts))


def test_unsure_answers_are_those_below_the_references_five_percent() -> None:
    (rule,) = low_rules(version("1", (20, 30, 100, 150, 300, 400)), None)
    assert rule == LowRule(EDGES, 2, upper_bound(50, 1000, 0.05))


def test_a_model_unsure_of_everything_is_measured_by_what_ran_before() -> None:
    before = version("1", (20, 30, 100, 150, 300, 400))
    unsure = version("2", (300, 200, 200, 200, 50, 50), (0.2, 0.3, 0.4, 0.5, 0.7))
    rules = low_rules(unsure, before)
    assert rules[1].bins == 4  # 0.5 is the last of its edges that is not above 0.6, the line of the version before
    said = TelemetrySum("d", "2", 100, 0, 0, confidence=Histogram(unsure.confidence.edges, (30, 20, 20, 20, 5, 5)))  # type: ignore[union-attr]
    assert judge([said], {}, {"2": rules}, 20).bad["confidence"].tolist() == [True]
    assert judge([said], {}, {"2": rules[:1]}, 20).bad["confidence"].tolist() == [False]


def test_a_device_is_judged_by_its_own_past() -> None:
    before = {"d": TelemetrySum("d", "1", 90, 10, 0)}
    same, worse = TelemetrySum("d", "2", 88, 12, 0), TelemetrySum("d", "2", 60, 40, 0)
    assert judge([same, worse, None], before, {}, 20).bad["error_rate"].tolist() == [False, True, False]
    assert judge([same, worse, None], before, {}, 20).judged.tolist() == [True, True, False]


def test_a_version_may_ask_the_cloud_as_often_as_export_promised() -> None:
    kept, broken = TelemetrySum("d", "2", 200, 0, 40), TelemetrySum("d", "2", 200, 0, 100)  # a fifth, a half
    assert judge([kept, broken], {}, {}, 20, {"2": 0.2}).bad["fallback"].tolist() == [False, True]
    assert judge([kept, broken], {}, {}, 20, {"1": 0.2}).bad["fallback"].tolist() == [True, True]


def test_ten_percent_slower_is_borne_and_half_as_slow_again_is_not() -> None:
    def sketch(factor: float) -> LatencySketch:
        draw, buckets = random.Random(3), dict[int, int]()
        for _ in range(500):
            index = latency_bucket(0.01 * factor * math.exp(draw.gauss(0, 0.05)))
            buckets[index] = buckets.get(index, 0) + 1
        return LatencySketch(buckets)

    before = {"d": TelemetrySum("d", "1", 500, 0, 0, latency=sketch(1.0))}
    sums = [TelemetrySum("d", "2", 500, 0, 0, latency=sketch(factor)) for factor in (1.0, 1.1, 1.5)]
    assert judge(sums, before, {}, 20).bad["latency"].tolist() == [False, False, True]


@pytest.mark.slow
def test_the_promises_of_the_gate_hold_in_simulation() -> None:
    table = measure(1000, seed=11)
    assert table.false_stop <= 0.01
    assert table.false_stop_sites <= 0.01
    assert table.stop_1_10_median is not None
    assert table.stop_1_10_p90 is not None
    assert table.crash_median is not None
    assert table.stop_1_10_median <= 70
    assert table.stop_1_10_p90 <= 150
    assert table.crash_median <= 15
