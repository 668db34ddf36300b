"""Silero VAD: is somebody speaking? (ONNX opset 16, MIT licence), stateful.

Of its files this one has fixed shapes and no branches; it answers bit by bit as
``silero_vad_16k_op15.onnx`` does, the branches of which ask for the shapes of its inputs.

Its recordings are the spoken channel names of Debian's package alsa-utils; the states that come
with them are those that the model itself went through: every sample is a step as in real use.
"""

from __future__ import annotations

import io
import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from examples.archives import Package, debian_files, download, extract

SILERO = Package(
    "silero-vad==6.2.3", "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8"
)
SOUNDS = "/usr/share/sounds/alsa"
WORDS = (
    "Front_Center", "Front_Left", "Front_Right", "Rear_Center", "Rear_Left", "Rear_Right",
    "Side_Left", "Side_Right", "Noise",
)  # fmt: skip
CALIBRATION_WORDS = frozenset({"Front_Left", "Rear_Right", "Side_Left"})
RATE_HZ, RECORDED_HZ = 16_000, 48_000
STEP, CONTEXT = 512, 64
"""Samples of a step, and of the one before that are given again (silero_vad/utils_vad.py)."""

CARD = """\
schema = 1
name = "silero-vad"
version = "6.2.3"
title = "Silero VAD, voice activity at 16 kHz"
task = "other"
licence = "MIT"
"""


def silero_vad(folder: Path, archives: Path) -> None:
    """Write the model, its card, and steps of recordings with the states before them."""
    member = "silero_vad/data/silero_vad_openvino_16k.onnx"
    extract(download(SILERO, archives), member, folder / "silero_vad.onnx")
    (folder / "model.toml").write_text(CARD)
    paths = {word: f"{SOUNDS}/{word}.wav" for word in WORDS}
    files = debian_files("alsa-utils", tuple(paths.values()), archives)
    for name, words in (
        ("calibration", [w for w in WORDS if w in CALIBRATION_WORDS]),
        ("fidelity", [w for w in WORDS if w not in CALIBRATION_WORDS]),
    ):
        steps = [_steps(folder / "silero_vad.onnx", _samples(files[paths[w]])) for w in words]
        groups = [w for w, (x, _) in zip(words, steps, strict=True) for _ in x]
        inputs = np.concatenate([x for x, _ in steps])
        np.savez(
            folder / f"{name}.npz", input=inputs, state=np.concatenate([s for _, s in steps]),
            groups=np.array(groups),
        )  # fmt: skip


def _samples(data: bytes) -> NDArray[np.float32]:
    with wave.open(io.BytesIO(data)) as file:
        pcm = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    # A mean of three samples is filter enough for speech, and takes 48 kHz to 16 kHz.
    ratio = RECORDED_HZ // RATE_HZ
    whole = pcm[: len(pcm) // ratio * ratio].reshape(-1, ratio).mean(1)
    return (whole / 2**15).astype(np.float32)


def _steps(model: Path, samples: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
    """Return inputs [n, 1, 576] and the states before them [n, 2, 1, 128]."""
    import onnxruntime  # noqa: PLC0415 -- only this set runs a model

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    state, context = np.zeros((2, 1, 128), np.float32), np.zeros(CONTEXT, np.float32)
    inputs, states = [], []
    for start in range(0, len(samples) - STEP + 1, STEP):
        step = samples[start : start + STEP]
        inputs.append(np.concatenate([context, step])[None])
        states.append(state)
        _, state = session.run(None, {"input": inputs[-1], "state": state})
        context = step[-CONTEXT:]
    return np.stack(inputs), np.stack(states)
