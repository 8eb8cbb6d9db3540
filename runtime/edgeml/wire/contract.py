"""What a manifest must satisfy beyond the types of its fields.

Every size a reader would allocate by and every name it would look up is checked here once, before any blob is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from edgeml.wire.errors import BundleError
from edgeml.wire.manifest import Artifact, Binding, DType, Golden, GoldenOutput, Manifest, TensorBlob, TensorSpec

ELEMENT_LIMIT: Final = 2**31
LEAST_SCALE: Final = 2.0**-90  # a stored 32-bit integer times the scale stays a float32
MOST_SCALE: Final = 2.0**90
ITEM_BYTES: Final[dict[DType, int]] = {
    "float32": 4, "float16": 2, "float64": 8, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4,
    "int64": 8, "uint64": 8, "bool": 1,
}  # fmt: skip


def check_manifest(manifest: Manifest) -> None:
    """Hold a decoded manifest to its own claims.

    Raises:
        BundleError: naming the artifact, tensor or field that contradicts another.
    """
    _check_finite(manifest)
    _check_specs("input", manifest.signature.inputs)
    _check_specs("output", manifest.signature.outputs)
    if not manifest.artifacts:
        raise BundleError("the bundle has no artifacts", expected="at least 1", got="0")
    kinds = [(artifact.format, artifact.precision) for artifact in manifest.artifacts]
    _check_unique("artifact", [f"{format_}:{precision}" for format_, precision in kinds])
    samples = _check_golden_inputs(manifest)
    for artifact in manifest.artifacts:
        where = f"artifact {artifact.format}:{artifact.precision}"
        _check_bindings(f"{where}: input", artifact.inputs, manifest.signature.inputs)
        _check_bindings(f"{where}: output", artifact.outputs, manifest.signature.outputs)
        if artifact.golden is not None:
            _check_golden(where, artifact.golden, manifest, samples)
    _check_post(manifest)
    _check_reference(manifest)
    manifest.blobs()


def label(artifact: Artifact) -> str:
    """How people and messages name an artifact: `onnx:int8`."""
    return f"{artifact.format}:{artifact.precision}"


def _check_finite(manifest: Manifest) -> None:
    def walk(value: object, path: str) -> None:
        if isinstance(value, float) and not math.isfinite(value):
            raise BundleError(f"manifest: {path} is not finite: got {value}")
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{path}.{key}")
        elif isinstance(value, list | tuple):
            for position, inner in enumerate(value):
                walk(inner, f"{path}[{position}]")

    walk(msgspec.to_builtins(manifest), "manifest")


def _check_unique(what: str, names: Sequence[object]) -> None:
    seen: set[object] = set()
    for name in names:
        if name in seen:
            raise BundleError(f"{what} {name!r} stands twice")
        seen.add(name)


def _check_specs(side: str, specs: Sequence[TensorSpec]) -> None:
    if not specs:
        raise BundleError(f"the signature has no {side}s", expected="at least 1", got="0")
    _check_unique(f"signature {side}", [spec.name for spec in specs])
    for spec in specs:
        _check_axes(f"signature {side} {spec.name!r}", spec.shape)


def _check_axes(where: str, shape: Iterable[int | str]) -> None:
    elements = 1
    for axis in shape:
        if isinstance(axis, str):
            if not axis:
                raise BundleError(f"{where}: an axis has an empty name")
            continue
        if axis < 1:
            raise BundleError(f"{where}: an axis is too small", expected="at least 1", got=str(axis))
        elements *= axis
        if elements > ELEMENT_LIMIT:
            raise BundleError(
                f"{where} has too many elements", expected=f"at most {ELEMENT_LIMIT}", got=f"shape {tuple(shape)}"
            )


def _check_bindings(where: str, bindings: Sequence[Binding], specs: Sequence[TensorSpec]) -> None:
    bound, promised = sorted(binding.name for binding in bindings), sorted(spec.name for spec in specs)
    if bound != promised:
        raise BundleError(f"{where}s do not bind the signature", expected=", ".join(promised), got=", ".join(bound) or "none")
    _check_unique(f"{where} index", [binding.index for binding in bindings])
    for binding in bindings:
        name = f"{where} {binding.name!r}"
        _check_axes(name, binding.shape)
        if binding.permute is not None and sorted(binding.permute) != list(range(len(binding.shape))):
            expected = f"an order of the axes 0 to {len(binding.shape) - 1}"
            raise BundleError(f"{name}: permute", expected=expected, got=str(binding.permute))
        if binding.quantization is not None:
            _check_quantization(name, binding)


def _check_quantization(where: str, binding: Binding) -> None:
    assert binding.quantization is not None
    dtype = binding.dtype
    if not dtype.startswith(("int", "uint")):
        raise BundleError(f"{where} is quantized", expected="an integer dtype", got=dtype)
    if not LEAST_SCALE <= binding.quantization.scale <= MOST_SCALE:
        expected = f"{LEAST_SCALE:.3g} to {MOST_SCALE:.3g}"
        raise BundleError(f"{where}: scale", expected=expected, got=str(binding.quantization.scale))
    bits = 8 * ITEM_BYTES[dtype]
    least, most = (0, 2**bits - 1) if dtype.startswith("uint") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    if not least <= binding.quantization.zero_point <= most:
        raise BundleError(f"{where}: zero point", expected=f"{least} to {most}", got=str(binding.quantization.zero_point))


def _check_tensor(where: str, tensor: TensorBlob) -> None:
    elements = math.prod(tensor.shape)
    if elements > ELEMENT_LIMIT:
        raise BundleError(f"{where} has too many elements", expected=f"at most {ELEMENT_LIMIT}", got=str(elements))
    size = elements * ITEM_BYTES[tensor.dtype]
    if tensor.bytes != size:
        raise BundleError(f"{where}: bytes of {tensor.dtype} {tensor.shape}", expected=str(size), got=str(tensor.bytes))


def _check_golden_inputs(manifest: Manifest) -> int:
    """How many golden samples there are."""
    if not manifest.golden_inputs:
        return 0
    names = sorted(tensor.name for tensor in manifest.golden_inputs)
    promised = sorted(spec.name for spec in manifest.signature.inputs)
    if names != promised:
        raise BundleError("golden inputs do not fit the signature", expected=", ".join(promised), got=", ".join(names))
    for tensor in manifest.golden_inputs:
        _check_tensor(f"golden input {tensor.name!r}", tensor)
    counts = {tensor.shape[0] if tensor.shape else 0 for tensor in manifest.golden_inputs}
    if len(counts) != 1 or counts == {0}:
        raise BundleError("golden inputs", expected="one count of samples, at least 1", got=str(sorted(counts)))
    return counts.pop()


def _check_golden(where: str, golden: Golden, manifest: Manifest, samples: int) -> None:
    names = sorted(output.expected.name for output in golden.outputs)
    promised = sorted(spec.name for spec in manifest.signature.outputs)
    if names != promised:
        raise BundleError(f"{where}: golden outputs", expected=", ".join(promised), got=", ".join(names) or "none")
    for output in golden.outputs:
        name = f"{where}: golden output {output.expected.name!r}"
        _check_tensor(name, output.expected)
        got = output.expected.shape[0] if output.expected.shape else 0
        if got != samples:
            raise BundleError(f"{name}: samples", expected=str(samples), got=str(got))
        shifts = {"rms": output.rms, "bias": output.bias, "channel": output.channel, "gain": output.gain}
        for what, bound in {"tolerance": output.tolerance, **shifts}.items():
            if bound is not None and bound < 0:
                raise BundleError(f"{name}: {what}", expected="at least 0", got=str(bound))
        _check_units(name, output)


def _check_units(name: str, output: GoldenOutput) -> None:
    shape, axis = output.expected.shape, output.axis
    if axis is not None and not 1 <= axis < len(shape):
        raise BundleError(f"{name}: axis", expected=f"from 1 to {len(shape) - 1}", got=str(axis))
    count = 0 if axis is None else shape[axis]
    if len(output.units) != count:
        raise BundleError(f"{name}: units", expected=str(count), got=str(len(output.units)))
    if wrong := [unit for unit in output.units if not 0 < unit <= 1]:
        raise BundleError(f"{name}: unit", expected="more than 0, at most 1", got=str(wrong[0]))


def _check_post(manifest: Manifest) -> None:
    post = manifest.post
    if post is None:
        return
    outputs = {spec.name: spec for spec in manifest.signature.outputs}
    if post.output not in outputs:
        raise BundleError("post-processing reads an output", expected=", ".join(outputs), got=repr(post.output))
    if post.temperature <= 0:
        raise BundleError("post-processing: temperature", expected="more than 0", got=str(post.temperature))
    for artifact in manifest.artifacts:
        if artifact.deferral is not None and artifact.deferral.temperature <= 0:
            got = str(artifact.deferral.temperature)
            raise BundleError(f"artifact {label(artifact)}: temperature", expected="more than 0", got=got)
    shape = outputs[post.output].shape
    classes = shape[-1] if shape else 1
    if manifest.labels and isinstance(classes, int) and len(manifest.labels) not in {classes, 2 if classes == 1 else classes}:
        raise BundleError(f"labels of output {post.output!r}", expected=str(classes), got=str(len(manifest.labels)))


def _check_reference(manifest: Manifest) -> None:
    reference = manifest.reference
    if reference is None or not reference.classes or not manifest.labels:
        return
    if len(reference.classes) != len(manifest.labels):
        raise BundleError("reference class counts", expected=str(len(manifest.labels)), got=str(len(reference.classes)))
    if min(reference.classes) < 0:
        raise BundleError("reference class counts", expected="at least 0", got=str(min(reference.classes)))
