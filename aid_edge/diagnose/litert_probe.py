"""Inner tensors of a float TFLite model and its int8 twin. Imported in worker processes only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import interpreter as litert
from numpy.typing import NDArray

from aid_edge.converter import Arrays
from aid_edge.diagnose.records import Layer, decibel
from aid_edge.errors import ConversionError
from aid_edge.runtimes.litert import LiteRtSession, dequantized, quantized

_CONVERSIONS = frozenset({"QUANTIZE", "DEQUANTIZE", "DELEGATE"})
_WEIGHTED = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"})
_MOVES = frozenset({"RESHAPE", "TRANSPOSE", "SQUEEZE", "EXPAND_DIMS", "SLICE", "STRIDED_SLICE"})


def open_probe(floating: Path, quantized_path: Path) -> LiteRtProbe:
    """Return both models, loaded; see :class:`aid_edge.diagnose.compare.Probe`.

    Raises:
        ConversionError: The runtime refuses one of them, or they have different operators.
    """
    return LiteRtProbe(floating, quantized_path)


class _Model:
    """One model with all inner tensors kept."""

    def __init__(self, path: Path) -> None:
        self.session = LiteRtSession(path, 1, exact=True)
        try:
            self.interpreter = litert.Interpreter(
                model_path=str(path),
                num_threads=1,
                experimental_preserve_all_tensors=True,
                # A delegate keeps its tensors to itself.
                experimental_op_resolver_type=(
                    litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
                ),
            )
            self.interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as e:
            raise ConversionError(f"{path.name}: LiteRT cannot show its layers: {e}") from e
        self.details = {d["index"]: d for d in self.interpreter.get_tensor_details()}
        # The signature's name of each input, in the order of the file.
        ordered = zip(self.session.inputs, self.interpreter.get_input_details(), strict=True)
        self.inputs = {info.name: detail for info, detail in ordered}
        every = self.interpreter._get_ops_details()  # noqa: SLF001 -- the only list of them
        self.operators = [op for op in every if op["op_name"] not in _CONVERSIONS]
        # Where a tensor was converted, both names stand for one value.
        self.aliases = {
            int(op["outputs"][0]): int(op["inputs"][0])
            for op in every if op["op_name"] in _CONVERSIONS
        }  # fmt: skip

    def infer(self, feeds: Arrays) -> None:
        try:
            for name, detail in self.inputs.items():
                self.interpreter.set_tensor(detail["index"], quantized(feeds[name], detail))
            self.interpreter.invoke()
        except (RuntimeError, ValueError) as e:
            raise ConversionError(f"LiteRT fails while layers are compared: {e}") from e

    def tensor(self, index: int) -> NDArray[Any]:
        return dequantized(self.interpreter.get_tensor(index), self.details[index])

    def origin(self, index: int) -> int:
        """Return the tensor that ``index`` was converted from, or itself."""
        while index in self.aliases:
            index = self.aliases[index]
        return index


class LiteRtProbe:
    """A float model and its int8 twin with their layers' outputs made readable."""

    def __init__(self, floating: Path, quantized_path: Path) -> None:
        self._exact, self._noisy = _Model(floating), _Model(quantized_path)
        names = [[op["op_name"] for op in m.operators] for m in (self._exact, self._noisy)]
        if names[0] != names[1]:
            raise ConversionError(
                f"{quantized_path.name}: its operators are not those of the float model, so "
                "layers cannot be compared"
            )
        found = list(self._matched())
        self.layers = tuple(layer for layer, _, _ in found)
        self._pairs = [(a, b) for _, a, b in found]
        self.shapes: Mapping[str, tuple[int, ...]] = {
            info.name: info.shape for info in self._exact.session.inputs
        }

    def run(self, feeds: Arrays) -> Iterator[tuple[int, NDArray[Any], NDArray[Any]]]:
        """Yield layer index, float output and quantized output of one inference."""
        self._exact.infer(feeds)
        self._noisy.infer(feeds)
        for index, (a, b) in enumerate(self._pairs):
            yield index, self._exact.tensor(a), self._noisy.tensor(b)

    def _matched(self) -> Iterator[tuple[Layer, int, int]]:
        """Yield each layer with the index of its output in the float and the int8 model."""
        makers: dict[int, int] = {}
        index = 0
        pairs = zip(self._exact.operators, self._noisy.operators, strict=True)
        for exact, noisy in pairs:
            a, b = int(exact["outputs"][0]), int(noisy["outputs"][0])
            inputs = [self._exact.origin(int(i)) for i in exact["inputs"] if i >= 0]
            sources = {makers[i] for i in inputs if i in makers}
            detail, twin = self._exact.details[a], self._noisy.details[b]
            if exact["op_name"] in _MOVES or np.dtype(detail["dtype"]).kind != "f":
                makers |= {a: max(sources)} if sources else {}
                continue
            yield (
                Layer(
                    str(detail["name"]), str(exact["op_name"]),
                    "integer" if np.dtype(twin["dtype"]).kind in "iu" else "float",
                    _bounds(twin), tuple(sorted(sources)), self._weight_db(exact, noisy),
                ),
                a,
                b,
            )  # fmt: skip
            makers[a] = index
            index += 1

    def _weight_db(self, exact: Mapping[str, Any], noisy: Mapping[str, Any]) -> float | None:
        """Return signal to noise of the worst channel of a layer's weights, in dB."""
        if exact["op_name"] not in _WEIGHTED:
            return None
        position = 1
        a, b = int(exact["inputs"][position]), int(noisy["inputs"][position])
        detail = self._noisy.details[b]
        if np.dtype(detail["dtype"]) != np.int8 or a not in self._exact.details:
            return None
        try:
            weights = self._exact.interpreter.get_tensor(a).astype(np.float64)
            codes = self._noisy.interpreter.get_tensor(b).astype(np.float64)
        except ValueError:
            # Not a constant.
            return None
        scales = detail["quantization_parameters"]["scales"].astype(np.float64)
        axis = int(detail["quantization_parameters"]["quantized_dimension"])
        if codes.shape != weights.shape or not scales.size:
            return None
        shape = [-1 if i == axis and scales.size > 1 else 1 for i in range(weights.ndim)]
        error = codes * scales.reshape(shape) - weights
        rest = tuple(i for i in range(weights.ndim) if i != axis)
        power, noise = np.median(weights**2, axis=rest), np.mean(error**2, axis=rest)
        live = power > 0
        return decibel(float((noise[live] / power[live]).max())) if live.any() else None


def _bounds(detail: Mapping[str, Any]) -> tuple[float, float] | None:
    scale, zero = detail["quantization"]
    dtype = np.dtype(detail["dtype"])
    if not scale or dtype.kind not in "iu":
        return None
    codes = np.iinfo(dtype)
    # Half a step more still rounds to the last code.
    return (codes.min - zero - 0.5) * scale, (codes.max - zero + 0.5) * scale
