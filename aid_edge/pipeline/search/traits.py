"""What kind of net a source model is, as far as the choice of recipes depends on it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MIN_LINEAR_OPERATORS = 4
"""Fewer matrix products without any convolution are a toy, for which the usual recipes do."""

_CONVOLUTIONS = frozenset({
    "conv", "conv1d", "conv2d", "conv3d", "convolution", "convtranspose", "depthwiseconv2d",
    "separableconv2d", "transposeconv", "conv2dtranspose", "fusedconv",
})  # fmt: skip
_PRODUCTS = frozenset({
    "matmul", "gemm", "linear", "dense", "addmm", "mm", "bmm", "fullyconnected", "batchmatmul",
    "einsumdense", "einsum",
})  # fmt: skip
_NORMS = frozenset({
    "layernorm", "layernormalization", "nativelayernorm", "simplifiedlayernormalization",
    "skiplayernormalization", "rmsnorm", "rmsnormalization",
})  # fmt: skip
_ATTENTION = frozenset({
    "scaleddotproductattention", "multiheadattention", "attention", "softmax",
})  # fmt: skip
_RECURRENT = frozenset({
    "lstm", "gru", "rnn", "lstmcell", "grucell", "unidirectionalsequencelstm", "simplernn",
})  # fmt: skip
_EMBEDDINGS = frozenset({"embedding", "embeddingbag", "embeddinglookup"})


@dataclass(frozen=True)
class Traits:
    """A net's kind.

    Attributes:
        convolutional: It has convolutions.
        transformer: It has attention and layer normalization.
        recurrent: It has recurrent layers.
        linear_heavy: Matrix products do the work: many of them, and no convolution.
        embeddings: It looks vectors up in tables.
    """

    convolutional: bool = False
    transformer: bool = False
    recurrent: bool = False
    linear_heavy: bool = False
    embeddings: bool = False

    @property
    def prefers_dynamic(self) -> bool:
        """Whether activation ranges are better found at run time.

        ONNX Runtime's documentation, "Quantize ONNX models": dynamic quantization for RNNs and
        transformers, static quantization for convolutional nets.
        """
        return self.transformer or self.recurrent or self.linear_heavy

    @property
    def mostly_weights(self) -> bool:
        """Whether most of the file and of the time is reading weights."""
        return self.linear_heavy or self.embeddings


def traits_of(operators: Mapping[str, int]) -> Traits:
    """Return the traits of a model with these ``operators``, type to number of nodes.

    Types are as PyTorch (ATen), ONNX, Keras or TFLite name them.
    """
    found: dict[str, int] = {}
    for kind, count in operators.items():
        plain = kind.rpartition(".")[2].lower().replace("_", "")
        found[plain] = found.get(plain, 0) + count

    def has(names: frozenset[str]) -> bool:
        return any(name in found for name in names)

    products = sum(found.get(name, 0) for name in _PRODUCTS)
    # Older ONNX opsets have no LayerNormalization: exporters write out mean and square root.
    normalizes = has(_NORMS) or {"reducemean", "sqrt"} <= set(found)
    return Traits(
        convolutional=has(_CONVOLUTIONS),
        transformer=normalizes and has(_ATTENTION) and products > 0,
        recurrent=has(_RECURRENT),
        linear_heavy=products >= MIN_LINEAR_OPERATORS and not has(_CONVOLUTIONS),
        # ONNX and TFLite look up by Gather, which convolutional nets have as well, for shapes.
        embeddings=has(_EMBEDDINGS) or ("gather" in found and not has(_CONVOLUTIONS)),
    )
