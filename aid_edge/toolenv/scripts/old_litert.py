"""Runs a LiteRT model in tflite-runtime, as old devices do; stands alone, in that environment.

``old_litert.py MODEL FEEDS.npz OUT.npz``: arrays ``0``, ``1``, ... [n, ...] hold the samples of the
model's inputs in its order and in its element types; the outputs come back likewise.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from tflite_runtime.interpreter import Interpreter


def main() -> None:
    """Do what the command line says."""
    model, feeds, out = sys.argv[1:]
    interpreter = Interpreter(model, num_threads=1)
    interpreter.allocate_tensors()
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    found: list[list[np.ndarray]] = [[] for _ in outputs]
    with np.load(feeds, allow_pickle=False) as arrays:
        samples = [arrays[str(number)] for number in range(len(inputs))]
    for i in range(len(samples[0])):
        for detail, array in zip(inputs, samples, strict=True):
            interpreter.set_tensor(detail["index"], array[i : i + 1])
        interpreter.invoke()
        for detail, answers in zip(outputs, found, strict=True):
            answers.append(interpreter.get_tensor(detail["index"]))
    named: dict[str, Any] = {str(n): np.concatenate(answers) for n, answers in enumerate(found)}
    np.savez(out, **named)


if __name__ == "__main__":
    main()
