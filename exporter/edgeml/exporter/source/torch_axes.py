"""Axes of a torch source whose size may vary: those that an exported program left open, or that a factory names.

return net, (torch.zeros(1, 20, 8),), {"x": {1: "frames"}}   # the form of torch.export's dynamic_shapes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from edgeml.wire.errors import ModelError
from edgeml.wire.manifest import BATCH, Signature, TensorSpec

Free = Mapping[tuple[int, int], str]
"""(input, axis) -> the axis' name."""


def of_program(program: Any, input_names: Sequence[str]) -> Free:
    """The open axes of a `torch.export` program; those that must have one size have one name."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    found: dict[tuple[int, int], str] = {}
    known: dict[str, str] = {}
    for place, name in enumerate(program.graph_signature.user_inputs):
        for axis, size in enumerate(getattr(values.get(name), "shape", ())):
            if not isinstance(size, int):
                label = input_names[place] if place < len(input_names) else name
                found[place, axis] = known.setdefault(str(size), f"{label}_{axis}")
    return found


def of_factory(told: Any, input_names: Sequence[str]) -> Free:
    """What a factory says of its inputs, by name or by position.

    Raises:
        ModelError: it is not of the form of `dynamic_shapes`.
    """
    by_name = told if isinstance(told, Mapping) else dict(zip(input_names, told, strict=False)) if _listed(told) else None
    if by_name is None or not all(isinstance(axes, Mapping) or axes is None for axes in by_name.values()):
        raise ModelError("the factory's third value", expected='{"x": {1: "frames"}}', got=repr(told)[:80])
    if unknown := set(by_name) - set(input_names):
        raise ModelError(f"the factory names axes of {min(unknown)!r}", expected=", ".join(input_names), got="no such input")
    return {
        (input_names.index(name), int(axis)): _axis_name(size, f"{name}_{axis}")
        for name, axes in by_name.items()
        for axis, size in (axes or {}).items()
    }


def _listed(told: Any) -> bool:
    return isinstance(told, (list, tuple))


def _axis_name(size: Any, otherwise: str) -> str:
    if isinstance(size, str):
        return size
    name = getattr(size, "__name__", None)  # of a torch.export.Dim
    return name if isinstance(name, str) else otherwise


def with_free_axes(torch: Any, flat: Any, examples: tuple[Any, ...], signature: Signature, free: Free) -> Signature:
    """The signature with names for axes that may vary; which axes of the outputs follow is found by running at another size.

    Raises:
        ModelError: the module takes no other size.
    """
    free = {at: name for at, name in free.items() if not (at[1] == 0 and signature.inputs[at[0]].has_batch)}
    if not free:
        return signature
    inputs = list(signature.inputs)
    for (place, axis), name in free.items():
        inputs[place] = _named(inputs[place], axis, name)
    opened = Signature(tuple(inputs), signature.outputs)
    sizes = {name: int(examples[place].shape[axis]) for (place, axis), name in free.items()}
    outputs = list(signature.outputs)
    with torch.no_grad():
        before = [tuple(tensor.shape) for tensor in flat(*examples)]
        for name in sizes:
            size, after = _other_size(flat, examples, opened, sizes, name)
            for place, (old, new) in enumerate(zip(before, after, strict=True)):
                for axis, (was, is_) in enumerate(zip(old, new, strict=True)):
                    if was != is_:
                        outputs[place] = _named(outputs[place], axis, name if is_ == size else f"{outputs[place].name}_{axis}")
    return Signature(tuple(inputs), tuple(outputs))


def _other_size(
    flat: Any, examples: tuple[Any, ...], signature: Signature, sizes: Mapping[str, int], name: str
) -> tuple[int, list[tuple[int, ...]]]:
    failure: Exception | None = None
    for size in (2 * sizes[name], sizes[name] + 1, max(sizes[name] // 2, 1)):
        try:
            return size, [tuple(tensor.shape) for tensor in flat(*resized(examples, signature, {**sizes, name: size}))]
        except Exception as error:  # noqa: BLE001 - whatever the module raises, it does not take this size
            failure = failure or error
    raise ModelError(f"axis {name!r} takes no other size than {sizes[name]}: {' '.join(str(failure).split())[:200]}")


def resized(examples: tuple[Any, ...], signature: Signature, sizes: Mapping[str, int]) -> tuple[Any, ...]:
    """Zeros of the examples' types, with the given sizes on named axes."""
    return tuple(
        tensor.new_zeros(
            [
                sizes.get(axis, int(size)) if isinstance(axis, str) and axis != BATCH else int(size)
                for axis, size in zip(spec.shape, tensor.shape, strict=True)
            ]
        )
        if any(isinstance(axis, str) and axis != BATCH for axis in spec.shape)
        else tensor
        for tensor, spec in zip(examples, signature.inputs, strict=True)
    )


def _named(spec: TensorSpec, axis: int, name: str) -> TensorSpec:
    return msgspec.structs.replace(spec, shape=(*spec.shape[:axis], name, *spec.shape[axis + 1 :]))
