"""TFLite models in TensorFlow Lite Micro, as a microcontroller runs them.

Its interpreter lives in the environment of the tool ``tflite-micro``: a child process there takes
one batch after the other. Where that environment is not there, LiteRT's reference kernels stand in,
of which those of TensorFlow Lite Micro are a port; the version then says so.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import weakref
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from aid_edge import toolenv
from aid_edge.errors import ConversionError
from aid_edge.runtimes import litert
from aid_edge.runtimes.session import Placement, Session

DISTRIBUTION = litert.DISTRIBUTION
TOOL = "tflite-micro"
ARENA_BYTES = 64 * 2**20
"""What the interpreter gets here; how little it needs is a question for the converter."""

_LOG_TAIL_BYTES = 2000
_MAX_ERROR_CHARS = 400


def version() -> str:
    """Return the version of the interpreter, or of LiteRT marked as standing in."""
    if toolenv.is_installed(TOOL):
        return toolenv.version(TOOL)
    return f"{metadata.version(DISTRIBUTION[1])}+litert.reference"


def open_session(path: Path, threads: int, exact: bool) -> Session:
    """Return the model at ``path``, loaded; see :func:`aid_edge.runtimes.open_artifact`."""
    del threads, exact  # one core; its kernels have one way to compute
    if toolenv.is_installed(TOOL):
        return MicroSession(path)
    return litert.LiteRtSession(path, 1, exact=True, reference=True)


class MicroSession:
    """A TFLite model in a process of TensorFlow Lite Micro."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # LiteRT reads what the interpreter does not tell: names, and how tensors are quantized.
        described = litert.LiteRtSession(path, 1, exact=True, reference=True)
        self.inputs, self.outputs = described.inputs, described.outputs
        self._details = described.details
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 -- closed with the session
        arguments = [toolenv.script("micro"), "serve", str(path.resolve()), str(ARENA_BYTES)]
        self._process = toolenv.start(TOOL, arguments, self._log)
        weakref.finalize(self, _close, self._process, self._log)
        try:
            told = json.loads(self._read_line())
        except ValueError as e:
            raise self._failure() from e
        if (told["inputs"], told["outputs"]) != tuple(map(len, self._details)):
            raise ConversionError(f"{path.name}: TFLite Micro sees other inputs or outputs")

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the outputs for one batch of inputs."""
        requests, answers = self._process.stdin, self._process.stdout
        if requests is None or answers is None:
            raise self._failure()
        inputs, outputs = self._details
        found = {}
        try:
            for name, detail in inputs.items():
                value = litert.quantized(np.asarray(feeds[name]), detail)
                if value.shape != tuple(detail["shape"]):
                    raise ConversionError(
                        f"{self._path.name}: {name} has shape {list(value.shape)}; "
                        f"the model takes {[int(size) for size in detail['shape']]}"
                    )
                requests.write(value.tobytes())
            requests.flush()
            for name, detail in outputs.items():
                shape, dtype = tuple(detail["shape"]), np.dtype(detail["dtype"])
                data = answers.read(int(np.prod(shape)) * dtype.itemsize)
                values = np.frombuffer(data, dtype).reshape(shape)
                found[name] = litert.dequantized(values, detail)
        except (OSError, ValueError) as e:
            raise self._failure() from e
        return found

    def _read_line(self) -> bytes:
        return self._process.stdout.readline() if self._process.stdout is not None else b""

    def _failure(self) -> ConversionError:
        toolenv.end(self._process)
        size = self._log.seek(0, 2)
        self._log.seek(max(0, size - _LOG_TAIL_BYTES))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        told = " | ".join(line.strip() for line in lines[-3:])[-_MAX_ERROR_CHARS:]
        return ConversionError(
            f"{self._path.name}: TFLite Micro {toolenv.version(TOOL)} fails: {told or 'it ended'}"
        )


def _close(process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    toolenv.end(process)
    log.close()


def place(path: Path, scratch: Path) -> Placement:
    """Return where operators run; see :func:`aid_edge.runtimes.placement`."""
    return litert.place(path, scratch)
