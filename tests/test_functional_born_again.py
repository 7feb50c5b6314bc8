"""Claims about the controls of born-again networks."""

from __future__ import annotations

import pytest
import torch
import twins
from torch import nn
from twins import gradients, labelled_batch

from limbeck import functional
from limbeck.functional.born_again import confidence_weighted_cross_entropy, permute_other_classes


def test_cwtm_equals_its_formula() -> None:
    student, target, labels = labelled_batch()
    weights = [row.max() for row in twins.softmax(target.detach())]
    losses = [-row[y].log() for row, y in zip(twins.softmax(student), labels, strict=True)]
    expected = sum(w * x for w, x in zip(weights, losses, strict=True)) / sum(weights)
    value = confidence_weighted_cross_entropy(student, target, labels)
    assert torch.isclose(value, expected, rtol=1e-12)
    assert (gradients(value, student)[0] - gradients(expected, student)[0]).abs().max() < 1e-14
    assert torch.autograd.grad(value, target, allow_unused=True) == (None,)
    assert not torch.isclose(value, nn.functional.cross_entropy(student, labels))


def test_cwtm_of_even_confidence_is_cross_entropy_and_is_finite_in_half_precision() -> None:
    student, target, labels = labelled_batch()
    plain = nn.functional.cross_entropy(student, labels)
    even = confidence_weighted_cross_entropy(student, target[:1].expand(7, 5), labels)
    assert torch.isclose(even, plain, rtol=1e-12)
    far = torch.tensor([[6e4, -6e4], [0.0, 0.0]], dtype=torch.float16, requires_grad=True)
    value = confidence_weighted_cross_entropy(far, -far.detach(), torch.tensor([1, 0]))
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert gradients(value, far)[0].isfinite().all()
    with pytest.raises(TypeError, match="CWTM has no form for soft labels"):
        confidence_weighted_cross_entropy(student, target, target)


def test_the_largest_stays_and_the_others_are_shuffled_within_their_sample() -> None:
    target = labelled_batch(samples=200, classes=6)[1].detach()
    torch.manual_seed(0)
    shuffled = permute_other_classes(target)
    largest = target.argmax(-1, keepdim=True)
    assert torch.equal(shuffled.gather(-1, largest), target.gather(-1, largest))
    assert torch.equal(shuffled.sort(-1).values, target.sort(-1).values)
    assert 0.1 < (shuffled == target).double().mean() - 1 / 6 < 0.25  # one in five of the others stays by chance
    entropy = [-(p * p.log()).sum(-1) for p in (twins.softmax(x) for x in (target, shuffled))]
    assert torch.allclose(*entropy)
    assert functional.kl_divergence(shuffled, target) > 0.1


def test_every_permutation_of_the_others_is_as_likely() -> None:
    torch.manual_seed(0)
    target = torch.tensor([1.0, 9.0, 2.0, 3.0]).expand(6000, 4)
    rows, counts = permute_other_classes(target).unique(dim=0, return_counts=True)
    assert rows.shape == (6, 4)
    assert (rows[:, 1] == 9).all()
    assert ((counts - 1000).abs() < 150).all()  # five deviations


def test_the_same_keys_are_the_same_permutation_also_when_captured_whole() -> None:
    _, target, _ = labelled_batch(samples=12)
    keys = torch.rand(12, 5, generator=torch.Generator().manual_seed(3))
    expected = permute_other_classes(target, keys)
    compiled = torch.compile(permute_other_classes, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(target, keys), expected)
    assert torch.equal(permute_other_classes(target.view(3, 4, 5), keys.view(3, 4, 5)).view(12, 5), expected)
    pull = torch.arange(60, dtype=torch.float64).view(12, 5)
    (gradient,) = gradients((expected * pull).sum(), target)
    assert torch.equal(gradient.sort(-1).values, pull)
    assert torch.equal(permute_other_classes(torch.tensor([[2.0]])), torch.tensor([[2.0]]))
    with pytest.raises(ValueError, match=r"`keys` expected the shape \(12, 5\), got \(5,\)"):
        permute_other_classes(target, keys[0])
