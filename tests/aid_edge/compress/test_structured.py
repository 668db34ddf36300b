from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from aid_edge.compress import structured
from aid_edge.errors import UnsupportedModelError
from aid_edge.recipe import Structured
from tests.support import prunable_nets as nets

IMAGES = (torch.rand(2, 3, 8, 8),)
IDS = (torch.randint(0, 20, (2, 8)),)


def test_channels_go_through_skips_and_depthwise_convolutions() -> None:
    net = nets.residual().eval()
    structured.prune(net, IMAGES, Structured(0.5, round_to=4))
    assert net.stem[0].out_channels == 8
    assert net.inner[3].groups == net.inner[3].out_channels == 12
    assert net.hidden.in_features == 8 * 4
    assert net.last.out_features == 5
    assert net(*IMAGES).shape == (2, 5)


def test_what_is_left_computes_what_the_whole_does_without_those_channels() -> None:
    net = nets.residual().eval()
    with torch.no_grad():
        # Channels that are nothing and that nobody reads are the least important ones there are.
        net.hidden.weight[8:], net.hidden.bias[8:], net.last.weight[:, 8:] = 0, 0, 0
        want = net(*IMAGES)
    structured.prune(net, IMAGES, Structured(0.5, "global", 1))
    assert net.hidden.out_features <= 8
    assert net(*IMAGES).shape == want.shape


def test_heads_lose_the_same_dimensions_each() -> None:
    net = nets.transformer().eval()
    notes = structured.prune(net, IDS, Structured(0.5, round_to=4))
    assert notes == ()
    assert net.block.queries.out_features == net.block.joined.in_features == 16
    assert net.places.shape == (1, 8, 16)
    assert net(*IDS).shape == (2, 6)


@pytest.mark.parametrize(
    ("factory", "feed", "layer"),
    [(nets.rigid_transformer, IDS, "block.joined"), (nets.shuffled, IMAGES, "first")],
)
def test_a_layer_that_cannot_be_followed_stays_whole_and_is_named(
    factory: Callable[[], torch.nn.Module], feed: tuple[torch.Tensor, ...], layer: str
) -> None:
    net = factory().eval()
    shape = net.get_submodule(layer).weight.shape
    (note,) = structured.prune(net, feed, Structured(0.25, round_to=2))
    assert layer in note
    kept = net.get_submodule(layer).weight.shape
    assert kept[1 if layer == "block.joined" else 0] == shape[1 if layer == "block.joined" else 0]


def test_channels_that_another_layer_mixes_are_found_out() -> None:
    net = nets.mixed().eval()
    found = structured.find(net, IMAGES)
    assert "cannot be followed" in found.refused["first"]


def test_a_model_of_a_head_alone_is_refused() -> None:
    with pytest.raises(UnsupportedModelError) as refusal:
        structured.prune(nets.head_only(), (torch.rand(2, 4),), Structured(0.5))
    assert refusal.value.reasons == ["last: it makes the outputs"]


def test_a_ratio_that_rounds_to_nothing_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="leaves every layer whole"):
        structured.prune(nets.residual().eval(), IMAGES, Structured(0.1, round_to=32))


def test_sensitivity_prunes_least_what_hurts_most() -> None:
    net = nets.residual().eval()
    with torch.no_grad():
        want = net(*IMAGES)

    def damage(trial: torch.nn.Module) -> float:
        # As if the hidden layer were all that matters.
        with torch.no_grad():
            changed = float((trial(*IMAGES) - want).abs().sum())
        return float(32 - trial.hidden.out_features) + 1e-3 * changed

    structured.prune(net, IMAGES, Structured(0.4, "sensitivity", 4), damage)
    assert net.hidden.out_features >= 28
    assert net.inner[0].out_channels < 24
