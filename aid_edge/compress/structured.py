"""Takes out whole channels by the dependency graph of a net (Fang et al., 2023, arXiv:2301.12900).

Torch-pruning finds which weights belong to one channel. That it found all of them is tried out
layer by layer before anything is pruned: a layer whose pruning changes the outputs' shapes, fails,
or does something else than leaving the channel out stays whole.

Imported only in worker processes.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch_pruning
from torch import nn
from torch.utils import _pytree as pytree

from aid_edge.compress import allocation
from aid_edge.compress.allocation import Layer
from aid_edge.errors import UnsupportedModelError, first_line
from aid_edge.recipe import Structured

Feed = tuple[torch.Tensor, ...]
Damage = Callable[[nn.Module], float]
"""Of a pruned module: how far its outputs are from the original's."""

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_ROOTS = (nn.modules.conv._ConvNd, nn.Linear)  # noqa: SLF001 -- torch-pruning's own root types
_PER_CHANNEL = (nn.modules.batchnorm._BatchNorm, nn.PReLU)  # noqa: SLF001 -- base of all ranks
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "nhead", "n_head", "heads", "h")
_TOLERANCE = 1e-3
_MAX_NAMED = 5


@dataclass
class Prunable:
    """Channels that go together, and where they begin."""

    layer: Layer
    at_output: bool
    scores: list[float]


@dataclass
class Found:
    """What can be pruned, and what cannot with the reason."""

    prunable: list[Prunable] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def prune(
    module: nn.Module, feed: Feed, how: Structured, damage: Damage | None = None
) -> tuple[str, ...]:
    """Prune ``module`` in place and return what the reader must know.

    Args:
        module: Made of PyTorch's layers, in evaluation mode.
        feed: What it takes, a batch of one or more.
        how: Ratio, scope and rounding.
        damage: Needed for the scope ``sensitivity``.

    Raises:
        UnsupportedModelError: No layer can be pruned, or the pruned net does not run; says why.
    """
    found = find(module, feed)
    if not found.prunable:
        reasons = [f"{name}: {why}" for name, why in list(found.refused.items())[:_MAX_NAMED]]
        raise UnsupportedModelError(
            "no layer of the model can be pruned",
            reasons or ["it has no convolution or linear layer that torch-pruning knows"],
            hint="Leave pruning out; quantization is not concerned.",
        )
    layers = [p.layer for p in found.prunable]
    if how.scope == "sensitivity":
        if damage is None:
            raise UnsupportedModelError("pruning by sensitivity", ["there is nothing to measure"])
        damages = [
            [_damage(module, feed, p, ratio, damage) for ratio in allocation.TRIAL_RATIOS]
            for p in found.prunable
        ]
        widths = allocation.by_sensitivity(layers, damages, how.ratio, how.round_to)
    elif how.scope == "global":
        scores = [p.scores for p in found.prunable]
        widths = allocation.by_rank(layers, scores, how.ratio, how.round_to)
    else:
        widths = allocation.per_layer(layers, how.ratio, how.round_to)
    if all(w == layer.width for w, layer in zip(widths, layers, strict=True)):
        smallest = min(layer.channels for layer in layers)
        raise UnsupportedModelError(
            f"pruning by {how.ratio:g} leaves every layer whole",
            [f"kept channels are a multiple of {how.round_to}; the narrowest layer has {smallest}"],
            hint="Prune more, or by a smaller multiple.",
        )  # fmt: skip
    _apply(module, feed, list(zip(found.prunable, widths, strict=True)))
    return _notes(found)


def find(module: nn.Module, feed: Feed) -> Found:
    """Return what of ``module`` can be pruned; every one was tried on a copy.

    Raises:
        UnsupportedModelError: Torch-pruning cannot follow the model, or it cannot be copied.
    """
    found = Found()
    graph = _graph(module, feed)
    names = {m: n for n, m in module.named_modules()}
    heads = _heads(module)
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    for group in list(graph.get_all_groups(root_module_types=_ROOTS)):
        root = group[0].dep.target.module
        at_output, joined, groups = True, None, _groups_of(graph, group, heads)
        if any(item.dep.target.module in heads and _is_output(graph, item) for item in group):
            # Indices of a fused projection of queries, keys and values only make sense from
            # where heads are joined again.
            joined = _joined(graph, group)
            if joined is None:
                found.refused[names[root]] = "attention whose heads are not joined by a layer"
                continue
            root, at_output = joined[0].dep.target.module, False
        channels = graph.get_out_channels(root) if at_output else graph.get_in_channels(root)
        raw = importance(group if at_output else joined)
        if channels % groups or raw is None or channels // groups < 2:
            continue
        layer = Layer(names[root], int(channels), groups)
        scores = raw.detach().view(groups, -1).mean(0).tolist()
        candidate = Prunable(layer, at_output, scores)
        reason = _tried(module, feed, candidate)
        if reason:
            found.refused[layer.name] = reason
        else:
            found.prunable.append(candidate)
    return found


