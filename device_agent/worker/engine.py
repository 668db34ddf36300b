"""A loaded model with what the worker does with it: answer inferences, run golden vectors."""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Sequence
from pathlib import Path

from device_agent.contract.errors import MalformedMessageError
from device_agent.contract.manifest import MAX_BLOB_BYTES
from device_agent.contract.tensors import Tensor, decode_frame
from device_agent.worker import arrays
from device_agent.worker.runtimes import open_model
from device_agent.worker.wire import Inferred, Load, Measure, Measured, Proof

PROVE_RUNS_MIN = 20
PROVE_RUNS_MAX = 200
PROVE_TIME_S = 2.0
PROVE_TIME_MAX_S = 20.0
"""Golden vectors are run again, for the latency figures, until ``PROVE_RUNS_MIN`` runs and
``PROVE_TIME_S`` seconds are reached, or one of the maxima is."""

_GOLDEN_NAME = re.compile(r"(\d+)/(in|out)/(.+)")
_Vector = tuple[dict[str, Tensor], dict[str, Tensor]]


class Engine:
    """A release's model, loaded.

    Raises:
        AidError: The runtime is missing, or cannot load the model.
        MemoryError: Loading needs more than is allowed.
    """

    def __init__(self, load: Load) -> None:
        self._load = load
        self._model = open_model(load)
        self.runtime_version = self._model.runtime_version

    def infer(self, seq: int, inputs: Sequence[Tensor]) -> tuple[Inferred, list[Tensor]]:
        """Return the answer to request ``seq``, with its outputs in the order of the manifest.

        Raises:
            InputRefusedError: The runtime refuses the inputs.
            MemoryError: It needs more memory than is allowed.
        """
        given = {t.name: arrays.array_of(t) for t in inputs}
        began_s = time.perf_counter()
        outputs = self._model.run(given)
        compute_s = time.perf_counter() - began_s
        top_class = confidence = None
        if self._load.is_classification:
            top_class, confidence = arrays.top(outputs[0], has_softmax=self._load.has_softmax)
        answer = Inferred(seq=seq, compute_s=compute_s, top_class=top_class, confidence=confidence)
        pairs = zip(self._load.outputs, outputs, strict=True)
        return answer, [arrays.tensor_of(info, output) for info, output in pairs]

    def prove(self) -> Proof:
        """Run the golden vectors, for closeness once and then again for latency.

        Raises:
            MalformedMessageError: The golden blob is missing, or not of this model.
            InputRefusedError: The runtime refuses the inputs.
            MemoryError: It needs more memory than is allowed.
        """
        vectors = self._golden()
        cosines: list[float] = []
        agreed = 0
        times_s: list[float] = []
        began_s = time.perf_counter()
        while _wants_more(len(times_s), len(vectors), time.perf_counter() - began_s):
            inputs, golden = vectors[len(times_s) % len(vectors)]
            start_s = time.perf_counter()
            outputs = self._model.run({name: arrays.array_of(t) for name, t in inputs.items()})
            times_s.append(time.perf_counter() - start_s)
            if len(times_s) <= len(vectors):
                pairs = [
                    (output, arrays.array_of(golden[info.name]))
                    for info, output in zip(self._load.outputs, outputs, strict=True)
                ]
                cosines += [arrays.cosine(*pair) for pair in pairs]
                agreed += arrays.agrees(*pairs[0])
        return Proof(
            vectors=len(vectors),
            min_cosine=min(cosines),
            agreement=agreed / len(vectors),
            p50_s=arrays.quantile(times_s, 0.5),
            p95_s=arrays.quantile(times_s, 0.95),
            peak_rss_bytes=_peak_rss_bytes(),
            runs=len(times_s),
        )

    def measure(self, request: Measure) -> Measured:
        """Time the model on its golden inputs in turn, one inference after another.

        Raises:
            MalformedMessageError: The golden blob is missing, or not of this model.
            InputRefusedError: The runtime refuses the inputs.
            MemoryError: It needs more memory than is allowed.
        """
        feeds = [
            {name: arrays.array_of(t) for name, t in inputs.items()} for inputs, _ in self._golden()
        ]
        times_s = []
        gc.disable()
        try:
            for number in range(request.warmup + request.runs):
                feed = feeds[number % len(feeds)]
                start_s = time.perf_counter()
                self._model.run(feed)
                times_s.append(time.perf_counter() - start_s)
        finally:
            gc.enable()
        return Measured(
            seq=request.seq,
            latencies_s=tuple(times_s[request.warmup :]),
            peak_rss_bytes=_peak_rss_bytes(),
        )

    def _golden(self) -> list[_Vector]:
        """Return inputs and outputs of each golden vector (contract §5.4)."""
        try:
            blob = Path(self._load.folder, "golden").read_bytes()
        except OSError as e:
            raise MalformedMessageError(f"the golden blob cannot be read: {e.strerror}") from e
        tensors, _ = decode_frame(blob, max_bytes=MAX_BLOB_BYTES)
        vectors: dict[int, _Vector] = {}
        for tensor in tensors:
            parts = _GOLDEN_NAME.fullmatch(tensor.name)
            if parts is None:
                raise MalformedMessageError(f"golden tensor {tensor.name!r} is of no vector")
            vector = vectors.setdefault(int(parts[1]), ({}, {}))
            vector[0 if parts[2] == "in" else 1][parts[3]] = tensor
        wanted = {i.name for i in self._load.inputs}, {o.name for o in self._load.outputs}
        for index, (inputs, outputs) in vectors.items():
            if (set(inputs), set(outputs)) != wanted:
                raise MalformedMessageError(
                    f"golden vector {index} has inputs {sorted(inputs)} and outputs "
                    f"{sorted(outputs)}, the manifest {sorted(wanted[0])} and {sorted(wanted[1])}"
                )
        if not vectors:
            raise MalformedMessageError("the golden blob holds no vectors")
        return [vectors[i] for i in sorted(vectors)]


def _wants_more(runs: int, vectors: int, spent_s: float) -> bool:
    if runs < vectors:
        return True
    if runs >= max(PROVE_RUNS_MAX, vectors) or spent_s >= PROVE_TIME_MAX_S:
        return False
    return runs < PROVE_RUNS_MIN or spent_s < PROVE_TIME_S


def _peak_rss_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
