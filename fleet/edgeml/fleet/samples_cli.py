"""`edgeml fleet samples`: inputs that devices were not sure of and were allowed to send: list, get as .npz, delete."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from edgeml.fleet import show
from edgeml.fleet.client import Client
from edgeml.fleet.options import DEFAULT_DATA, Data, Json, Url, open_client, print_answer
from edgeml.wire.errors import LinkError, UsageError
from edgeml.wire.samples import SampleTensor, decode_sample

PAGE: Final = 1000

app = typer.Typer(no_args_is_help=True, help="Inputs that devices were not sure of: list, get, delete.")

Device = Annotated[str | None, typer.Option("--device", metavar="ID", help="Of this device alone.")]
Model = Annotated[str | None, typer.Option("--model", metavar="NAME", help="Of this model alone.")]


@app.command("list")
def list_samples(
    device: Device = None, model: Model = None, data: Data = DEFAULT_DATA, url: Url = None, json: Json = False
) -> None:
    """Show samples, the newest first."""
    with open_client(data, url) as client:
        listed = _listed(client, device, model)
    print_answer(listed, json, show.samples(listed))


@app.command("get")
def get_samples(
    *,
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID", help="Without any, the newest 1,000 of --device and --model.")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="An .npz: one array per input, first axis samples.")
    ],
    device: Device = None,
    model: Model = None,
    data: Data = DEFAULT_DATA,
    url: Url = None,
    json: Json = False,
) -> None:
    """Write samples as one .npz, as `edgeml export` takes it for --calib and --eval."""
    if output.suffix != ".npz":
        raise UsageError("--output", expected="a name that ends in .npz", got=repr(str(output)))
    with open_client(data, url) as client:
        chosen = ids or [row["header"]["id"] for row in _listed(client, device, model)]
        arrays = stack([_arrays(client.download(f"/v1/samples/{sample}")) for sample in chosen])
    import numpy as np

    try:
        np.savez(output, allow_pickle=False, **arrays)
    except OSError as error:
        raise UsageError(f"cannot write {str(output)!r}: {error.strerror}") from error
    shapes = {name: list(array.shape) for name, array in arrays.items()}
    words = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
    print_answer({"file": str(output), "arrays": shapes}, json, f"wrote {output}: {words}")


@app.command("delete")
def delete_samples(
    *,
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="As `edgeml fleet samples list` names them.")] = None,
    device: Device = None,
    model: Model = None,
    data: Data = DEFAULT_DATA,
    url: Url = None,
    json: Json = False,
) -> None:
    """Delete samples: these, or all of a device or model."""
    if bool(ids) == (device is not None or model is not None):
        raise UsageError("what to delete", expected="ids, or --device or --model", got="both" if ids else "neither")
    asked = [{"id": sample} for sample in ids or []] or [
        {name: value for name, value in (("device", device), ("model", model)) if value is not None}
    ]
    with open_client(data, url) as client:
        count = sum(client.delete("/v1/samples", **query)["deleted"] for query in asked)
    print_answer({"deleted": count}, json, f"deleted {count}")


def stack(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """One array per input, samples along the first axis.

    Raises:
        UsageError: there are none, or they have other inputs or shapes than each other.
    """
    import numpy as np  # here: the other commands do without

    if not samples:
        raise UsageError("there are no such samples", hint="see `edgeml fleet samples list`")
    kinds = [{name: (array.dtype.name, array.shape) for name, array in sample.items()} for sample in samples]
    odd = next((kind for kind in kinds if kind != kinds[0]), None)
    if odd is not None:
        raise UsageError("samples of one file", expected=str(kinds[0]), got=str(odd), hint="get those of one --model, or by id")
    return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}


def _listed(client: Client, device: str | None, model: str | None) -> list[Any]:
    query: dict[str, str | int] = {name: value for name, value in (("device", device), ("model", model)) if value is not None}
    found: list[Any] = client.get("/v1/samples", limit=PAGE, **query)
    return found


def _arrays(data: bytes) -> dict[str, Any]:
    try:
        header, contents = decode_sample(data)
    except LinkError as error:
        raise UsageError(f"the service gave no sample: {error}") from error
    return {tensor.name: _array(tensor, content) for tensor, content in zip(header.tensors, contents, strict=True)}


def _array(tensor: SampleTensor, content: bytes) -> Any:
    import numpy as np

    return np.frombuffer(content, np.dtype(tensor.dtype).newbyteorder("<")).reshape(tensor.shape)
