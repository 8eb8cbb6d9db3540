"""The latency an export reports is a median with an interval that means something."""

from __future__ import annotations

import numpy as np

from edgeml.exporter.outcome import latency_of


def test_the_interval_holds_the_true_median_nineteen_times_in_twenty() -> None:
    generator = np.random.default_rng(11)
    held = 0
    for _ in range(400):
        found = latency_of(tuple(generator.lognormal(0.0, 0.3, 50)))  # whose median is 1
        assert found.low_s <= found.p50_s <= found.high_s
        held += found.low_s <= 1.0 <= found.high_s
    assert 370 <= held <= 396  # 380 expected, with a standard deviation of 4.4


def test_p99_needs_a_thousand_calls() -> None:
    times = tuple(1e-6 * i for i in range(1000))
    assert latency_of(times[:999]).p99_s is None
    assert latency_of(times).p99_s == np.quantile(times, 0.99)
