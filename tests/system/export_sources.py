"""Tiny models of every kind of source, each built by the framework that writes such files, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from edgeml.exporter.quantize.tflite import to_int8_tflite
from edgeml.runtime.backends import EngineOptions, opener

QUIET: Final = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}

KERAS: Final = """
import keras
keras.utils.set_random_seed(1)
model = keras.Sequential([
    keras.Input((8, 8, 1), name="image"),
    keras.layers.Conv2D(4, 3, activation="relu"),
    keras.layers.Flatten(),
    keras.layers.Dense(3, activation="softmax", name="probs"),
])
model.save("three.keras")
model.export("saved", verbose=False)
import tensorflow as tf
open("three.tflite", "wb").write(tf.lite.TFLiteConverter.from_saved_model("saved").convert())


class Signed(tf.Module):
    def __init__(self):
        self.weight = tf.Variable([[0.5 * row - 0.01 * column for column in range(512)] for row in range(4)])

    @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32, name="x")])
    def once(self, x):
        return {"y": x @ self.weight}

    @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32, name="x")])
    def doubled(self, x):
        return {"y": 2.0 * (x @ self.weight)}


signed = Signed()
tf.saved_model.save(signed, "signed", signatures={"once": signed.once, "doubled": signed.doubled})
model.layers[-1].kernel.assign(model.layers[-1].kernel * float("nan"))
model.save("nan.keras")
model.export("nan_saved", verbose=False)
"""

LEGACY: Final = """
import tf_keras as keras
keras.utils.set_random_seed(1)
left, right = keras.Input((6,), name="left"), keras.Input((6,), name="right")
hidden = keras.layers.Dense(128, activation="relu")(keras.layers.Concatenate()([left, right]))
outputs = [keras.layers.Dense(4, name="one")(hidden), keras.layers.Dense(4, name="two")(hidden)]
keras.Model([left, right], outputs).save("two.h5")
x = keras.Input((4,), name="x")
keras.Model(x, keras.layers.Lambda(lambda t: t * 2, name="doubled")(x)).save("lambda.h5")
broken = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="dense")])
broken.layers[0].kernel.assign(broken.layers[0].kernel * float("nan"))
broken.save("nan.h5")
"""

FACTORY: Final = """
import torch


def make():
    torch.manual_seed(3)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Flatten(), torch.nn.Linear(128, 10),
    )
    return net, (torch.zeros(1, 1, 8, 8),)