def _tried(module: nn.Module, feed: Feed, candidate: Prunable) -> str:
    """Return why pruning one channel of each group does not do what it should, or nothing."""
    want = _run(module, feed)
    pruned, masked = _copied(module), _copied(module)
    try:
        comparable = _take_out(pruned, feed, candidate, candidate.layer.width - 1, masked)
        got = _run(pruned, feed)
    except Exception as e:  # noqa: BLE001 -- forward() and torch-pruning may raise anything
        return f"without a channel the net fails: {first_line(e)}"
    if [t.shape for t in got] != [t.shape for t in want]:
        return "it makes the outputs"
    if comparable and not _same(got, _run(masked, feed)):
        return "its channels are used in a way that cannot be followed"
    return ""


def _take_out(
    module: nn.Module, feed: Feed, p: Prunable, width: int, masked: nn.Module | None = None
) -> bool:
    """Take the least important channels of ``p`` out of ``module``, which runs on ``feed``.

    Args:
        module: Changed in place.
        feed: What it takes.
        p: Whose channels.
        width: What each group keeps.
        masked: A copy of the whole module in which, instead, whatever reads the channels is made
            blind to them.

    Returns:
        Whether the masked copy must compute the same: not where channels are normalized together.
    """
    graph = _graph(module, feed)
    group = _group(graph, module, p, width)
    # Dimensions of heads are also read where queries meet keys, which no layer does.
    comparable = masked is not None and p.at_output and _mask(graph, group, module, masked)
    group.prune()
    return comparable


def _apply(module: nn.Module, feed: Feed, widths: Sequence[tuple[Prunable, int]]) -> None:
    want = [t.shape for t in _run(module, feed)]
    graph = _graph(module, feed)
    for p, width in widths:
        if width < p.layer.width:
            _group(graph, module, p, width).prune()
    for parameter in module.parameters():
        parameter.grad = None
    try:
        got = [t.shape for t in _run(module, feed)]
    except Exception as e:  # as above
        raise UnsupportedModelError(
            "the pruned net does not run", [first_line(e)], hint="Prune less, or leave it out."
        ) from e
    if got != want:
        raise UnsupportedModelError(
            "the pruned net has other outputs", [f"{list(map(list, got))}"],
            hint="Prune less, or leave it out.",
        )  # fmt: skip


def _damage(module: nn.Module, feed: Feed, p: Prunable, ratio: float, damage: Damage) -> float:
    trial = _copied(module)
    width = max(1, round(p.layer.width * (1 - ratio)))
    if width < p.layer.width:
        _take_out(trial, feed, p, width)
    return damage(trial)


def _graph(module: nn.Module, feed: Feed) -> Any:
    for parameter in module.parameters():
        # The graph is traced by autograd.
        parameter.requires_grad_(parameter.is_floating_point())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = torch_pruning.DependencyGraph()
            graph.build_dependency(
                module, example_inputs=feed, forward_fn=lambda m, x: m(*x),
                output_transform=_floating, verbose=False,
            )  # fmt: skip
    except Exception as e:  # torch-pruning raises whatever it meets
        raise UnsupportedModelError(
            "torch-pruning cannot follow the model",
            [first_line(e)],
            hint="Leave pruning out; quantization is not concerned.",
        ) from e
    return graph


def _floating(outputs: Any) -> list[torch.Tensor]:
    return [t for t in pytree.tree_leaves(outputs) if torch.is_tensor(t) and t.grad_fn is not None]


def _group(graph: Any, module: nn.Module, p: Prunable, width: int) -> Any:
    """Return the group that takes all but the ``width`` most important positions away."""
    root = module.get_submodule(p.layer.name)
    pruner = graph.get_pruner_of_module(root)
    handler = pruner.prune_out_channels if p.at_output else pruner.prune_in_channels
    # Sorted twice: by importance, then by place, so that ties fall the same way everywhere.
    order = sorted(range(p.layer.width), key=lambda i: (p.scores[i], i))
    gone = sorted(order[: p.layer.width - width])
    indices = [g * p.layer.width + i for g in range(p.layer.groups) for i in gone]
    group = graph.get_pruning_group(root, handler, indices)
    if not graph.check_pruning_group(group):
        raise UnsupportedModelError(f"{p.layer.name}: would lose all channels of a layer", [])
    return group


