"""Trains the meter reader, in seconds: `python examples/digits/train.py [VERSION ...]`.

1.0.0 and 1.1.0 learn from images in all the light a meter's housing has. 1.2.0 is the mistake of a Friday afternoon: somebody
trained on the workshop's clean images alone. It scores as well as the others on the workshop's evaluation set.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from examples.digits import data
from examples.digits.model import HERE, MeterReader


@dataclass(frozen=True, slots=True)
class Recipe:
    seed: int
    epochs: int
    in_housing_light: bool


RECIPES = {
    "1.0.0": Recipe(seed=1, epochs=30, in_housing_light=True),
    "1.1.0": Recipe(seed=11, epochs=45, in_housing_light=True),
    "1.2.0": Recipe(seed=2, epochs=30, in_housing_light=False),
}
BATCH = 32


def train(recipe: Recipe) -> MeterReader:
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(1)  # the sum order is part of the recipe
    rng = np.random.default_rng(recipe.seed)
    part = data.parts().train
    model = MeterReader()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=1e-3)
    steps = recipe.epochs * (len(part.x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=8e-3, total_steps=steps)
    for _ in range(recipe.epochs):
        order = rng.permutation(len(part.x))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            index = order[start : start + BATCH]
            loss = nn.functional.cross_entropy(
                model(torch.from_numpy(_seen(part.x[index], recipe, rng))),
                torch.from_numpy(part.y[index]),
                label_smoothing=0.02,
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return model.eval()


def _seen(x: data.Images, recipe: Recipe, rng: np.random.Generator) -> data.Images:
    if not recipe.in_housing_light:
        return x
    housed = data.through_the_housing(x, rng)
    return np.where(rng.random((len(x), 1, 1, 1)) < 0.6, housed, x)


@torch.no_grad()
def accuracy(model: nn.Module, part: data.Part) -> float:
    """Share of digits read right, 0 to 1."""
    guess = model(torch.from_numpy(part.x)).argmax(dim=1).numpy()
    return float((guess == part.y).mean())


def save(model: nn.Module, path: Path) -> str:
    """Writes the weights as an .npz with fixed timestamps; gives its sha256."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, tensor in model.state_dict().items():
            raw = io.BytesIO()
            np.save(raw, tensor.numpy())
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), raw.getvalue())
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", default=list(RECIPES))
    split = data.parts()
    index = HERE / "weights.json"
    known = json.loads(index.read_text()) if index.exists() else {}
    for version in parser.parse_args().versions:
        recipe = RECIPES[version]
        model = train(recipe)
        digest = save(model, HERE / f"weights-{version}.npz")
        workshop, field = accuracy(model, split.evaluate), accuracy(model, split.field)
        known[version] = {"sha256": digest, "recipe": f"train.py {version}", "torch": torch.__version__.split("+")[0]}
        print(f"{version}: workshop {workshop:.1%}, field {field:.1%}, {digest[:12]}")
    index.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
