"""What the kernel and the maker's tools say about the board: a Raspberry Pi, a Jetson, or any Linux machine.

Reads files alone, under a root that can be given; a file that is not there is a fact that is not known.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from edgeml.wire.structs import learn

ROOT: Final = Path("/")
# Bits of get_throttled (Raspberry Pi documentation, vcgencmd); 16 higher, the same since the board was started.
_THROTTLE_BITS: Final = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
_SINCE_START: Final = 16
_SENSIBLE_CELSIUS: Final = (-60.0, 150.0)  # Jetsons show -256 for a sensor whose part is off


class Zone(msgspec.Struct, frozen=True):
    """A temperature sensor."""

    name: str
    celsius: float


class Board(msgspec.Struct, frozen=True):
    """`None` and empty: unknown. `throttled` holds words for now, `throttled_before` for some time since the start."""

    model: str | None = None
    release: str | None = None  # Jetson Linux
    zones: tuple[Zone, ...] = ()
    throttled: tuple[str, ...] | None = None
    throttled_before: tuple[str, ...] = ()
    power_mode: str | None = None  # nvpmodel's number
    tools: tuple[str, ...] = ()  # paths of the maker's tools
    tensorrt: str | None = None  # path of the system's TensorRT library

    @property
    def hottest(self) -> Zone | None:
        return max(self.zones, key=lambda zone: zone.celsius, default=None)

    @property
    def is_jetson(self) -> bool:
        return self.release is not None or "jetson" in (self.model or "").lower()


def read_board(root: Path = ROOT) -> Board:
    bits = firmware_bits(root)
    return Board(
        model=_text(root / "proc/device-tree/model"),
        release=_release(root),
        zones=zones(root),
        throttled=None if bits is None else _words(bits),
        throttled_before=() if bits is None else _words(bits >> _SINCE_START),
        power_mode=_power_mode(root),
        tools=tuple(str(path) for name in ("vcgencmd", "nvpmodel", "tegrastats") if (path := _program(root, name)) is not None),
        tensorrt=next((str(path) for path in sorted(root.glob("usr/lib/*-linux-gnu/libnvinfer.so.*"))), None),
    )


def zones(root: Path) -> tuple[Zone, ...]:
    """The board's temperature sensors that say something sensible."""
    found = []
    for folder in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        try:
            celsius = int((folder / "temp").read_text()) / 1000
        except (OSError, ValueError):
            continue
        least, most = _SENSIBLE_CELSIUS
        if least <= celsius <= most:
            found.append(Zone(_text(folder / "type") or folder.name, celsius))
    return tuple(found)


def firmware_bits(root: Path) -> int | None:
    """What a Raspberry Pi's get_throttled prints; `None` on other boards."""
    text = _text(root / "sys/devices/platform/soc/soc:firmware/get_throttled")
    try:
        return None if text is None else int(text, 16)
    except ValueError:
        return None


def _words(bits: int) -> tuple[str, ...]:
    return tuple(word for bit, word in _THROTTLE_BITS.items() if bits >> bit & 1)


def _release(root: Path) -> str | None:
    text = _text(root / "etc/nv_tegra_release")
    return None if not text else text.splitlines()[0].lstrip("# ")


def _power_mode(root: Path) -> str | None:
    """`pmode:0002 fmode:cool` -> `2`, as nvpmodel leaves it."""
    words = (_text(root / "var/lib/nvpmodel/status") or "").split()
    mode = next((word.removeprefix("pmode:") for word in words if word.startswith("pmode:")), None)
    return None if mode is None else mode.lstrip("0") or "0"


def _program(root: Path, name: str) -> Path | None:
    return next((path for folder in ("usr/bin", "usr/sbin", "bin") if (path := root / folder / name).is_file()), None)


def _text(path: Path) -> str | None:
    try:
        return path.read_bytes().rstrip(b"\0\n").decode("utf-8", "replace").strip()
    except OSError:
        return None


learn(__name__)
