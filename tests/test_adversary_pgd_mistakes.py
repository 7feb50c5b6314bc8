"""What an attack is not given: each mistake is named, with what was expected, what came and the way out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.adversary import AttackNotFinite, ToClean, clean_logits, cross_entropy, pgd

LABELS = torch.arange(12) % 10


def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def images():
    return torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def attack(net, x, loss, **options):
    return pgd(net, x, loss, **{"epsilon": 0.1, "steps": 2, "step_size": 0.05, **options})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epsilon": 0}, "`epsilon` expected a finite number above 0, got 0"),
        ({"epsilon": -0.1}, "`epsilon` expected a finite number above 0, got -0.1"),
        ({"epsilon": float("nan")}, "`epsilon` expected a finite number above 0, got nan"),
        ({"step_size": 0.0}, "`step_size` expected a finite number above 0, got 0.0"),
        ({"steps": 0}, "`steps` expected at least 1, got 0"),
        ({"norm": "l1"}, "`norm` expected 'linf' or 'l2', got 'l1'"),
        ({"start": "random"}, "`start` expected 'none', 'uniform' or 'gaussian', got 'random'"),
        ({"keep": "best"}, "`keep` expected 'last' or 'strongest', got 'best'"),
        ({"bn_mode": "train"}, "`bn_mode` expected 'eval' or 'batch', got 'train'"),
        ({"clip": (1.0, 0.0)}, r"`clip` expected the least and the greatest value of a pixel, got \(1.0, 0.0\)"),
        ({"indices": torch.arange(3)}, r"`indices` expected one per image, shape \(12,\), got \(3,\)"),
    ],
)
def test_an_option_out_of_range_is_an_error(options, words):
    with pytest.raises(ValueError, match=words):
        attack(network(), images(), cross_entropy(LABELS), **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epsilon": "8/255"}, "`epsilon` expected a number above 0, got '8/255'"),
        ({"steps": 2.5}, "`steps` expected an integer, got 2.5"),
        ({"indices": torch.rand(12)}, "`indices` expected int64"),
    ],
)
def test_an_option_of_another_kind_is_an_error(options, words):
    with pytest.raises(TypeError, match=words):
        attack(network(), images(), cross_entropy(LABELS), **options)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda x: 2 * x - 1,
            r"`images` expected values in \[0, 1\], got -0.9.* to 0.9.*; standardise inside the model",
        ),
        (lambda x: 255 * x, r"`images` expected values in \[0, 1\]"),
        (lambda x: x.masked_fill(x > 0.9, torch.nan), r"`images` expected values in \[0, 1\], got nan to nan"),
        (lambda x: x[:0], r"`images` expected a non-empty shape \(N, ...\), got \(0, 1, 8, 8\)"),
        (lambda x: x[:, 0, 0, 0], r"`images` expected a non-empty shape \(N, ...\), got \(12,\)"),
    ],
)
def test_images_that_are_none_are_an_error(change, words):
    with pytest.raises(ValueError, match=words):
        attack(network(), change(images()), cross_entropy(LABELS))


@pytest.mark.parametrize(("x", "got"), [(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "torch.uint8"), ([[0.5]], "list")])
def test_images_of_another_kind_are_an_error(x, got):
    with pytest.raises(TypeError, match=rf"`images` expected a floating tensor \(N, ...\), got {got}"):
        attack(network(), x, cross_entropy(LABELS))


def test_a_loss_that_is_0_at_the_image_needs_another_start():
    net, x = network(), images()
    with pytest.raises(ValueError, match=r"`start` expected 'gaussian' or 'uniform' .* got 'none'"):
        attack(net, x, ToClean(lambda z, clean: (z - clean).square().sum(-1), clean_logits(net, x)), start="none")


def test_a_gradient_that_is_not_finite_is_an_error_and_the_mode_comes_back():
    net = network()
    with pytest.raises(AttackNotFinite, match="the gradient of `loss` expected finite numbers"):
        attack(net, images(), lambda z: cross_entropy(LABELS)(z) * torch.nan)
    assert net.training


@pytest.mark.parametrize("model", [lambda z: network()(z.detach()), lambda z: z.argmax(-1).double()])
def test_a_loss_without_a_gradient_to_the_images_is_an_error(model):
    with pytest.raises(ValueError, match="expected a gradient to the images, got none"):
        attack(model, images(), lambda z: z)


def test_inference_mode_is_an_error():
    with torch.inference_mode(), pytest.raises(ValueError, match=r"leave `torch.inference_mode`"):
        attack(network(), images(), cross_entropy(LABELS))
