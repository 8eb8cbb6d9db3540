"""What an update weighs as a difference: `python -m benchmarks.delta [--json] [--models a,b]`.

Zoo models, trained for an epoch more at a tenth of the rate, and both versions exported, each artifact in a bundle of its
own. Sizes are shares of the new packed bundle; `xz` and `zstd` pack it by itself, `zstd from` has the old one as dictionary,
`bsdiff` is against it; these need the packages zstandard and bsdiff4. `moved` is how many of the model file's bytes differ.

Below it, for int8 in ONNX: what a weight's difference holds in bits, and would if the new version had the old one's scales.
A run goes on where it stopped: exported files are kept in the zoo's cache.
"""

from __future__ import annotations

import argparse
import importlib
import json
import lzma
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks._further import artifacts
from benchmarks._scales import bits
from benchmarks.zoo.registry import ZOO
from edgeml.fleet.deltas import make_delta, read_contents
from edgeml.runtime.delta import apply_delta
from tests.unit.fleet_bundles import make_bundle

MODELS: Final = (
    "sound-dscnn", "sound-keras-lstm", "digit-mlp", "digit-autoencoder", "sound-conv1d", "sound-gru", "sound-tcresnet",
    "sound-transformer", "photo-mobilenetv2", "photo-shufflenet", "photo-vit", "scene-unet",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    model: str
    artifact: str
    bytes: int
    moved: float
    delta: float
    xz: float
    zstd: float | None
    zstd_from: float | None
    bsdiff: float | None
    make_s: float
    apply_s: float


def measure(model: str, artifact: str, old: bytes, new: bytes, folder: Path) -> Row:
    base = make_bundle(folder / "old", version="1.0.0", model=old)
    target = make_bundle(folder / "new", version="1.1.0", model=new)
    began = time.perf_counter()
    delta = make_delta(read_contents(base), read_contents(target))
    made = time.perf_counter()
    (folder / "delta").write_bytes(delta)
    manifest, size = read_contents(target).manifest.digest, target.stat().st_size
    apply_delta(folder / "delta", base, folder / "result", manifest_sha256=manifest, result_bytes=size)
    applied = time.perf_counter()
    assert (folder / "result").read_bytes() == target.read_bytes()
    a, b = base.read_bytes(), target.read_bytes()
    zstd, bsdiff = _optional("zstandard"), _optional("bsdiff4")
    return Row(
        model, artifact, size, moved(old, new), len(delta) / size, len(lzma.compress(b)) / size,
        None if zstd is None else len(zstd.ZstdCompressor(level=19).compress(b)) / size,
        None if zstd is None else len(_from(zstd, a, b)) / size,
        None if bsdiff is None else len(bsdiff.diff(a, b)) / size,
        made - began, applied - made,
    )  # fmt: skip


def _from(zstd: Any, old: bytes, new: bytes) -> bytes:
    dictionary = zstd.ZstdCompressionDict(old, dict_type=zstd.DICT_TYPE_RAWCONTENT)
    parameters = zstd.ZstdCompressionParameters.from_level(19, window_log=25)
    packed: bytes = zstd.ZstdCompressor(dict_data=dictionary, compression_params=parameters).compress(new)
    return packed


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None


def moved(old: bytes, new: bytes) -> float:
    size = min(len(old), len(new))
    same = np.frombuffer(old, np.uint8, size) == np.frombuffer(new, np.uint8, size)
    return 1 - float(same.sum()) / len(new)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    parser.add_argument("--models", default=",".join(MODELS))
    arguments = parser.parse_args()
    rows: list[Row] = []
    scales = {}
    if not arguments.json:
        print("| model | artifact | kB | bytes that differ | delta | xz | zstd | zstd from | bsdiff | make, s | apply, s |")
        print("|---|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models.split(","):
            files = artifacts(ZOO[name])
            old, new = files["old"].get("onnx int8"), files["new"].get("onnx int8")
            scales[name] = None if old is None or new is None else bits(old, new)
            for artifact in sorted(files["old"].keys() & files["new"].keys()):
                rows.append(measure(name, artifact, files["old"][artifact], files["new"][artifact], Path(folder)))
                if not arguments.json:
                    print(line(rows[-1]), flush=True)
    if not arguments.json:
        for name, found in scales.items():
            if found is not None:
                held = f"{found.as_is:.2f} bits a weight, on the old scales {found.on_old_scales:.2f}"
                print(f"{name}: {held}; scales moved by {found.scales_moved:.2%}")
    by_model = {name: None if found is None else asdict(found) for name, found in scales.items()}
    print(json.dumps({"benchmark": "delta", "rows": [asdict(row) for row in rows], "scales": by_model}))


def line(row: Row) -> str:
    others = [row.xz, row.zstd, row.zstd_from, row.bsdiff]
    shown = [f"**{row.delta:.1%}**", *("-" if share is None else f"{share:.1%}" for share in others)]
    times = [f"{row.make_s:.1f}", f"{row.apply_s:.2f}"]
    return "| " + " | ".join([row.model, row.artifact, f"{row.bytes / 1e3:.0f}", f"{row.moved:.0%}", *shown, *times]) + " |"


if __name__ == "__main__":
    main()
