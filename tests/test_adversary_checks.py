"""What an evaluation refuses at once, and the signs of masked gradients that it sees."""

from __future__ import annotations

import math

import pytest
import torch
from attacked_nets import Rounded, Scaled, network, samples
from torch import nn

from limbeck.adversary.checks import check_inputs, check_logits, network_warnings, square_warning

IMAGES, LABELS = torch.rand(3, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2])


class Noisy(nn.Module):
    def __init__(self, model, size):
        super().__init__()
        self.model, self.size = model, size

    def forward(self, images):
        return self.model(images + self.size * torch.randn_like(images))


# --- inputs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "labels", "epsilons", "norm", "error", "message"),
    [
        (IMAGES + 1, LABELS, [0.1], "linf", ValueError, r"`images` expected pixels in \[0, 1\], got 1\..* to 1\."),
        (IMAGES - 1, LABELS, [0.1], "linf", ValueError, r"`images` expected pixels in \[0, 1\].*normalisation"),
        (IMAGES * math.nan, LABELS, [0.1], "linf", ValueError, r"`images` expected pixels in \[0, 1\], got nan"),
        ((IMAGES * 255).byte(), LABELS, [0.1], "linf", TypeError, "torch.uint8; divide bytes by 255"),
        (IMAGES.flatten(1), LABELS, [0.1], "linf", ValueError, r"`images` expected shape \(N, C, H, W\), got \(3, 4\)"),
        (IMAGES[:0], LABELS[:0], [0.1], "linf", ValueError, "`images` expected at least one sample"),
        (IMAGES, LABELS.float(), [0.1], "linf", TypeError, "`labels` expected int64 class numbers, got torch.float32"),
        (IMAGES, LABELS[:2], [0.1], "linf", ValueError, r"`labels` expected shape \(3,\), got \(2,\)"),
        (IMAGES, LABELS, [], "linf", ValueError, "`epsilons` expected at least one radius"),
        (IMAGES, LABELS, [0.1, 0.0], "linf", ValueError, "`epsilons` expected numbers above 0, got 0.0"),
        (IMAGES, LABELS, [-0.1], "linf", ValueError, "`epsilons` expected numbers above 0, got -0.1"),
        (IMAGES, LABELS, [math.nan], "linf", ValueError, "`epsilons` expected numbers above 0, got nan"),
        (IMAGES, LABELS, [0.1], "l1", ValueError, "`norm` expected 'linf' or 'l2', got 'l1'"),
    ],
)
def test_a_wrong_input_is_named(images, labels, epsilons, norm, error, message):
    with pytest.raises(error, match=message):
        check_inputs(images, labels, epsilons, norm)


def test_the_ends_of_the_range_are_in_it():
    check_inputs(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), torch.tensor([0, 1]), [1e-9], "l2")


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (torch.zeros(3), r"`model` expected logits \(3, C\) with at least 2 classes, got shape \(3,\)"),
        (torch.zeros(3, 1), r"at least 2 classes, got shape \(3, 1\)"),
        (torch.zeros(2, 3), r"expected logits \(3, C\)"),
        (torch.tensor([[0, math.inf, 0]] * 3), "expected finite logits"),
        (torch.zeros(3, 2), "`labels` expected values from 0 to 1, as the network has 2 outputs, got 2"),
    ],
)
def test_outputs_that_are_no_logits_of_the_labels_are_named(logits, message):
    with pytest.raises(ValueError, match=message):
        check_logits(logits, LABELS)


def test_a_negative_label_is_named():
    with pytest.raises(ValueError, match="got -1"):
        check_logits(torch.zeros(3, 10), LABELS - 1)


# --- signs ------------------------------------------------------------------------------------------------


def test_a_sound_network_has_no_sign():
    assert network_warnings(network(), *samples(50)) == []


@pytest.mark.parametrize(
    ("change", "sign"),
    [
        (lambda model: nn.Sequential(model, nn.Softmax(-1)), "the outputs look like probabilities"),
        (lambda model: Noisy(model, 0.1), "two forward passes differ"),
        (lambda model: nn.Sequential(model, nn.Dropout().train()), "two forward passes differ"),
        (Rounded, "the gradient of the cross-entropy is zero on 50 of 50 images"),
        (lambda model: Scaled(model, 1e4), "the gradient of the cross-entropy is zero on"),
    ],
    ids=["probabilities", "noise", "dropout", "quantised", "saturated"],
)
def test_a_sign_is_seen_and_no_other(change, sign):
    (warning,) = network_warnings(change(network()), *samples(50))
    assert warning.startswith(sign)


@pytest.mark.parametrize("change", [nn.LogSoftmax(-1), nn.Sigmoid()], ids=["log-probabilities", "sigmoid"])
def test_outputs_that_sum_to_something_else_are_no_probabilities(change):
    assert network_warnings(nn.Sequential(network(), change), *samples(50)) == []


def test_rounding_noise_is_not_randomness():
    assert network_warnings(Noisy(network(), 1e-8), *samples(50)) == []


def test_a_constant_network_has_no_gradient():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.zeros_(model[1].weight)
    (warning,) = network_warnings(model, *samples(5))
    assert "zero on 5 of 5 images" in warning


@pytest.mark.parametrize("cut", [torch.detach, lambda logits: logits.argmax(1, keepdim=True).expand(-1, 10).float()])
def test_outputs_without_a_graph_are_refused(cut):
    with pytest.raises(ValueError, match="`model` expected logits that carry a gradient to the images"):
        network_warnings(lambda images: cut(network()(images)), *samples(5))


@pytest.mark.parametrize(("after", "warns"), [(0.1, True), (0.597, True), (0.5985, False), (0.6, False)])
def test_square_is_compared_with_the_strongest_attack_by_gradient(after, warns):
    warning = square_warning({"clean": 0.9, "apgd-ce": 0.8, "apgd-t": 0.6, "fab-t": 0.6, "square": after}, 8 / 255)
    assert (warning is not None) == warns
    if warns:
        assert warning.startswith(f"at epsilon 0.0313725 Square breaks {100 * (0.6 - after):.1f} %")
