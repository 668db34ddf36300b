from __future__ import annotations

import numpy as np

from aid_edge.pipeline.golden import MAX_BYTES, encode, judged_by, pick
from device_agent.contract.tensors import TensorInfo, decode_frame

IMAGE = TensorInfo("image", "FP32", (-1, 4))
SCORES = TensorInfo("scores", "FP32", (-1, 3))


def test_vectors_cover_classes_and_are_answered_clearly() -> None:
    scores = np.array([[9, 0, 0], [0, 1, 0.99], [0, 5, 0], [0, 0, 2], [8, 0, 0]], np.float32)
    inputs = {"image": np.zeros((5, 100_000), np.float32)}
    picked = pick(inputs, [scores], classification=True)
    assert len(picked) == MAX_BYTES // (inputs["image"][0].nbytes + scores[0].nbytes) == 5
    large = {"image": np.zeros((5, 400_000), np.float32)}
    assert pick(large, [scores], classification=True) == [0, 2], "clearest two classes"
    assert 1 not in pick(
        {"image": np.zeros((5, 130_000), np.float32)}, [scores], classification=True
    )


def test_other_tasks_take_evenly_spaced_inputs() -> None:
    inputs = {"image": np.zeros((40, 4), np.float32)}
    picked = pick(inputs, [np.zeros((40, 3), np.float32)], classification=False)
    assert picked == [0, 5, 10, 15, 20, 25, 30, 35]


def test_frame_holds_inputs_and_the_artifacts_own_outputs() -> None:
    images = np.arange(12, dtype=np.float32).reshape(3, 4)
    scores = np.arange(9, dtype=np.float32).reshape(3, 3)
    frame = encode(([IMAGE], [SCORES]), {"image": images}, {"scores": scores}, [0, 2])
    tensors, _ = decode_frame(frame, max_bytes=10_000)
    assert [t.name for t in tensors] == ["0/in/image", "0/out/scores", "1/in/image", "1/out/scores"]
    assert tensors[2].shape == (1, 4)
    np.testing.assert_array_equal(np.frombuffer(tensors[2].data, "<f4"), images[2])
    np.testing.assert_array_equal(np.frombuffer(tensors[3].data, "<f4"), scores[2])


def test_int8_may_differ_in_one_vector_and_float_in_none() -> None:
    assert judged_by(8, compressed=False).min_agreement == 1
    assert judged_by(8, compressed=True).min_agreement == 7 / 8
    assert judged_by(2, compressed=True).min_agreement == 1
    assert judged_by(8, compressed=True).min_cosine < judged_by(8, compressed=False).min_cosine
