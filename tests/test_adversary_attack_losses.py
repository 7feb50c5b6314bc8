"""What an attack climbs: one value per sample, whatever the labels and the precision of the logits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.adversary import ToClean, clean_logits, cross_entropy, margin

LABELS = torch.tensor([2, 0, 1, 1])


def logits(dtype=torch.float64):
    return (4 * torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).to(dtype)


def test_cross_entropy_is_minus_the_logarithm_of_the_labels_probability():
    expected = [-torch.softmax(row, 0)[label].log() for row, label in zip(logits(), LABELS, strict=True)]
    torch.testing.assert_close(cross_entropy(LABELS)(logits()), torch.stack(expected))


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_labels_are_any_integers(dtype):
    for build in (cross_entropy, margin):
        assert torch.equal(build(LABELS.to(dtype))(logits()), build(LABELS)(logits()))


def test_soft_labels_weigh_the_cross_entropies_of_the_classes():
    soft = torch.softmax(torch.randn(4, 3, generator=torch.Generator().manual_seed(1)), -1)
    each = torch.stack([cross_entropy(torch.full((4,), k))(logits()) for k in range(3)], -1)
    torch.testing.assert_close(cross_entropy(soft)(logits()), (soft * each).sum(-1))


def test_the_margin_is_the_best_wrong_class_less_the_label():
    expected = [
        max(z for k, z in enumerate(row) if k != label) - row[label]
        for row, label in zip(logits().tolist(), LABELS.tolist(), strict=True)
    ]
    assert margin(LABELS)(logits()).tolist() == expected
    misclassified = logits().argmax(-1) != LABELS
    assert torch.equal(margin(LABELS)(logits()) > 0, misclassified)
    assert 0 < misclassified.sum() < 4


def test_the_margin_rises_with_one_wrong_class_and_falls_with_the_label():
    x = torch.tensor([[1.0, 3.0, 2.0], [1.0, 1.0, 0.0]], requires_grad=True)
    margin(torch.tensor([1, 2]))(x).sum().backward()
    assert x.grad[0].tolist() == [0.0, -1.0, 1.0]
    assert sorted(x.grad[1].tolist()) == [-1.0, 0.0, 1.0]  # of two equal classes one


@pytest.mark.parametrize("build", [cross_entropy, margin])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_logits_are_compared_in_float32(build, autocast):
    half = logits(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        values = build(LABELS)(half)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, build(LABELS)(half.float()), atol=0, rtol=0)


def test_to_clean_compares_with_the_clean_logits():
    climb = ToClean(lambda z, clean: (z - clean).square().sum(-1), torch.ones(4, 3, dtype=torch.float64))
    torch.testing.assert_close(climb(logits()), (logits() - 1).square().sum(-1))


def test_clean_logits_are_those_of_the_attacked_network_and_have_no_graph():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout())
    images = torch.rand(8, 3)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    in_eval, by_batch = clean_logits(net, images), clean_logits(net, images, "batch")
    assert not in_eval.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training
    torch.testing.assert_close(by_batch.mean(0), torch.zeros(4), atol=1e-6, rtol=0)
    assert torch.equal(in_eval, net.eval()(images))


def test_weights_learn_after_clean_logits_in_the_same_autocast():
    net, images = nn.Linear(3, 4), torch.rand(8, 3)
    with torch.autocast("cpu", torch.bfloat16):
        clean_logits(net, images)
        net(images).float().square().sum().backward()
    assert net.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("build", "labels", "words"),
    [
        (cross_entropy, [0, 1, 2, 3], r"`labels` expected values in \[0, 2\], got 0 to 3"),
        (cross_entropy, [0, 1, 2, -100], r"`labels` expected values in \[0, 2\], got -100 to 2"),
        (margin, [0, 1, 2, 3], r"`labels` expected values in \[0, 2\], got 0 to 3"),
        (margin, [0, 1], r"`labels` expected shape \(4,\), got \(2,\)"),
        (cross_entropy, [[0.0], [1.0], [1.0], [0.0]], r"soft `labels` expected shape \(4, 3\), got \(4, 1\)"),
    ],
)
def test_labels_that_are_no_classes_are_an_error(build, labels, words):
    with pytest.raises(ValueError, match=words):
        build(torch.tensor(labels))(logits())


def test_a_margin_needs_two_classes():
    with pytest.raises(ValueError, match="`logits` expected at least 2 classes for a margin, got 1"):
        margin(torch.tensor([0]))(torch.zeros(1, 1))


@pytest.mark.parametrize(
    ("build", "labels", "words"),
    [
        (margin, [[0.5, 0.5]], r"`labels` expected integers \(N,\), got torch.float32"),
        (cross_entropy, [True, False], r"`labels` expected integers \(N,\) or soft labels \(N, C\), got torch.bool"),
    ],
)
def test_labels_of_another_kind_are_an_error(build, labels, words):
    with pytest.raises(TypeError, match=words):
        build(torch.tensor(labels))
