"""Reads the digit in every frame of a camera:  python camera.py agent.toml [--samples IMAGES.npz] [--frames N]"""

import argparse
from collections.abc import Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from edgeml.runtime import Agent

Frame = NDArray[np.uint8]  # (height, width) grey, 0 black
CAMERA_SIZE = (640, 480)
SAMPLE_WIDTH = 480  # pixels that a sample is enlarged to
SIDE = 8  # of what the model takes
LEAST_SCORE = 0.6


def camera() -> Iterator[Frame]:
    """Grey frames of a Raspberry Pi's camera, endless; ImportError where there is no Picamera2."""
    from picamera2 import Picamera2  # type: ignore[import-not-found,unused-ignore]

    device = Picamera2()
    device.configure(device.create_video_configuration({"size": CAMERA_SIZE, "format": "YUV420"}))
    device.start()
    while True:
        yield 255 - device.capture_array()[: CAMERA_SIZE[1]]  # the Y plane; dark ink on white becomes bright ink on black


def samples(path: str) -> Iterator[Frame]:
    """The images of a file as a camera would show them: 640 x 480, the digit in the middle."""
    with np.load(path, allow_pickle=False) as stored:
        images = stored["image"]
    margin = (CAMERA_SIZE[0] - SAMPLE_WIDTH) // 2
    for image in images:
        large = image[0].repeat(SAMPLE_WIDTH // SIDE, axis=0).repeat(SAMPLE_WIDTH // SIDE, axis=1)
        yield np.pad((255 * large).astype(np.uint8), ((0, 0), (margin, margin)))


def prepared(frame: Frame) -> NDArray[np.float32]:
    """The square in the middle, averaged to 8 x 8: (1, 1, 8, 8) in 0..1."""
    height, width = frame.shape
    side = min(height, width) // SIDE * SIDE
    top, left = (height - side) // 2, (width - side) // 2
    blocks = frame[top : top + side, left : left + side].reshape(SIDE, side // SIDE, SIDE, side // SIDE)
    return np.asarray(blocks.mean(axis=(1, 3)) / 255, np.float32)[None, None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--samples", help="images to read where there is no camera")
    parser.add_argument("--frames", type=int, help="stop after so many")
    arguments = parser.parse_args()
    try:
        frames = camera()
        first = next(frames)
    except (ImportError, RuntimeError, IndexError) as error:  # no library, or no camera on the connector
        if arguments.samples is None:
            parser.error(f"no camera here ({error}); give --samples IMAGES.npz")
        print(f"no camera here ({error}); reading {arguments.samples}")
        frames = samples(arguments.samples)
        first = next(frames)
    seen = read = 0
    with Agent(arguments.config) as agent:
        meter = agent.model("meter")
        for frame in islice((f for part in ([first], frames) for f in part), arguments.frames):
            result = meter.run({"image": prepared(frame)})
            seen += 1
            if result.score is not None and result.score >= LEAST_SCORE:
                read += 1
                print(result.class_index, end=" ", flush=True)
    print(f"\n{read} of {seen} frames read, the last in {result.latency_s * 1e3:.2f} ms by {result.model} {result.version}")


if __name__ == "__main__":
    main()
