"""`edgeml web`: a folder with a page that runs a bundle's golden vectors on onnxruntime-web, and shows whether they hold.

The folder needs no network: page, engine, models and vectors are in it. Any file server will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from edgeml.exporter.lifeline import work_folder
from edgeml.exporter.pack import check_folder, move_all
from edgeml.exporter.target.vectors import Vectors, golden_vectors
from edgeml.exporter.target.web_engine import FILES, WebEngine
from edgeml.runtime.bundle import Bundle, open_bundle
from edgeml.wire.canonical import sha256_hex
from edgeml.wire.contract import label
from edgeml.wire.errors import UnsupportedError, UsageError
from edgeml.wire.manifest import Artifact, DType, Quantization

DESCRIPTION: Final = "bundle.json"
PAGE: Final = ("index.html", "page.css", "check.mjs")
NO_ARRAY: Final[tuple[DType, ...]] = ("float16",)  # browsers are only learning to hold it


class PageTensor(msgspec.Struct, frozen=True):
    """A tensor of a model file, and the file of its golden values, one sample after the other."""

    name: str
    tensor: str
    dtype: DType
    shape: tuple[int, ...]
    file: str


class PageOutput(PageTensor, frozen=True, kw_only=True):
    """`expected_dtype` is how the file holds the expected values; `ranked`: its largest value is the class."""

    expected_dtype: str
    tolerance: float
    rms: float | None
    bias: float | None
    units: tuple[float, ...]
    ranked: bool
    quantization: Quantization | None


class PageArtifact(msgspec.Struct, frozen=True):
    label: str
    file: str
    bytes: int
    least_agreement: float
    inputs: tuple[PageTensor, ...]
    outputs: tuple[PageOutput, ...]


class PageBundle(msgspec.Struct, frozen=True):
    """What the page reads first."""

    name: str
    version: str
    digest: str
    samples: int
    artifacts: tuple[PageArtifact, ...]


def make_page(path: Path, out: Path, engine: WebEngine, labels: Sequence[str] = ()) -> PageBundle:
    """Write the folder; into one that is there already only if it holds such a page.

    Raises:
        UsageError: the bundle has no such artifact, or `out` holds something else.
        UnsupportedError: no artifact of the bundle runs in a browser.
    """
    _check_place(out)
    check_folder(out)
    with open_bundle(path) as bundle:
        chosen = _chosen(bundle, labels)
        contents: dict[str, bytes] = {}
        described = tuple(_artifact(bundle, artifact, contents) for artifact in chosen)
        manifest = bundle.manifest
        page = PageBundle(manifest.name, manifest.version, bundle.digest, manifest.golden_inputs[0].shape[0], described)
    contents[DESCRIPTION] = msgspec.json.format(msgspec.json.encode(page), indent=1)
    contents |= {name: files(__package__).joinpath("page", name).read_bytes() for name in PAGE}
    with work_folder() as folder:
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        move_all([*(folder / name for name in contents), *(engine.folder / name for name in FILES)], out)
    return page


def _check_place(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"-o {str(out)!r} is a file", hint="name a folder")
    if out.exists() and any(out.iterdir()) and not (out / DESCRIPTION).is_file():
        raise UsageError(f"-o {str(out)!r} holds other files", hint="name a folder that is empty, or not there yet")


def _chosen(bundle: Bundle, labels: Sequence[str]) -> list[Artifact]:
    held = {label(artifact): artifact for artifact in bundle.manifest.artifacts}
    for asked in labels:
        if asked not in held or held[asked].format != "onnx":
            runs = ", ".join(name for name, artifact in held.items() if artifact.format == "onnx")
            raise UsageError("--artifact", expected=runs or "an ONNX artifact, of which the bundle has none", got=repr(asked))
    found = [artifact for name, artifact in held.items() if artifact.format == "onnx" and (not labels or name in labels)]
    if not found:
        raise UnsupportedError(
            "the bundle has nothing that runs in a browser", expected="an ONNX artifact", got=", ".join(held),
            hint="`edgeml export --for browser` makes one",
        )  # fmt: skip
    return found


def _artifact(bundle: Bundle, artifact: Artifact, contents: dict[str, bytes]) -> PageArtifact:
    """Its part of the description; its files go into `contents`."""
    inputs, outputs = golden_vectors(bundle, artifact, artifact.inputs, artifact.outputs)
    assert artifact.golden is not None, "golden vectors were found"
    bounds = {output.expected.name: output for output in artifact.golden.outputs}
    post = bundle.manifest.post
    ranked = post.output if post is not None else bundle.manifest.signature.outputs[0].name
    for vectors in (*inputs, *outputs):
        if vectors.dtype in NO_ARRAY:
            raise UnsupportedError(f"{vectors.name!r} of {label(artifact)} is {vectors.dtype}, which pages cannot feed or read")
    file = f"{artifact.format}-{artifact.precision}.onnx"
    contents[file] = bundle.blob(artifact.sha256)
    return PageArtifact(
        label=label(artifact),
        file=file,
        bytes=artifact.bytes,
        least_agreement=artifact.golden.least_agreement,
        inputs=tuple(
            PageTensor(one.name, one.tensor, one.dtype, one.shape, _keep(one, contents)) for one in inputs
        ),
        outputs=tuple(
            PageOutput(
                one.name, one.tensor, one.dtype, one.shape, _keep(one, contents), expected_dtype=str(one.values.dtype),
                tolerance=bounds[one.name].tolerance, rms=bounds[one.name].rms, bias=bounds[one.name].bias,
                units=one.units or (1.0,), ranked=one.name == ranked, quantization=one.quantization,
            )
            for one in outputs
        ),
    )  # fmt: skip


def _keep(vectors: Vectors, contents: dict[str, bytes]) -> str:
    """The file that holds them, little-endian as typed arrays are."""
    values = vectors.values
    data = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes()
    name = f"{sha256_hex(data)[:16]}.bin"
    contents[name] = data
    return name
