"""Trains a network of PyTorch and writes it as a factory with weights, a program, TorchScript or ONNX."""

from __future__ import annotations

import importlib
import inspect
import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.zoo.recipe import FILES, HERE, Recipe
from benchmarks.zoo.samples import Samples, Splits
from edgeml.runtime.backends import Array

BATCH: Final = 64
NOISE: Final = 0.02  # of the inputs' deviation, added while training
FACTORY: Final = '''"""Builds a trained network."""

from pathlib import Path

import torch

from {module} import {name}


def build():
    net = {name}()
    net.load_state_dict(torch.load(Path(__file__).with_name("weights.pt"), weights_only=True))
    return net.eval(), {name}.example()
'''


def make(recipe: Recipe, splits: Splits, place: Path) -> tuple[list[Array], int]:
    """The answers to the evaluation samples, and how many parameters there are."""
    import torch

    assert splits.train is not None, "a network is trained on samples"
    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)
    module, _, name = recipe.net.partition(":")
    net_class: Any = getattr(importlib.import_module(f"benchmarks.zoo.{module}"), name)
    net = net_class()
    _fit(torch, net, recipe, splits.train)
    net.eval()
    shutil.copy(HERE / f"{module}.py", place)
    torch.save(net.state_dict(), place / "weights.pt")
    (place / "model.py").write_text(FACTORY.format(module=module, name=name), encoding="utf-8")
    _save(torch, net, net_class.example(), recipe, place)
    given = [torch.from_numpy(values) for values in splits.evaluate.inputs.values()]
    with torch.no_grad():
        rows = [net(*(values[start : start + 128] for values in given)) for start in range(0, len(splits.evaluate), 128)]
    outputs = list(zip(*rows, strict=True)) if isinstance(rows[0], tuple) else [rows]
    return [torch.cat(parts).numpy() for parts in outputs], sum(parameter.numel() for parameter in net.parameters())


def _fit(torch: Any, net: Any, recipe: Recipe, train: Samples) -> None:
    chance = np.random.default_rng(recipe.seed)
    inputs = [torch.from_numpy(values) for values in train.inputs.values()]
    labels = torch.from_numpy(np.ascontiguousarray(train.labels))
    noise = [NOISE * values.std() for values in inputs]
    steps = len(labels) // BATCH
    optimizer = torch.optim.AdamW(net.parameters(), recipe.rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=recipe.epochs * steps)
    for _ in range(recipe.epochs):
        order = torch.from_numpy(chance.permutation(len(labels)))
        for step in range(steps):
            at = order[step * BATCH : (step + 1) * BATCH]
            some = [values[at] for values in inputs]
            if recipe.roll:
                some[0] = some[0].roll(int(chance.integers(-recipe.roll, recipe.roll + 1)), dims=recipe.roll_axis)
            some = [values + by * torch.randn_like(values) for values, by in zip(some, noise, strict=True)]
            loss = _loss(torch, net, recipe.loss, some, labels[at])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()


def _loss(torch: Any, net: Any, kind: str, given: list[Any], labels: Any) -> Any:
    F = torch.nn.functional
    if kind == "classes":
        return F.cross_entropy(net(*given), labels, label_smoothing=0.05)
    if kind == "logits":
        return F.cross_entropy(net.logits(*given), labels)
    if kind == "mask":
        return F.binary_cross_entropy(net(*given), labels)
    boxes, scores = net.parts(*given)
    middle = (labels[:, :2] + labels[:, 2:4]) / 2
    cell = ((middle / 80).long().clamp(0, 7) * torch.tensor([1, 8])).sum(dim=1)
    each = torch.arange(len(cell))
    wanted = torch.zeros_like(scores)
    wanted[each, labels[:, 4].long(), cell] = 1
    near = F.smooth_l1_loss(boxes[each, :, cell] / 80, labels[:, :4] / 80)
    return 4 * near + F.binary_cross_entropy_with_logits(scores, wanted, reduction="sum") / len(cell)


def _save(torch: Any, net: Any, example: tuple[Any, ...], recipe: Recipe, place: Path) -> None:
    if recipe.kind == "torch":
        return
    path = str(place / FILES[recipe.kind])
    if recipe.kind == "torchscript":
        torch.jit.trace(net, example).save(path)
        return
    names = list(inspect.signature(net.forward).parameters)
    two = tuple(values.repeat(2, *[1] * (values.ndim - 1)) for values in example)
    shapes = {name: {0: torch.export.Dim("batch")} for name in names}
    if recipe.kind == "torch-pt2":
        torch.export.save(torch.export.export(net, two, dynamic_shapes=shapes), path)
    else:
        torch.onnx.export(net, two, path, input_names=names, dynamic_shapes=shapes, dynamo=True, external_data=False)
