"""Writes small Keras models; its functions run in worker processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from aid_edge.sources.opening import keras_backend


def _keras() -> Any:
    os.environ["KERAS_BACKEND"] = keras_backend()
    import keras

    return keras


def save(path: str, kind: str) -> None:
    """Write a model of this kind to ``path``."""
    keras = _keras()
    keras.utils.set_random_seed(0)
    layers = keras.layers
    start = keras.Input((8, 8, 3), name="image")
    hidden = layers.Conv2D(8, 3, padding="same", activation="relu", name="first")(start)
    if kind == "lambda":
        hidden = layers.Lambda(lambda x: x * 2)(hidden)
    hidden = layers.GlobalAveragePooling2D(name="pool")(hidden)
    model = keras.Model(start, layers.Dense(5, name="scores")(hidden))
    if kind == "several":
        # Their names sort otherwise than they are listed.
        facts = keras.Input((6,), name="zone")
        both = layers.Concatenate(name="both")([hidden, facts])
        ends = [layers.Dense(size, name=name)(both) for size, name in ((5, "upper"), (3, "lower"))]
        model = keras.Model([facts, start], ends)
    if kind == "weights":
        model.save_weights(path)
    else:
        model.save(Path(path))
