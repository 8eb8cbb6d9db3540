"""What a delta is worth: `python -m benchmarks.delta [--json]`.

Weights of MLPerf Tiny models (where they are found), of the digits model fine-tuned for three epochs, and noise of a known size
on them, as fp32 and as int8 (per tensor, old scales). Sizes are shares of the new bundle; `zstd`, `zstd from` (with the
old file as dictionary) and `bsdiff` are shown where the packages zstandard and bsdiff4 are installed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import lzma
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeml.fleet.deltas import make_delta, read_contents
from edgeml.runtime.delta import apply_delta
from tests.conftest import ROOT
from tests.unit.fleet_bundles import make_bundle

Weights = list[npt.NDArray[np.float32]]
SHARES_OF_SIGMA: Final = (0.002, 0.01, 0.05, 0.2)
MOST_WEIGHTS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Row:
    case: str
    precision: str
    bytes: int
    delta: float
    xz: float
    zstd: float | None
    zstd_from: float | None
    bsdiff: float | None
    make_s: float
    apply_s: float


def models() -> Iterator[tuple[str, Weights]]:
    """Published weights, as they are; noise of the same kind where there are none."""
    folders = [ROOT.parent / "shared" / "models" / "mlperf-tiny", Path.home() / ".cache/edgeml/models/mlperf-tiny"]
    folder = next((place for place in folders if place.is_dir()), None)
    for name in ("ic_resnet8", "vww_mobilenetv1"):
        if folder is not None and (folder / f"{name}.h5").is_file():
            yield name, _h5(folder / f"{name}.h5")
    if folder is None:
        yield "noise", [np.random.default_rng(1).normal(0, 0.1, 250_000).astype(np.float32)]


def _h5(path: Path) -> Weights:
    h5py: Any = importlib.import_module("h5py")
    found: Weights = []

    def visit(_: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype == np.float32 and item.size > 16:
            found.append(np.asarray(item, np.float32).ravel())

    with h5py.File(path) as file:
        file.get("model_weights", file).visititems(visit)
    return found


def nudged(weights: Weights, share: float, seed: int = 5) -> Weights:
    rng = np.random.default_rng(seed)
    return [(w + rng.normal(0, share * max(float(w.std()), 1e-6), w.shape)).astype(np.float32) for w in weights]


def fine_tuned() -> tuple[Weights, Weights]:
    """The digits model 1.0.0, and the same after three epochs more at a tenth of the rate."""
    import torch

    from examples.digits import data
    from examples.digits.model import HERE, MeterReader

    torch.manual_seed(1)
    torch.set_num_threads(1)
    stored = np.load(HERE / "weights-1.0.0.npz")
    model = MeterReader()
    model.load_state_dict({name: torch.from_numpy(stored[name]) for name in stored.files})
    before = _state(model)
    part = data.parts().train
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4)
    for _ in range(3):
        for start in range(0, len(part.x) - 31, 32):
            x, y = torch.from_numpy(part.x[start : start + 32]), torch.from_numpy(part.y[start : start + 32])
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return before, _state(model)


def _state(model: Any) -> Weights:
    return [w.detach().numpy().astype(np.float32).ravel().copy() for w in model.state_dict().values() if w.numel() > 1]


def fp32(weights: Weights, _: Weights) -> bytes:
    return b"".join(b"tensor" + w.tobytes() for w in weights)


def int8(weights: Weights, scales_of: Weights) -> bytes:
    packed = []
    for w, old in zip(weights, scales_of, strict=True):
        scale = max(float(np.abs(old).max()), 1e-9) / 127
        packed.append(b"tensor" + np.clip(np.round(w / scale), -128, 127).astype(np.int8).tobytes())
    return b"".join(packed)


def measure(case: str, precision: str, old: bytes, new: bytes, folder: Path) -> Row:
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
        case, precision, size, len(delta) / size, len(lzma.compress(b)) / size,
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


def cases() -> Iterator[tuple[str, str, bytes, bytes]]:
    forms: tuple[tuple[str, Callable[[Weights, Weights], bytes]], ...] = (("fp32", fp32), ("int8", int8))
    pairs: list[tuple[str, Weights, Weights]] = [("digits, 3 epochs further", *fine_tuned())]
    for name, weights in models():
        pairs += [(f"{name}, {share:.1%} of sigma", weights, nudged(weights, share)) for share in SHARES_OF_SIGMA]
        anew = [np.random.default_rng(8).permutation(w) for w in weights]
        pairs.append((f"{name}, trained anew", weights, anew))
    for case, old, new in pairs:
        for precision, form in forms:
            yield case, precision, form(old, old), form(new, old)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    arguments = parser.parse_args()
    rows: list[Row] = []
    if not arguments.json:
        print("case, precision: bytes of the bundle | delta | xz | zstd 19 | zstd from old | bsdiff | make, apply in s")
    with tempfile.TemporaryDirectory() as folder:
        for case in cases():
            row = measure(*case, Path(folder))
            rows.append(row)
            if not arguments.json:
                shares = [row.delta, row.xz, row.zstd, row.zstd_from, row.bsdiff]
                text = " | ".join("-" if share is None else f"{share:.1%}" for share in shares)
                print(f"{row.case}, {row.precision}: {row.bytes} | {text} | {row.make_s:.2f}, {row.apply_s:.2f}", flush=True)
    print(json.dumps({"benchmark": "delta", "rows": [asdict(row) for row in rows]}))


if __name__ == "__main__":
    main()