class Shrink(torch.nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


def odd():
    return Shrink(), (torch.zeros(1, 4),)


class Determinant(torch.nn.Module):
    def forward(self, x):
        return torch.linalg.det(x)[:, None]


def no_coreml():
    return Determinant(), (torch.eye(3)[None],)


def shapeless():
    return torch.nn.Linear(4, 2)


def nan():
    layer = torch.nn.Linear(4, 2)
    layer.weight.data[0, 0] = float("nan")
    return layer, (torch.zeros(1, 4),)


class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.table, self.mix = torch.nn.Embedding(20, 64), torch.nn.Linear(67, 16)

    def forward(self, tokens, extra):
        pooled = self.table(tokens).mean(1)
        scores = self.mix(torch.cat([pooled, extra], 1))
        return {"scores": scores, "pooled": pooled}


def two():
    return Two(), (torch.zeros(1, 5, dtype=torch.int64), torch.zeros(1, 3))


class Gain(torch.nn.Module):
    def __init__(self, gain):
        super().__init__()
        self.gain = gain

    def forward(self, x):
        return x * self.gain


def tuned():
    with open("gain.txt") as file:
        return Gain(float(file.read())), (torch.ones(1, 4),)


class Frames(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.filter, self.mix = torch.nn.Conv1d(6, 16, 3, padding=1), torch.nn.Linear(16, 4)

    def forward(self, x):
        each = self.mix(torch.relu(self.filter(x.transpose(1, 2))).transpose(1, 2))
        return {"each": each, "whole": torch.softmax(each.mean(1), -1)}


def frames():
    return Frames(), (torch.zeros(1, 8, 6),), {"x": {1: "frames"}}


class Step(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(6)
        self.cell, self.mix = torch.nn.GRUCell(6, 16), torch.nn.Linear(16, 4)

    def forward(self, x, h):
        h = self.cell(x, h)
        return {"scores": torch.softmax(self.mix(h), -1), "h_out": h}


def step():
    return Step(), (torch.zeros(1, 6), torch.zeros(1, 16))


class Scaled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        self.mix = torch.nn.Linear(6, 64)

    def forward(self, x, gain):
        return self.mix(x) * gain


def scaled():
    return Scaled(), (torch.zeros(6), torch.tensor(1.0))


class Branch(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(8)
        self.first, self.left, self.right = torch.nn.Linear(4, 256), torch.nn.Linear(256, 8), torch.nn.Linear(256, 8)

    def forward(self, x):
        hidden = torch.relu(self.first(x))
        return torch.cond(x.sum() > 0, lambda x: self.left(x), lambda x: torch.tanh(self.right(x)), (hidden,))


def branch():
    return Branch(), (torch.ones(1, 4),)


def raises():
    raise RuntimeError("no weights here")


def wrong():
    return {"not": "a module"}
"""

TORCH: Final = """
import onnx
import torch
from nets import make
net, example = make()
net.eval()
batch = {0: torch.export.Dim("batch")}
torch.export.save(torch.export.export(net, (torch.zeros(2, 1, 8, 8),), dynamic_shapes=(batch,)), "any.pt2")
torch.export.save(torch.export.export(net, example), "one.pt2")
program = torch.onnx.export(net, (torch.zeros(2, 1, 8, 8),), dynamo=True, dynamic_shapes=(batch,), verbose=False)
program.save("net.onnx", external_data=False)
torch.save(net.state_dict(), "weights.pth")
torch.save(net.state_dict(), "old.pth", _use_new_zipfile_serialization=False)
torch.jit.trace(net, example).save("script.pt")
net[-1].weight.data[0, 0] = float("nan")
torch.export.save(torch.export.export(net, example), "nan.pt2")
torch.jit.trace(net, example, check_trace=False).save("nan.pt")
graph = onnx.load("net.onnx")
weight = graph.graph.initializer[0]
weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * float("nan"), weight.name))
onnx.save(graph, "nan.onnx")
"""


ROWS: Final = """
from sklearn.datasets import load_iris
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier


def network():
    x, y = load_iris(return_X_y=True)
    return make_pipeline(StandardScaler(), MLPClassifier((64, 32), random_state=0)).fit(x, y)


def tree():
    return DecisionTreeClassifier(random_state=0).fit(*load_iris(return_X_y=True))
"""


def write_code(folder: Path) -> None:
    """The Python files with factories."""
    (folder / "nets.py").write_text(FACTORY)
    (folder / "rows.py").write_text(ROWS)


MORE_KERAS: Final = """
import keras
keras.utils.set_random_seed(2)
rest = [keras.layers.Dense(64, activation="relu"), keras.layers.Dense(4, activation="softmax")]
keras.Sequential([keras.Input((8, 6), name="x"), keras.layers.GRU(32), *rest]).save("gru.keras")
"""

MORE_TORCH: Final = """
import torch
from nets import branch
net, example = branch()
torch.onnx.export(net.eval(), example, dynamo=True, verbose=False).save("branch.onnx", external_data=False)
"""


Part = Literal["keras", "legacy", "gru", "torch", "branch", "quantized"]
_CODE: Final[dict[Part, tuple[str, dict[str, str]]]] = {
    "keras": (KERAS, {}),
    "legacy": (LEGACY, {"TF_USE_LEGACY_KERAS": "1"}),
    "torch": (TORCH, {}),
    "gru": (MORE_KERAS, {}),
    "branch": (MORE_TORCH, {}),
}


def build(folder: Path) -> Path:
    """The sources of every framework in `folder`; about half a minute, most of it imports."""
    return build_parts(folder, "keras", "legacy", "torch")


def build_parts(folder: Path, *parts: Part) -> Path:
    """Python files with factories, and what the `parts` write; "quantized" needs "keras", and samples."""
    write_code(folder)
    for part in parts:
        if part == "quantized":
            (folder / "small.tflite").write_bytes(_quantized((folder / "three.tflite").read_bytes(), folder / "image.npz"))
            continue
        code, environment = _CODE[part]
        path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=folder,
            env={**os.environ, **QUIET, **environment, "PYTHONPATH": path},
            check=True,
            capture_output=True,
        )
    return folder


def write_samples(folder: Path) -> None:
    """Calibration samples of noise for each shape of input."""
    generator = np.random.default_rng(0)

    def noise(*shape: int) -> NDArray[np.float32]:
        return generator.normal(size=(64, *shape)).astype(np.float32)

    np.savez(folder / "image.npz", x=noise(8, 8, 1))
    np.savez(folder / "rows.npz", x=noise(8, 6))
    np.savez(folder / "plain.npz", x=noise(4))
    np.savez(folder / "planes.npz", x=noise(1, 8, 8))
    np.savez(folder / "sides.npz", left=noise(6), right=noise(6))
    np.savez(folder / "tokens.npz", tokens=generator.integers(0, 20, (64, 5)), extra=noise(3))
    np.savez(folder / "scaled.npz", x=noise(6), gain=noise())


def _quantized(model: bytes, samples: Path) -> bytes:
    with np.load(samples) as file:
        feeds = {opener("tflite")(model, EngineOptions()).inputs[0].name: file["x"]}
    return to_int8_tflite(model, feeds).model


def hurt(source: Path, target: Path) -> None:
    """A zip archive whose directory is whole, and whose largest member is not: its first half is zeros."""
    with zipfile.ZipFile(source) as whole, zipfile.ZipFile(target, "w") as damaged:
        largest = max(whole.infolist(), key=lambda member: member.file_size).filename
        largest = next(
            (m.filename for m in whole.infolist() if m.filename.endswith(("model.json", "model.weights.h5", "data.pkl"))),
            largest,
        )
        for member in whole.infolist():
            data = whole.read(member)
            damaged.writestr(member, bytes(len(data) // 2) + data[len(data) // 2 :] if member.filename == largest else data)