def _groups_of(graph: Any, group: Any, heads: dict[nn.Module, int]) -> int:
    """Return in how many equal parts the channels of ``group`` must be pruned alike."""
    found = 1
    for item in group:
        layer = item.dep.target.module
        if layer in heads and _is_output(graph, item):
            found = max(found, heads[layer])
        if not isinstance(layer, nn.Module) or _is_depthwise(layer):
            continue
        pruner = graph.get_pruner_of_module(layer)
        if pruner is not None:
            of = pruner.get_out_channel_groups if _is_output(graph, item) else (
                pruner.get_in_channel_groups
            )  # fmt: skip
            found = max(found, int(of(layer)))
    return found


def _is_output(graph: Any, item: Any) -> bool:
    return bool(graph.is_out_channel_pruning_fn(item.dep.handler))


def _is_depthwise(layer: Any) -> bool:
    return isinstance(layer, _CONV) and layer.groups == layer.out_channels > 1


def _joined(graph: Any, group: Any) -> Any:
    """Return the group from the layer that reads joined heads, or None where there is none."""
    found = None
    for item in group:
        if isinstance(item.dep.target.module, nn.Linear) and not _is_output(graph, item):
            found = item
    if found is None:
        return None
    return graph.get_pruning_group(found.dep.target.module, found.dep.handler, found.idxs)


def _heads(module: nn.Module) -> dict[nn.Module, int]:
    """Return the linear layers that project onto heads of attention, by names that are usual.

    Those whose outputs are heads: fused projections and those of queries, keys and values, not
    the one that joins them.
    """
    found: dict[nn.Module, int] = {}
    for inner in module.modules():
        if isinstance(inner, nn.MultiheadAttention):
            continue  # torch-pruning knows it
        count = next(
            (v for n in _HEADS if isinstance(v := getattr(inner, n, None), int) and v > 1), 0
        )
        linear = [c for c in inner.children() if isinstance(c, nn.Linear)]
        if not count or not linear:
            continue
        # q, k, v, or qkv; what joins the heads comes last.
        projections = linear if len(linear) == 3 else linear[:-1]
        found |= {c: count for c in projections if c.out_features % count == 0}
    return found


def _mask(graph: Any, group: Any, module: nn.Module, masked: nn.Module) -> bool:
    names = {m: n for n, m in module.named_modules()}
    readers = 0
    for item in group:
        layer, indices = item.dep.target.module, list(item.idxs)
        if layer not in names:
            if not isinstance(layer, nn.Module):
                return False  # a parameter of its own
            continue  # an operation
        if _is_output(graph, item):
            plain = isinstance(layer, (*_CONV, nn.Linear, *_PER_CHANNEL))
            if not plain or (getattr(layer, "groups", 1) != 1 and not _is_depthwise(layer)):
                return False
            continue
        if isinstance(layer, _TRANSPOSED) or not isinstance(layer, (*_CONV, nn.Linear)):
            return False
        if getattr(layer, "groups", 1) != 1:
            return False
        with torch.no_grad():
            masked.get_submodule(names[layer]).weight[:, indices] = 0
        readers += 1
    return readers > 0


def _copied(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except Exception as e:  # modules may hold anything
        raise UnsupportedModelError("the model cannot be copied", [first_line(e)]) from e


def _run(module: nn.Module, feed: Feed) -> list[torch.Tensor]:
    with torch.no_grad():
        return [t for t in pytree.tree_leaves(module(*feed)) if torch.is_tensor(t)]


def _same(got: Sequence[torch.Tensor], want: Sequence[torch.Tensor]) -> bool:
    return all(_is_close(a, b) for a, b in zip(got, want, strict=True))


def _is_close(a: torch.Tensor, b: torch.Tensor) -> bool:
    largest = float(b.double().abs().max()) if b.numel() else 0.0
    difference = float((a.double() - b.double()).abs().max()) if b.numel() else 0.0
    return difference <= _TOLERANCE * max(largest, 1e-6)


def _notes(found: Found) -> tuple[str, ...]:
    whole = {n: why for n, why in found.refused.items() if why != "it makes the outputs"}
    if not whole:
        return ()
    named = "; ".join(_named(whole))
    return (f"{len(whole)} layers were not pruned: {named}",)


def _named(whole: dict[str, str]) -> Iterator[str]:
    for number, (name, why) in enumerate(whole.items()):
        if number == _MAX_NAMED:
            yield f"and {len(whole) - _MAX_NAMED} more"
            return
        yield f"{name} ({why})"
