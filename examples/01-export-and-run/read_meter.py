"""Reads meters with a bundle: `python read_meter.py BUNDLE IMAGES.npz`."""

import sys

import numpy as np

from edgeml.runtime import load

meter = load(sys.argv[1])  # the best artifact for this board, every byte checked, golden vectors run
with np.load(sys.argv[2], allow_pickle=False) as field:
    images, digits = field["image"], field["y"]

right = 0
for image, digit in zip(images, digits, strict=True):
    result = meter.run({"image": image[None]})
    right += result.class_index == digit
print(f"{right} of {len(digits)} digits read right, the last in {result.latency_s * 1e3:.2f} ms as {result.score:.0%} certain")
