"""Claims about the margins of the overhaul, and what its partial distance and VID's variance refuse."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from limbeck.functional.overhaul import partial_l2, relu_margins
from limbeck.functional.variational import variational_information


def norm_layer(weight: list[float], bias: list[float]) -> nn.BatchNorm2d:
    bn = nn.BatchNorm2d(len(weight), dtype=torch.float64)
    with torch.no_grad():
        bn.weight.copy_(torch.tensor(weight, dtype=torch.float64))
        bn.bias.copy_(torch.tensor(bias, dtype=torch.float64))
    return bn


def mean_below_zero(mean: float, deviation: float) -> float:
    """By the midpoint rule."""
    x = -(torch.arange(400_000, dtype=torch.float64) + 0.5) * (abs(mean) + 12 * deviation) / 400_000
    density = torch.exp(-((x - mean).square() / (2 * deviation**2)))
    return float((x * density).sum() / density.sum())


@pytest.mark.parametrize(("weight", "bias"), [(1.0, 0.0), (0.5, -1.0), (-2.0, 1.5), (0.1, 0.3), (3.0, -0.01)])
def test_margin_is_the_mean_of_what_the_relu_cuts_off(weight: float, bias: float) -> None:
    assert float(relu_margins(norm_layer([weight], [bias]))) == pytest.approx(
        mean_below_zero(bias, abs(weight)), rel=1e-6
    )


def test_margin_of_a_channel_that_is_hardly_ever_negative_is_three_deviations() -> None:
    """Phi(-3.0902) is .001: the rule begins there, and far beyond nothing overflows."""
    margins = relu_margins(norm_layer([1.0, 1.0, -2.0, 1.0, 1e-8], [3.0902, 3.0903, 9.0, 1e6, 1e8]))
    assert margins[0] == pytest.approx(mean_below_zero(3.0902, 1.0), rel=1e-6)
    assert margins[1:].tolist() == pytest.approx([-3.0, -6.0, -3.0, -3e-8])


def test_margin_is_finite_for_any_batch_normalisation() -> None:
    """Without a deviation the channel is its bias: cut off whole if that is negative, not at all if not."""
    margins = relu_margins(norm_layer([0.0, 0.0, 0.0, 1e-300, 1.0, 1e300], [-2.0, 0.0, 2.0, -1e300, -1e300, 0.0]))
    assert margins[:3].tolist() == [-2.0, 0.0, 0.0]
    assert margins[3:].tolist() == pytest.approx([-1e300, -1e300, -1e300 * math.sqrt(2 / math.pi)])
    assert not margins.requires_grad
    half = nn.BatchNorm2d(2, dtype=torch.bfloat16)
    assert relu_margins(half).dtype == torch.bfloat16


def test_margins_need_a_batch_normalisation_with_weight_and_bias() -> None:
    with pytest.raises(TypeError, match="`bn` expected a batch normalisation, got GroupNorm"):
        relu_margins(nn.GroupNorm(2, 4))
    with pytest.raises(ValueError, match=r"`bn` expected .*`affine=False`"):
        relu_margins(nn.BatchNorm2d(3, affine=False))


def test_a_feature_below_the_margin_is_low_enough() -> None:
    """Where target and feature are below the margin nothing is left to learn; where only the feature is not, it is."""
    target = torch.full((1, 3, 1, 1), -9.0)
    features = torch.tensor([-100.0, -1.0, 0.5]).view(1, 3, 1, 1).requires_grad_()
    value = partial_l2(features, target, torch.full((3,), -1.0))
    value.backward()
    assert value.item() == 1.5**2
    assert features.grad is not None
    assert features.grad.flatten().tolist() == [0.0, 0.0, 3.0]


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (torch.zeros(4), ValueError, r"expected the shape \(3,\), one per channel, got \(4,\)"),
        (torch.zeros(()), ValueError, "one per channel"),
        (torch.zeros(3, dtype=torch.int64), TypeError, "floating"),
        (-1.0, TypeError, "got float"),
    ],
)
def test_a_margin_and_a_variance_are_one_number_per_channel(
    value: Tensor, error: type[Exception], message: str
) -> None:
    features = torch.zeros(2, 3, 4, 4)
    for loss, name in ((partial_l2, "margin"), (variational_information, "variance")):
        with pytest.raises(error, match=f"`{name}` .*{message}"):
            loss(features, features, value)
