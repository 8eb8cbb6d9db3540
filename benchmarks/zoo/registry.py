"""The zoo: name -> recipe."""

from __future__ import annotations

from typing import Final

from benchmarks.zoo import pictures, published, sounds
from benchmarks.zoo.recipe import HERE, Recipe
from benchmarks.zoo.scores import agreement, explained, found, overlap, retrieved, top1, top1_left

TENTH: Final = 0.1
METRICS: Final = HERE / "metrics.py"


MADE: Final = (
    Recipe("mlperf-kws", "DS-CNN, MLPerf Tiny", "savedmodel", published.PATHS["kws"], published.kws, top1, 1 / 12),
    Recipe("mlperf-ic", "ResNet-8, MLPerf Tiny", "keras-h5", published.PATHS["ic"], published.ic, top1, TENTH),
    Recipe("mlperf-vww", "MobileNet v1, MLPerf Tiny", "keras-h5", published.PATHS["vww"], published.vww, agreement, 0.5),
    Recipe("mlperf-sww", "DS-TCN, MLPerf Tiny", "keras-h5", published.PATHS["sww"], published.sww, agreement, 1 / 3),
    Recipe("mlperf-ad", "autoencoder, MLPerf Tiny", "keras-h5", published.PATHS["ad"], published.ad, explained, 0.0),
    Recipe("mlperf-ic-tflite", "ResNet-8, MLPerf's TFLite", "tflite", published.PATHS["ic-tflite"], published.ic, top1, TENTH),
    Recipe(
        "sound-dscnn", "DS-CNN on MFCC", "keras", "keras_nets:dscnn", sounds.as_mfcc, top1, TENTH, epochs=35, roll=4,
    ),
    Recipe(
        "sound-conv1d", "1-D CNN on the raw wave", "torch", "audio_nets:WaveNet1d", sounds.as_waves, top1, TENTH,
        epochs=25, roll=800, roll_axis=2,
    ),
    Recipe(
        "sound-tcresnet", "temporal ResNet on MFCC", "torch-pt2", "audio_nets:TcResNet", sounds.as_mfcc_rows, top1, TENTH,
        epochs=40, roll=4, roll_axis=2,
    ),
    Recipe(
        "sound-gru", "GRU", "torch", "audio_nets:Gru", sounds.as_mel_rows, top1, TENTH, epochs=40, rate=5e-3, roll=4,
    ),
    Recipe(
        "sound-lstm", "LSTM, two layers", "torch-pt2", "audio_nets:Lstm", sounds.as_mel_rows, top1, TENTH,
        epochs=40, rate=5e-3, roll=4,
    ),
    Recipe(
        "sound-keras-lstm", "LSTM", "keras", "keras_nets:lstm", sounds.as_mel_rows, top1, TENTH, epochs=40, roll=4,
    ),
    Recipe(
        "sound-crnn", "convolutions, then GRU", "torchscript", "audio_nets:Crnn", sounds.as_mel, top1, TENTH,
        epochs=25, roll=4, roll_axis=2,
    ),
    Recipe(
        "sound-transformer", "transformer encoder", "onnx", "audio_nets:Transformer", sounds.as_mel_rows, top1, TENTH,
        epochs=40, rate=2e-3, roll=4,
    ),
    Recipe(
        "sound-embedding", "embedding of length 1", "torch", "audio_nets:Embedding", sounds.as_mel, retrieved, TENTH,
        "logits", epochs=30, roll=4, roll_axis=2, metric=f"{METRICS}:retrieved",
    ),
    Recipe(
        "sound-two-inputs", "spectrum and scalars", "onnx", "audio_nets:TwoInputs", sounds.as_stretched, top1, TENTH,
        "logits", epochs=30,
    ),
    Recipe(
        "photo-mobilenetv2", "MobileNet v2-like", "torch-pt2", "vision_nets:MobileNetV2", pictures.photos_first, top1, TENTH,
        epochs=10,
    ),
    Recipe(
        "photo-mobilenetv3", "MobileNet v3-like", "torch", "vision_nets:MobileNetV3", pictures.photos_first, top1, TENTH,
        epochs=10,
    ),
    Recipe(
        "photo-shufflenet", "ShuffleNet v2-like", "onnx", "vision_nets:ShuffleNet", pictures.photos_first, top1, TENTH,
        epochs=10,
    ),
    Recipe(
        "photo-vit", "vision transformer", "torch", "vision_nets:VisionTransformer", pictures.photos_first, top1, TENTH,
        epochs=5, rate=2e-3,
    ),
    Recipe("photo-resnet", "ResNet", "savedmodel", "keras_nets:resnet", pictures.photos_last, top1, TENTH, epochs=10),
    Recipe(
        "scene-unet", "U-Net-like, masks", "onnx", "vision_nets:UNet", pictures.masks, overlap, 0.25, "mask", epochs=2,
        metric=f"{METRICS}:overlap",
    ),
    Recipe(
        "scene-detector", "boxes joined with scores", "torch", "vision_nets:Detector", pictures.boxes, found, 0.01, "boxes",
        epochs=10, metric=f"{METRICS}:found",
    ),
    Recipe(
        "scene-two-digits", "two heads of one shape", "torch-pt2", "vision_nets:TwoDigits", pictures.two_digits, top1_left,
        TENTH, "logits", epochs=10, metric=f"{METRICS}:both_read",
    ),
    Recipe(
        "digit-autoencoder", "convolutional autoencoder", "keras-h5", "keras_nets:autoencoder", pictures.noisy_digits,
        explained, 0.0, epochs=25,
    ),
    Recipe("digit-sklearn-mlp", "perceptron", "sklearn", "sklearn_nets:mlp", pictures.flat_digits, top1, TENTH, epochs=1),
    Recipe(
        "digit-sklearn-pipeline", "PCA, logistic regression", "sklearn", "sklearn_nets:pipeline", pictures.flat_digits, top1,
        TENTH, epochs=1,
    ),
    Recipe("digit-mlp", "dense layers", "keras", "keras_nets:mlp", pictures.flat_digits, top1, TENTH, epochs=60),
)  # fmt: skip
ZOO: Final[dict[str, Recipe]] = {recipe.name: recipe for recipe in MADE}
