"""Networks in Keras: DS-CNN and LSTM for spoken digits, ResNet for digits on photographs, an autoencoder and an MLP for digits.

Each function is given `keras` or `tf_keras`, whose layers have the same names, and gives a compiled model.
"""

from __future__ import annotations

from typing import Any


def dscnn(keras: Any) -> Any:
    """Depthwise-separable convolutions over MFCC (49, 10, 1), as MLPerf Tiny's keyword spotter."""
    layers = keras.layers
    x = given = keras.Input((49, 10, 1), name="mfcc")
    x = layers.BatchNormalization(axis=-1)(x)
    x = layers.Activation("relu")(layers.BatchNormalization()(layers.Conv2D(64, (10, 4), 2, "same", use_bias=False)(x)))
    for _ in range(4):
        x = layers.Activation("relu")(layers.BatchNormalization()(layers.DepthwiseConv2D(3, 1, "same", use_bias=False)(x)))
        x = layers.Activation("relu")(layers.BatchNormalization()(layers.Conv2D(64, 1, use_bias=False)(x)))
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
    return _compiled(keras, keras.Model(given, layers.Dense(10, "softmax", name="digit")(x)), "sparse_categorical_crossentropy")


def lstm(keras: Any) -> Any:
    """One LSTM over 49 log-mel frames of 32 bands."""
    layers = keras.layers
    given = keras.Input((49, 32), name="frames")
    x = layers.LSTM(64)(given)
    return _compiled(keras, keras.Model(given, layers.Dense(10, "softmax", name="digit")(x)), "sparse_categorical_crossentropy")


def resnet(keras: Any) -> Any:
    """Three residual stages for (32, 32, 3), as MLPerf Tiny's ResNet-8."""
    layers = keras.layers
    given = keras.Input((32, 32, 3), name="image")
    x = layers.Activation("relu")(layers.BatchNormalization()(layers.Conv2D(16, 3, 2, "same", use_bias=False)(given)))
    for width, stride in ((16, 1), (32, 2), (64, 2)):
        y = layers.Conv2D(width, 3, stride, "same", use_bias=False)(x)
        y = layers.Activation("relu")(layers.BatchNormalization()(y))
        y = layers.BatchNormalization()(layers.Conv2D(width, 3, 1, "same", use_bias=False)(y))
        side = x if width == 16 else layers.Conv2D(width, 1, stride, "same")(x)
        x = layers.Activation("relu")(layers.Add()([y, side]))
    x = layers.GlobalAveragePooling2D()(x)
    return _compiled(keras, keras.Model(given, layers.Dense(10, name="logits")(x)), _from_logits(keras))


def autoencoder(keras: Any) -> Any:
    """Cleans digits (16, 16, 1): two strided convolutions, a bottleneck of 48, two transposed convolutions."""
    layers = keras.layers
    x = given = keras.Input((16, 16, 1), name="noisy")
    x = layers.Conv2D(16, 3, 2, "same", activation="relu")(x)
    x = layers.Conv2D(32, 3, 2, "same", activation="relu")(x)
    x = layers.Dense(48, "relu")(layers.Flatten()(x))
    x = layers.Reshape((4, 4, 32))(layers.Dense(512, "relu")(x))
    x = layers.Conv2DTranspose(24, 3, 2, "same", activation="relu")(x)
    x = layers.Conv2DTranspose(16, 3, 2, "same", activation="relu")(x)
    return _compiled(keras, keras.Model(given, layers.Conv2D(1, 3, 1, "same", activation="sigmoid", name="clean")(x)), "mse")


def mlp(keras: Any) -> Any:
    """Dense layers with leaky and exponential units over 64 pixels."""
    layers = keras.layers
    given = keras.Input((64,), name="pixels")
    x = layers.LeakyReLU()(layers.Dense(96)(given))
    x = layers.Dense(96, "elu")(x)
    x = layers.Dense(48, "tanh")(layers.Dropout(0.2)(x))
    return _compiled(keras, keras.Model(given, layers.Dense(10, "softmax", name="digit")(x)), "sparse_categorical_crossentropy")


def _from_logits(keras: Any) -> Any:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _compiled(keras: Any, model: Any, loss: Any) -> Any:
    model.compile(optimizer=keras.optimizers.Adam(3e-3), loss=loss)
    return model
