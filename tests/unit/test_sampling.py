"""Vitals are what the kernel's files say; a file that is missing or broken is no fact. Boards are folders made here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgeml.runtime.sampling import FREQUENCY_CAPPED, Sampler, Vitals, hottest_celsius, throttle_bits

PI = {
    "proc/self/statm": "30000 12000 4000 1 0 9000 0\n",
    "sys/class/thermal/thermal_zone0/temp": "61250\n",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
    "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
    "sys/class/thermal/cooling_device0/cur_state": "2\n",
}
JETSON = {
    "sys/class/thermal/thermal_zone0/temp": "48000\n",
    "sys/class/thermal/thermal_zone1/temp": "83500\n",
    "sys/class/thermal/thermal_zone2/temp": "-256000\n",  # that part is off
    "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
    "sys/class/thermal/cooling_device0/cur_state": "3\n",
    "sys/class/thermal/cooling_device1/type": "cpufreq-cpu0\n",
    "sys/class/thermal/cooling_device1/cur_state": "0\n",
    "sys/class/thermal/cooling_device2/type": "devfreq-17000000.gpu\n",
    "sys/class/thermal/cooling_device2/cur_state": "0\n",
}


def board(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_raspberry_pi_tells_memory_heat_and_its_throttle_bits(tmp_path: Path) -> None:
    vitals = Sampler(board(tmp_path, PI), clock=lambda: 0.0).read()
    assert vitals == Vitals(12_000 * os.sysconf("SC_PAGE_SIZE"), None, 61.25, 0x50005)


def test_the_hottest_sensible_sensor_of_a_jetson_counts(tmp_path: Path) -> None:
    assert hottest_celsius(board(tmp_path, JETSON)) == 83.5


def test_a_jetson_is_throttled_when_its_cooling_caps_a_frequency_and_not_when_its_fan_turns(tmp_path: Path) -> None:
    root = board(tmp_path, JETSON)
    assert throttle_bits(root) == 0
    board(root, {"sys/class/thermal/cooling_device2/cur_state": "4\n"})
    assert throttle_bits(root) == FREQUENCY_CAPPED


def test_processor_time_is_a_share_of_one_core_since_the_last_sample() -> None:
    times, used = iter([10.0, 70.0, 130.0, 130.0]), iter([1.0, 31.0, 151.0, 152.0])
    sampler = Sampler(clock=lambda: next(times), cpu=lambda: next(used))
    shares = [sampler.read().cpu_share for _ in range(3)]
    assert shares == [0.5, 2.0, None]  # 30 s of 60 s; 120 s of 60 s; no time between


def test_a_machine_that_says_nothing_is_not_known(tmp_path: Path) -> None:
    assert Sampler(tmp_path, clock=lambda: 0.0).read() == Vitals()


@pytest.mark.parametrize("broken", ["", "?", "\xff\xfe", "one two three"])
def test_garbage_in_the_kernels_files_is_no_fact(tmp_path: Path, broken: str) -> None:
    root = board(tmp_path, dict.fromkeys(PI | JETSON, broken))
    assert Sampler(root, clock=lambda: 0.0).read() == Vitals()


def test_this_process_has_memory() -> None:
    rss_bytes = Sampler().read().rss_bytes
    assert rss_bytes is not None
    assert rss_bytes > 2**20
