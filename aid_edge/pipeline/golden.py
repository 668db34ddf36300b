"""Golden vectors: real inputs with the artifact's own outputs, which a device must reproduce."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from aid_edge.evaluate.accuracy import top1
from device_agent.contract.manifest import Golden
from device_agent.contract.tensors import Tensor, TensorInfo, encode_frame

MAX_VECTORS = 8
MIN_VECTORS = 2
MAX_BYTES = 2 * 2**20
"""Golden vectors travel to every device, so few large inputs are taken and many small ones."""

FLOAT_MIN_COSINE = 0.999
INT8_MIN_COSINE = 0.97
"""Integer kernels of other processors round and saturate differently; floats do not by much."""

Array = npt.NDArray[Any]


def pick(
    inputs: Mapping[str, Array], outputs: Sequence[Array], *, classification: bool
) -> list[int]:
    """Return which samples to keep: as many classes as can be, each answered with a clear margin.

    A sample whose two best classes are close would tell of rounding, not of a broken release.

    Args:
        inputs: The artifact's inputs, [n, ...] each.
        outputs: The artifact's outputs, [n, ...] each, the scores first.
        classification: Whether the first output holds scores of classes.
    """
    n = len(outputs[0])
    sample_bytes = sum(a[0].nbytes for a in [*inputs.values(), *outputs])
    wanted = min(n, MAX_VECTORS, max(MIN_VECTORS, MAX_BYTES // max(1, sample_bytes)))
    if not classification:
        return [i * n // wanted for i in range(wanted)]
    scores = outputs[0].reshape(n, -1).astype(np.float64)
    ordered = np.sort(scores, axis=1)
    margins = ordered[:, -1] - ordered[:, -2] if scores.shape[1] > 1 else np.zeros(n)
    by_margin = [int(i) for i in np.argsort(-margins, kind="stable")]
    clearest: dict[int, int] = {}
    for i, answer in zip(by_margin, top1(outputs[0])[by_margin], strict=True):
        clearest.setdefault(int(answer), i)
    first_of_class = list(clearest.values())
    taken = set(first_of_class)
    return sorted((first_of_class + [i for i in by_margin if i not in taken])[:wanted])


def judged_by(vectors: int, *, compressed: bool) -> Golden:
    """Return how a device judges ``vectors`` golden vectors; one int8 answer may differ."""
    if not compressed:
        return Golden(vectors, FLOAT_MIN_COSINE, 1.0)
    spare = 1 if vectors > MIN_VECTORS else 0
    return Golden(vectors, INT8_MIN_COSINE, (vectors - spare) / vectors)


def encode(
    tensors: tuple[Sequence[TensorInfo], Sequence[TensorInfo]],
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Array],
    chosen: Sequence[int],
) -> bytes:
    """Return the golden blob: for vector i, ``i/in/<input>`` and ``i/out/<output>`` (contract §7).

    Args:
        tensors: The artifact's declared inputs and outputs.
        inputs: In the artifact's layout, [n, ...] each.
        outputs: The artifact's own, [n, ...] each.
        chosen: Which of the n to take.
    """
    frame = []
    for vector, index in enumerate(chosen):
        for side, infos, arrays in (("in", tensors[0], inputs), ("out", tensors[1], outputs)):
            for info in infos:
                one = np.ascontiguousarray(arrays[info.name][index : index + 1])
                data = one.astype(one.dtype.newbyteorder("<")).tobytes()
                frame.append(Tensor(f"{vector}/{side}/{info.name}", info.datatype, one.shape, data))
    return encode_frame(frame, {"vectors": len(chosen)})
