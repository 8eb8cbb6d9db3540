"""`--for pi4`: which formats and precisions suit a device, and why; one record for each, in one table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edgeml.wire.errors import PlanError
from edgeml.wire.manifest import Artifact, Format, Precision

MIB: Final = 1 << 20
GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Preset:
    """A kind of device.

    `formats` and `precisions` are what an export makes if nothing else is asked for. `arch` names the machines as
    `platform.machine` does, empty where that says nothing. `ram_bytes` is what the smallest board of the kind has,
    `storage_bytes` where its program and model must fit together; 0: not what limits. `why` is the sentence the report
    carries; `after` names the command that goes on from the bundle. `whole`: int8 computes nothing in float.
    """

    name: str
    device: str
    formats: tuple[Format, ...]
    precisions: tuple[Precision, ...]
    why: str
    arch: tuple[str, ...] = ()
    ram_bytes: int = 0
    storage_bytes: int = 0
    after: str = "bench"
    whole: bool = False

    @property
    def needs(self) -> str:
        """The device as the report names it: `Raspberry Pi 5, aarch64, 1 GiB of memory or more`."""
        words = [self.device, *([" or ".join(self.arch)] if self.arch else [])]
        if self.ram_bytes:
            size = f"{self.ram_bytes // GIB} GiB" if self.ram_bytes >= GIB else f"{self.ram_bytes // 1024} KiB"
            words.append(f"{size} of memory or more")
        return ", ".join(words)

    def misfits(self, artifact: Artifact) -> str | None:
        """Why the device cannot hold an artifact, or `None`."""
        room = self.storage_bytes or self.ram_bytes
        if room and artifact.bytes > room:
            place = "flash" if self.storage_bytes else "memory"
            return f"{artifact.format} {artifact.precision} has {artifact.bytes:,} bytes; {self.device} has {room:,} of {place}"
        return None


PRESETS: Final[dict[str, Preset]] = {
    preset.name: preset
    for preset in (
        Preset(
            "pi4", "Raspberry Pi 4", ("onnx", "tflite"), ("fp32", "int8"),
            "its Cortex-A72 has no int8 dot product, so int8 saves memory and may not save time: fp32 goes along, and "
            "`edgeml bench` on the board decides. No fp16: the core has no arithmetic for it",
            arch=("aarch64", "armv7l"), ram_bytes=1 * GIB,
        ),
        Preset(
            "pi5", "Raspberry Pi 5", ("onnx", "tflite"), ("fp32", "int8"),
            "its Cortex-A76 has the int8 dot product, which LiteRT and ONNX Runtime use: int8 is likely to be the fastest; "
            "fp32 goes along for `edgeml bench` to compare",
            arch=("aarch64",), ram_bytes=1 * GIB,
        ),
        Preset(
            "jetson-orin", "Jetson Orin", ("onnx",), ("fp32", "fp16"),
            "ONNX Runtime hands it to TensorRT or CUDA, both of which compute fp16. No int8: TensorRT wants zero points of 0, "
            "and these files use the whole range",
            arch=("aarch64",), ram_bytes=4 * GIB,
        ),
        Preset(
            "iphone", "iPhone", ("coreml",), ("fp16", "int8"),
            "the Neural Engine computes in fp16 whatever the file says; int8 weights make the download smaller",
            after="verify",
        ),
        Preset(
            "cortex-m4", "a Cortex-M4 microcontroller", ("tflite",), ("int8",),
            "TensorFlow Lite Micro has int8 kernels for it, and int8 is a quarter of the flash and the arena; no layer stays "
            "float. `edgeml micro` writes the C sources and measures the arena",
            ram_bytes=256 * 1024, storage_bytes=1 * MIB, after="micro", whole=True,
        ),
        Preset(
            "browser", "a web browser", ("onnx",), ("fp32", "int8"),
            "onnxruntime-web runs both on WebAssembly; int8 is the smaller download, fp32 often the faster. `edgeml web` makes "
            "the page that proves it",
            after="web",
        ),
    )
}  # fmt: skip


def preset(name: str) -> Preset:
    """The record of a device.

    Raises:
        PlanError: there is none of that name.
    """
    found = PRESETS.get(name)
    if found is None:
        raise PlanError("--for", expected=" or ".join(PRESETS), got=repr(name))
    return found


def describe(found: Preset, formats: tuple[Format, ...], precisions: tuple[Precision, ...]) -> str:
    """What the report says: what was chosen, by whom, and why."""
    chosen = f"{', '.join(formats)} in {', '.join(precisions)}"
    if (formats, precisions) == (found.formats, found.precisions):
        return f"--for {found.name} ({found.needs}): {chosen}, since {found.why}"
    usual = f"{', '.join(found.formats)} in {', '.join(found.precisions)}"
    return f"--for {found.name} ({found.needs}): {chosen} as asked; {usual} would be usual, since {found.why}"
