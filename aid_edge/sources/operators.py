"""Which operator of one framework is which of another, and what a profile's rules say of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aid_edge.model import OperatorUse, SourceModel
from device_agent.contract.profile import HardwareProfile, OpRule

# One line per operator: ATen, ONNX, TFLite and Keras names. Only those that rules are written
# about: arithmetic that every runtime has needs no translation, exact names always match.
_SAME: tuple[frozenset[str], ...] = tuple(
    frozenset(line.split())
    for line in """
    conv2d convolution Conv CONV_2D Conv2D
    conv1d Conv CONV_2D Conv1D
    conv3d Conv CONV_3D Conv3D
    depthwise_conv2d DEPTHWISE_CONV_2D DepthwiseConv2D SeparableConv2D Conv
    conv_transpose2d ConvTranspose TRANSPOSE_CONV Conv2DTranspose
    conv_transpose3d ConvTranspose CONV_3D_TRANSPOSE Conv3DTranspose
    linear addmm Gemm FULLY_CONNECTED Dense
    matmul bmm mm MatMul BATCH_MATMUL
    scaled_dot_product_attention multi_head_attention Attention MultiHeadAttention
    batch_norm BatchNormalization
    layer_norm LayerNormalization
    group_norm GroupNormalization GroupNormalization
    instance_norm InstanceNormalization
    relu Relu RELU ReLU
    relu6 hardtanh Clip RELU6 ReLU6
    leaky_relu LeakyRelu LEAKY_RELU LeakyReLU
    prelu PRelu PRELU PReLU
    elu Elu ELU
    gelu Gelu GELU
    erf Erf
    silu Swish Swish
    hardswish HardSwish HARD_SWISH
    hardsigmoid HardSigmoid
    sigmoid Sigmoid LOGISTIC
    tanh Tanh TANH
    softmax Softmax SOFTMAX
    log_softmax LogSoftmax LOG_SOFTMAX
    max_pool2d MaxPool MAX_POOL_2D MaxPooling2D
    avg_pool2d AveragePool AVERAGE_POOL_2D AveragePooling2D
    adaptive_avg_pool2d GlobalAveragePool MEAN GlobalAveragePooling2D
    mean ReduceMean MEAN
    embedding Gather EMBEDDING_LOOKUP Embedding
    gather index_select Gather GATHER
    topk TopK TOPK_V2
    lstm LSTM UNIDIRECTIONAL_SEQUENCE_LSTM
    gru GRU
    upsample_nearest2d Resize RESIZE_NEAREST_NEIGHBOR UpSampling2D
    upsample_bilinear2d Resize RESIZE_BILINEAR UpSampling2D
    cat Concat CONCATENATION Concatenate
    cumsum CumSum CUMSUM
    einsum Einsum
    nonzero NonZero
    grid_sampler GridSample
    scatter ScatterElements SCATTER_ND
    where Where SELECT_V2
    """.strip().splitlines()
)


@dataclass(frozen=True)
class Verdict:
    """What a profile's rules say about one operator of a model."""

    use: OperatorUse
    rule: OpRule

    @property
    def reason(self) -> str:
        """One line: operator, node, rule, why."""
        node = f", first at {self.use.first_node}" if self.use.first_node else ""
        condition = f" with {self.rule.condition}" if self.rule.condition else ""
        return (
            f"operator {self.use.type} ({self.use.count}x{node}) is refused by the rule "
            f"{self.rule.op}{condition}: {self.rule.reason}"
        )


def is_same(one: str, other: str) -> bool:
    """Return whether two operator names, each of any framework, can mean the same operator."""
    return one == other or any(one in names and other in names for names in _SAME)


def applies(rule: OpRule, type_: str, max_rank: int) -> bool:
    """Return whether ``rule`` is about an operator of this type and rank."""
    if rule.op not in {"*", type_} and not is_same(rule.op, type_):
        return False
    if not rule.condition:
        return True
    return max_rank > int(rule.condition.rpartition(">")[2])


def refused(uses: Iterable[OperatorUse], profile: HardwareProfile) -> list[Verdict]:
    """Return every operator that a rule of ``profile`` refuses."""
    rules = [rule for rule in profile.numerics.op_rules if rule.placement == "refuse"]
    return [
        Verdict(use, rule)
        for use in uses
        for rule in rules
        if applies(rule, use.type, use.max_rank)
    ]


def shape_refusals(model: SourceModel, profile: HardwareProfile) -> list[str]:
    """Return why ``profile`` cannot take the shapes of ``model``, one line per reason."""
    most = profile.shapes.max_rank
    reasons = [
        f"{tensor.name} has rank {len(tensor.shape)}; {profile.id} takes at most rank {most}"
        for tensor in (*model.inputs, *model.outputs)
        if len(tensor.shape) > most
    ]
    reasons += [
        f"{tensor.name} is a scalar; its first dimension must be the batch"
        for tensor in (*model.inputs, *model.outputs)
        if model.batched and not tensor.shape
    ]
    reasons += [
        f"operator {use.type}, first at {use.first_node}, has rank {use.max_rank}; "
        f"{profile.id} takes at most rank {most}"
        for use in model.uses
        if use.max_rank > most
    ]
    for tensor in model.inputs:
        first = 1 if model.batched else 0
        varying = [str(i) for i, size in enumerate(tensor.shape) if size == -1 and i >= first]
        if varying:
            reasons.append(
                f"input {tensor.name} {list(tensor.shape)} varies in axis {', '.join(varying)}; "
                "give it a fixed size with --input NAME=SHAPE, or in [[inputs]] of a model.toml"
            )
        if model.batched and tensor.shape and tensor.shape[0] > profile.shapes.max_batch:
            reasons.append(
                f"input {tensor.name} has batch {tensor.shape[0]}; {profile.id} takes at most "
                f"{profile.shapes.max_batch}"
            )
    return reasons
