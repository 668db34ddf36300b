"""Runs TensorFlow Lite Micro models; stands alone, in the environment of the tool tflite-micro.

``micro.py serve MODEL ARENA`` answers requests on stdin with outputs on stdout: each tensor is the
bytes of the one before it in the model's order, nothing else, so both ends know every length.
``micro.py arena MODEL MOST`` prints a JSON object with the smallest arena that the model runs in.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tflite_micro import runtime

ALIGNMENT = 16
"""Bytes; ``MicroArenaBufferAlignment`` of TensorFlow Lite Micro."""


def serve(model: bytes, arena_bytes: int) -> None:
    """Infer for whoever writes to stdin, until they close it."""
    # The interpreter prints to stdout now and then, and children would inherit it.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    interpreter = runtime.Interpreter.from_bytes(model, arena_size=arena_bytes)
    inputs, outputs = _details(interpreter)
    answers.write(json.dumps({"inputs": len(inputs), "outputs": len(outputs)}).encode() + b"\n")
    answers.flush()
    requests = sys.stdin.buffer
    while True:
        for number, detail in enumerate(inputs):
            shape, dtype = tuple(detail["shape"]), np.dtype(detail["dtype"])
            size = int(np.prod(shape)) * dtype.itemsize
            data = requests.read(size)
            if len(data) < size:
                return
            interpreter.set_input(np.frombuffer(data, dtype).reshape(shape), number)
        interpreter.invoke()
        for number in range(len(outputs)):
            answers.write(np.ascontiguousarray(interpreter.get_output(number)).tobytes())
        answers.flush()


def smallest_arena(model: bytes, most_bytes: int) -> dict[str, Any]:
    """Return the smallest arena, in steps of ``ALIGNMENT``; the error where ``most`` is not enough.

    Each size is tried in a child: a kernel may end its process where the arena is too small.
    """
    error = _try(model, most_bytes)
    if error:
        return {"error": error}
    low, high = 0, most_bytes // ALIGNMENT
    while high - low > 1:
        middle = (low + high) // 2
        if _try(model, middle * ALIGNMENT):
            low = middle
        else:
            high = middle
    return {"arena_bytes": high * ALIGNMENT}


def _try(model: bytes, arena_bytes: int) -> str:
    """Return why the model does not run in an arena of this size; empty where it does."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        with os.fdopen(write_end, "wb") as answer:
            try:
                interpreter = runtime.Interpreter.from_bytes(model, arena_size=arena_bytes)
                for number, detail in enumerate(_details(interpreter)[0]):
                    blank = np.zeros(tuple(detail["shape"]), detail["dtype"])
                    interpreter.set_input(blank, number)
                interpreter.invoke()
            except BaseException as e:  # noqa: BLE001 -- whatever it is, the parent wants to know
                answer.write(f"{type(e).__name__}: {e}".encode())
                answer.flush()
                os._exit(1)
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as answer:
        said = answer.read().decode(errors="replace").strip()
    status = os.waitpid(child, 0)[1]
    return "" if status == 0 else said or f"the interpreter ended with status {status}"


def _details(interpreter: Any) -> tuple[list[Any], list[Any]]:
    return (
        list(_each(interpreter.get_input_details)),
        list(_each(interpreter.get_output_details)),
    )


def _each(read: Any) -> Any:
    """Yield the details of tensor 0, 1, ...; the interpreter does not say how many there are."""
    number = 0
    while True:
        try:
            yield read(number)
        except (IndexError, ValueError, RuntimeError):
            return
        number += 1


def main() -> None:
    """Do what the command line says."""
    what, model, size = sys.argv[1:]
    data = Path(model).read_bytes()
    if what == "serve":
        serve(data, int(size))
    else:
        print(json.dumps(smallest_arena(data, int(size))))  # noqa: T201 -- the result


if __name__ == "__main__":
    main()
