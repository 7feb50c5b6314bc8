"""The Jensen-Shannon divergence of several predictions: what it is of two, its bounds, its gradient."""

from __future__ import annotations

import math

import pytest
import torch

from limbeck import MultiJSLoss, functional


def views(count: int, samples: int = 7, classes: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return 3 * torch.randn(count, samples, classes, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_it_is_the_mean_divergence_from_the_mean_written_out(count, temperature):
    logits = views(count)
    p = (logits / temperature).softmax(-1)
    mean = p.mean(0)
    expected = sum((each * (each.log() - mean.log())).sum(-1) for each in p) / count
    value = functional.multi_js_divergence(logits, temperature=temperature, reduction="none")
    assert torch.allclose(value, expected, rtol=1e-12, atol=1e-14)


def test_it_is_the_entropy_of_the_mean_less_the_mean_entropy():
    p = (logits := views(4)).softmax(-1)
    entropy = torch.special.entr(p.mean(0)).sum(-1) - torch.special.entr(p).sum(-1).mean(0)
    assert torch.allclose(functional.multi_js_divergence(logits, reduction="none"), entropy, atol=1e-13)


def test_of_two_views_it_is_jensen_shannon():
    logits = views(2)
    pair = functional.js_divergence(logits[0], logits[1], reduction="none")
    assert torch.allclose(functional.multi_js_divergence(logits, reduction="none"), pair, atol=1e-14)


def test_it_lies_between_nothing_and_the_log_of_the_number_of_views():
    assert functional.multi_js_divergence(views(1)) == 0
    apart = 1000 * torch.eye(3, dtype=torch.float64).unsqueeze(1)
    assert functional.multi_js_divergence(apart).item() == pytest.approx(math.log(3))


def test_it_does_not_depend_on_the_order_of_the_views_and_has_all_derivatives():
    logits = views(3, samples=2, classes=3)
    swapped = functional.multi_js_divergence(logits.flip(0))
    assert torch.allclose(functional.multi_js_divergence(logits), swapped, atol=1e-15)
    assert torch.autograd.gradcheck(functional.multi_js_divergence, logits.requires_grad_())
    assert torch.autograd.gradgradcheck(functional.multi_js_divergence, logits)


def test_a_class_that_is_absent_from_all_views_changes_nothing():
    logits = views(3)
    absent = torch.cat([logits, torch.full_like(logits[..., :1], -torch.inf)], -1).requires_grad_()
    value = functional.multi_js_divergence(absent)
    assert torch.allclose(value, functional.multi_js_divergence(logits))
    (gradient,) = torch.autograd.grad(value, absent)
    assert (gradient[..., -1] == 0).all()
    assert gradient.isfinite().all()


def test_half_precision_is_computed_in_single():
    logits = views(3).bfloat16().requires_grad_()
    value = MultiJSLoss()(logits)
    assert value.dtype == torch.float32
    assert torch.autograd.grad(value, logits)[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("logits", "options", "message"),
    [
        (torch.zeros(3), {}, "`view_logits` expected the shape"),
        (torch.zeros(0, 2, 3), {}, "not empty"),
        (torch.zeros(2, 2, 3), {"temperature": 0.0}, "`temperature`"),
        (torch.zeros(2, 2, 3), {"reduction": "average"}, "average"),
    ],
)
def test_what_is_no_set_of_views_is_refused(logits, options, message):
    with pytest.raises(ValueError, match=message):
        functional.multi_js_divergence(logits, **options)
