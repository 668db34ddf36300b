"""PP-OCRv4: text recognition and detection (ONNX of rapidocr-onnxruntime, Apache-2.0).

Their words and pages are rendered here, with Pillow's own font, clean and with blur and noise.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from examples.archives import Package, download, extract
from examples.photos import CALIBRATION_PHOTOS, FIDELITY_PHOTOS, crops
from examples.sets.text import sentences

RAPIDOCR = Package(
    "rapidocr-onnxruntime==1.4.4",
    "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
)
WORD_HEIGHT, WORD_WIDTH = 48, 320
PAGE_PIXELS = 320
WORDS, PAGES = 96, 24
# PaddleOCR, ppocr/data/imaug/operators.py, NormalizeImage: ImageNet's mean and deviation, RGB.
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
CARD = """\
schema = 1
name = "{name}"
version = "4.0.0"
title = "{title}"
task = "other"
licence = "Apache-2.0"
"""


def recognizer(folder: Path, archives: Path) -> None:
    """Write the recognizer, and words as values -1..1, [n, 3, 48, 320]."""
    archive = download(RAPIDOCR, archives)
    member = "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"
    extract(archive, member, folder / "recognizer.onnx")
    card = CARD.format(name="ocr-recognizer", title="PP-OCRv4, text recognition")
    (folder / "model.toml").write_text(card)
    words = sorted({w for s in sentences() for w in s.split() if w.isalpha() and len(w) > 3})
    draws = np.random.default_rng(0)
    chosen = draws.choice(words, 2 * WORDS, replace=False)
    pictures = np.stack([_word(str(word), draws) for word in chosen])
    np.savez(folder / "calibration.npz", x=pictures[:WORDS])
    np.savez(folder / "fidelity.npz", x=pictures[WORDS:])


def detector(folder: Path, archives: Path) -> None:
    """Write the detector, and pages and photos as normalized RGB, [n, 3, 320, 320]."""
    archive = download(RAPIDOCR, archives)
    member = "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"
    extract(archive, member, folder / "detector.onnx")
    card = CARD.format(name="ocr-detector", title="PP-OCRv4, text detection")
    (folder / "model.toml").write_text(card)
    draws = np.random.default_rng(1)
    text = sentences()
    for name, photos in (("calibration", CALIBRATION_PHOTOS), ("fidelity", FIDELITY_PHOTOS)):
        pages = [_page([str(s) for s in draws.choice(text, 8)], draws) for _ in range(PAGES)]
        found = list(crops(photos, 2, PAGE_PIXELS))
        pages += [_normalized(crop) for *_, crop in found]
        groups = [f"page{i}" for i in range(PAGES)] + [photo for photo, *_ in found]
        np.savez(folder / f"{name}.npz", x=np.stack(pages), groups=np.array(groups))


def _word(word: str, draws: np.random.Generator) -> NDArray[np.float32]:
    picture = Image.new("RGB", (WORD_WIDTH, WORD_HEIGHT), (255, 255, 255))
    font = ImageFont.load_default(int(draws.integers(22, 34)))
    ink = int(draws.integers(0, 90))
    ImageDraw.Draw(picture).text((6, 6), word, fill=(ink, ink, ink), font=font)
    pixels = np.asarray(_worn(picture, draws), np.float32)
    # PaddleOCR, tools/infer/predict_rec.py: (x / 255 - 0.5) / 0.5.
    scaled: NDArray[np.float32] = ((pixels / 255 - 0.5) / 0.5).transpose(2, 0, 1)
    return scaled.astype(np.float32)


def _page(lines: list[str], draws: np.random.Generator) -> NDArray[np.float32]:
    picture = Image.new("RGB", (PAGE_PIXELS, PAGE_PIXELS), (245, 245, 240))
    pen, top = ImageDraw.Draw(picture), 8
    for line in lines:
        size = int(draws.integers(12, 26))
        pen.text((8, top), line[:40], fill=(20, 20, 20), font=ImageFont.load_default(size))
        top += size + int(draws.integers(4, 16))
    return _normalized(_worn(picture, draws))


def _worn(picture: Image.Image, draws: np.random.Generator) -> Image.Image:
    """Return the picture with a little blur and noise, as cameras give it."""
    blurred = picture.filter(ImageFilter.GaussianBlur(float(draws.uniform(0, 1.2))))
    noise = draws.normal(0, draws.uniform(0, 20), (*blurred.size[::-1], 1))
    pixels = np.clip(np.asarray(blurred, np.float32) + noise, 0, 255)
    return Image.fromarray(pixels.astype(np.uint8))


def _normalized(picture: Image.Image) -> NDArray[np.float32]:
    pixels = (np.asarray(picture, np.float32) / 255 - MEAN) / DEVIATION
    return np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32)
