from __future__ import annotations

from pathlib import Path

import pytest

from edgeml.runtime.board import Board, Zone, read_board
from edgeml.runtime.doctor import Finding, examine
from edgeml.runtime.status import ModelStatus, Status, screen

PI = {
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "61250\n",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
    "usr/bin/vcgencmd": "",
}
JETSON = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "48000\n",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal\n",
    "sys/class/thermal/thermal_zone1/temp": "83500\n",
    "sys/class/thermal/thermal_zone2/type": "cv0-thermal\n",
    "sys/class/thermal/thermal_zone2/temp": "-256000\n",  # that part is off
    "var/lib/nvpmodel/status": "pmode:0002 fmode:cool\n",
    "usr/sbin/nvpmodel": "",
    "usr/bin/tegrastats": "",
    "usr/lib/aarch64-linux-gnu/libnvinfer.so.10": "",
}


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def found(root: Path) -> dict[str, Finding]:
    return {finding.what: finding for finding in examine(root)}


def test_a_raspberry_pi_tells_its_name_heat_and_weak_power_supply(tmp_path: Path) -> None:
    board = read_board(machine(tmp_path, PI))
    assert (board.model, board.hottest) == ("Raspberry Pi 5 Model B Rev 1.0", Zone("cpu-thermal", 61.25))
    # 0x50005: bits 0 and 2 now, bits 16 and 18 since the start
    assert board.throttled == board.throttled_before == ("under-voltage", "throttled")
    assert not board.is_jetson


def test_the_doctor_of_a_raspberry_pi_asks_for_a_stronger_power_supply(tmp_path: Path) -> None:
    findings = found(machine(tmp_path, PI))
    assert findings["board"].detail.startswith("Raspberry Pi 5 Model B Rev 1.0, ")
    assert findings["temperature"] == Finding("temperature", "ok", "cpu-thermal 61 °C")
    assert findings["throttling"] == Finding("throttling", "note", "now under-voltage, throttled; use a stronger power supply")
    assert findings["board tools"].detail.endswith("/usr/bin/vcgencmd")
    assert "power mode" not in findings


@pytest.mark.parametrize(
    ("bits", "status", "detail"),
    [
        ("0", "ok", "none since the start"),
        ("80000", "note", "since the start soft temperature limit; cool the board"),  # bit 19
        ("10000", "note", "since the start under-voltage; use a stronger power supply"),  # bit 16
    ],
)
def test_what_was_throttled_is_told_with_the_remedy(tmp_path: Path, bits: str, status: str, detail: str) -> None:
    findings = found(machine(tmp_path, PI | {"sys/devices/platform/soc/soc:firmware/get_throttled": bits}))
    assert (findings["throttling"].status, findings["throttling"].detail) == (status, detail)


def test_the_doctor_of_a_jetson_tells_mode_tools_and_what_its_engine_lacks(tmp_path: Path) -> None:
    findings = found(machine(tmp_path, JETSON))
    assert "NVIDIA Jetson Orin Nano Developer Kit, R36 (release), REVISION: 4.3" in findings["board"].detail
    assert findings["temperature"].status == "note"
    assert findings["temperature"].detail.startswith("cpu-thermal 48 °C, gpu-thermal 84 °C; hot")
    assert findings["power mode"].detail.startswith("nvpmodel 2;")
    assert findings["tensorrt"].status == "ok"
    assert "tegrastats" in findings["board tools"].detail
    assert {"provider cuda", "provider tensorrt"} <= {*findings}


def test_a_machine_that_says_nothing_has_no_lines_about_it(tmp_path: Path) -> None:
    assert read_board(tmp_path) == Board()
    assert not {"temperature", "throttling", "power mode", "board tools", "tensorrt"} & {*found(tmp_path)}


def test_garbage_in_the_kernels_files_is_no_fact(tmp_path: Path) -> None:
    broken = dict.fromkeys(JETSON | PI, "\xff\n?")
    board = read_board(machine(tmp_path, broken))
    assert (board.zones, board.throttled, board.power_mode) == ((), None, None)


STATUS = Status(
    device="gate-7",
    pid=4711,
    at=1000.0,
    link="connected, MQTT 5",
    service="ok",
    spool_rows=3,
    spool_dropped=0,
    ignored=0,
    models=(
        ModelStatus("meter", "soaking", 7, "1.1.0", "ab" * 32, "1.1.0", artifact="tflite:int8", calls=10342),
        ModelStatus(
            "kws",
            "failed",
            6,
            "2.0.0",
            "cd" * 32,
            "1.0.0",
            code="self_test",
            detail="off",
            artifact="onnx:fp32",
            calls=9,
            errors=2,
        ),
    ),
    board=Board("Raspberry Pi 5", zones=(Zone("cpu", 61.25),), throttled=("throttled",)),
)


def test_the_status_is_one_screen_with_what_is_wrong_below_its_model() -> None:
    assert screen(STATUS, now=1002.0) == (
        "device   gate-7, pid 4711, 2 s ago\n"
        "link     connected, MQTT 5\n"
        "service  ok\n"
        "spool    3 waiting, 0 dropped\n"
        "board    Raspberry Pi 5; 61 °C; now throttled\n"
        "\n"
        "model  answers with          artifact     calls  errors  update\n"
        "meter  1.1.0 (abababababab)  tflite:int8  10342       0  1.1.0 soaking, rev 7\n"
        "kws    1.0.0 (cdcdcdcdcdcd)  onnx:fp32        9       2  2.0.0 failed, rev 6\n"
        "  ! self_test: off"
    )


def test_a_long_reason_is_wrapped_to_the_screen() -> None:
    model = ModelStatus("kws", "failed", 6, "2.0.0", None, None, code="download", detail="no answer " * 30)
    lines = screen(Status("d", 1, 0.0, "l", "ok", 0, 0, 0, (model,)), now=0.0).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[-1].startswith("    answer no answer")


def test_a_device_without_a_model_says_how_to_get_one() -> None:
    assert "give [models.NAME] a bundle" in screen(Status("d", 1, 0.0, "l", "ok", 0, 0, 0, ()), now=7200.0)
