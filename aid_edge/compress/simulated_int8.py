"""Static int8 as training sees it: rounded weights and activations, gradients passed through.

Weights are symmetric with one scale per output channel, inputs of layers affine with one scale
per tensor (Jacob et al., 2018, arXiv:1712.05877, section 3; Krishnamoorthi, 2018,
arXiv:1806.08342, section 3.1). Batch norms are folded first, since every runtime folds them before
it quantizes. What comes out is a plain float module: the simulation is taken off again, and each
runtime quantizes by its own means.

PT2E's and NNCF's QAT give a graph for one runtime each, and NNCF compiles an extension first.

Imported only in worker processes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils import fusion, parametrize

from aid_edge.errors import UnsupportedModelError

INT8_MAX = 127
UINT8_MAX = 255
AVERAGED_SHARE = 0.05
"""Of a new batch's range in the moving range of activations."""

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TOLERANCE = 1e-3
_TINY = 1e-8

Run = Callable[[nn.Module], list[torch.Tensor]]


class RoundedWeight(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """A weight [out, ...] as int8 holds it."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return ``weight`` rounded to 255 steps per output channel."""
        with torch.no_grad():
            largest = weight.detach().flatten(1).abs().amax(1).clamp_min(_TINY)
            scale = (largest / INT8_MAX).float()
            zero = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -INT8_MAX, INT8_MAX)


class RoundedInput(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """A tensor as uint8 holds it, in the range that was seen so far."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.bool))
        self.observing = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x`` rounded; the range follows it while training."""
        if not x.is_floating_point():
            return x
        if self.training and self.observing:
            with torch.no_grad():
                low, high = x.detach().amin().clamp_max(0), x.detach().amax().clamp_min(0)
                share = AVERAGED_SHARE if bool(self.seen) else 1.0
                self.low += share * (low - self.low)
                self.high += share * (high - self.high)
                self.seen.fill_(value=True)
        if not bool(self.seen):
            return x
        scale = ((self.high - self.low) / UINT8_MAX).clamp_min(_TINY)
        zero = torch.round(-self.low / scale).clamp(0, UINT8_MAX).to(torch.int32)
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, UINT8_MAX)


class Simulation:
    """Rounds the weights and inputs of a module's layers until it is taken off."""

    def __init__(self, module: nn.Module) -> None:
        """Put it on.

        Raises:
            UnsupportedModelError: The module has no convolution or linear layer.
        """
        self._hooks: list[Any] = []
        self._layers = [m for m in module.modules() if isinstance(m, _LAYERS)]
        self._inputs: list[RoundedInput] = []
        if not self._layers:
            raise UnsupportedModelError(
                "quantization-aware training cannot simulate this model",
                ["it has no layer of PyTorch's; an exported graph (.pt2) has operators only"],
                hint="Give the model's code (module:factory) or ONNX.",
            )  # fmt: skip
        for layer in self._layers:
            parametrize.register_parametrization(layer, "weight", RoundedWeight())
            rounding = RoundedInput()
            # A submodule, so that its range is part of the state and follows train and eval.
            layer.add_module("rounded_input", rounding)
            self._inputs.append(rounding)
            self._hooks.append(layer.register_forward_pre_hook(_round_first))

    def observe(self, module: nn.Module, run: Run) -> None:
        """Find first ranges by running ``module``, without changing its norms."""
        for rounding in self._inputs:
            rounding.train()
        with torch.no_grad():
            run(module)
        module.eval()

    def remove(self) -> None:
        """Take it off; the weights stay as they were trained, not rounded."""
        for hook in self._hooks:
            hook.remove()
        for layer in self._layers:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
            del layer.rounded_input


def rounded_name(name: str) -> str:
    """Return what a parameter is called while its layer's weight is rounded."""
    layer, _, last = name.rpartition(".")
    return f"{layer}.parametrizations.{last}.original"


def _round_first(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (layer.rounded_input(inputs[0]), *inputs[1:])


def fold_norms(module: nn.Module, run: Run) -> tuple[nn.Module, int]:
    """Return a copy of ``module`` with batch norms folded into the convolutions before them.

    Which norm follows which convolution is seen when it runs. The copy must compute the same, so
    that a convolution that something else reads as well is not changed: then nothing is folded.

    Args:
        module: In evaluation mode.
        run: Gives the outputs of a module on some samples.

    Returns:
        The copy, and how many were folded.
    """
    folded = copy.deepcopy(module).eval()
    pairs = _pairs(folded, run)
    if not pairs:
        return folded, 0
    want = run(module)
    names = {m: n for n, m in folded.named_modules()}
    for convolution, norm in pairs:
        fused = fusion.fuse_conv_bn_eval(convolution, norm)
        _replace(folded, names[convolution], fused)
        _replace(folded, names[norm], nn.Identity())
    got = run(folded)
    for a, b in zip(got, want, strict=True):
        if not float((a - b).abs().max()) <= _TOLERANCE * max(float(b.abs().max()), _TINY):
            return copy.deepcopy(module).eval(), 0
    for parameter in folded.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return folded, len(pairs)


def _pairs(module: nn.Module, run: Run) -> list[tuple[nn.Module, nn.Module]]:
    made: dict[int, tuple[nn.Module, torch.Tensor]] = {}
    found: list[tuple[nn.Module, nn.Module]] = []
    calls: dict[nn.Module, int] = {}

    def note(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls[layer] = calls.get(layer, 0) + 1
        if isinstance(layer, _FOLDABLE):
            # Held, so that no other tensor gets its identity.
            made[id(output)] = (layer, output)
        elif id(inputs[0]) in made:
            found.append((made[id(inputs[0])][0], layer))

    norm = nn.modules.batchnorm._BatchNorm  # noqa: SLF001 -- base of all ranks
    hooks = [
        m.register_forward_hook(note) for m in module.modules() if isinstance(m, (*_FOLDABLE, norm))
    ]
    try:
        run(module)
    finally:
        for hook in hooks:
            hook.remove()
    once = [pair for pair in found if calls[pair[0]] == 1 == calls[pair[1]]]
    return [(c, n) for c, n in once if n.track_running_stats]


def _replace(module: nn.Module, name: str, by: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent) if parent else module, last, by)
