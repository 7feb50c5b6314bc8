"""Losses of dense predictions as modules: each is the plain module with pixels as samples, prior and all."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch.nn import functional as F

from limbeck.config_losses import TERMS, loss_options
from limbeck.losses import (
    APDLoss,
    CWDLoss,
    DenseGKLLoss,
    DenseIKLLoss,
    DenseJSLoss,
    DenseKLLoss,
    GKLLoss,
    IKLLoss,
    JSLoss,
    KLLoss,
)

PAIRS = {
    "kl": (DenseKLLoss, KLLoss, {"temperature": 2.0, "scale_by_t2": True}),
    "js": (DenseJSLoss, JSLoss, {"beta": 0.3}),
    "ikl": (DenseIKLLoss, IKLLoss, {"mse_weight": 2.0}),
    "gkl": (DenseGKLLoss, GKLLoss, {"mse_weight": 2.0, "weight_power": 0.5, "temperature": 2.0}),
    "gkl, sample": (DenseGKLLoss, GKLLoss, {"prior": "sample", "weight_power": 0.5, "prior_temperature": 3.0}),
}


def maps(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    s, t = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64, generator=generator)
    labels = torch.randint(4, (3, 5, 6), generator=generator)
    labels[torch.rand(3, 5, 6, generator=generator) < 0.3] = 255
    return s, t, labels


@pytest.mark.parametrize("name", PAIRS)
def test_a_dense_loss_is_the_plain_one_of_the_pixels_that_take_part(name):
    dense_class, plain_class, options = PAIRS[name]
    classes = {"num_classes": 4} if "kl" in name and name != "kl" else {}
    dense, plain = dense_class(**classes, **options).double(), plain_class(**classes, **options).double()
    for seed in range(2):  # the second time with a prior of what the first showed
        s, t, labels = maps(seed)
        s.requires_grad_()
        kept = labels != 255
        rows = [each.movedim(1, -1)[kept] for each in (s, t)]
        values = dense(s, t, labels), plain(*rows, labels[kept])
        exact = 1e-7 if name == "gkl" else 1e-12  # the plain module raises its prior to the power in float32
        torch.testing.assert_close(values[0], values[1], rtol=exact, atol=exact)
        gradients = [torch.autograd.grad(value, s, retain_graph=True)[0] for value in values]
        torch.testing.assert_close(gradients[0], gradients[1], rtol=10 * exact, atol=exact)
        dense.observe(t, labels)
        plain.observe(rows[1], labels[kept])
        dense.refresh()
        plain.refresh()
        if getattr(dense, "prior", None) is not None:
            torch.testing.assert_close(dense.prior.prior, plain.prior.prior)


@pytest.mark.parametrize("name", ["kl", "js", "ikl", "gkl"])
def test_a_dense_loss_has_the_options_of_the_term(name):
    parameters = [each for each in inspect.signature(PAIRS[name][0]).parameters if each != "num_classes"]
    options = [option for option in loss_options(TERMS[name]) if option != "impl"]  # there is no dense kernel
    assert parameters == [*options, "ignore_index", "reduction"]


def test_channel_wise_distillation_is_kl_between_positions():
    s, t, _ = maps(3)
    by_hand = torch.zeros((), dtype=torch.float64)
    for image in range(3):
        for channel in range(4):
            p, q = (torch.softmax(x[image, channel].flatten() / 4, 0) for x in (t, s))
            by_hand += 16 * (p * (p / q).log()).sum() / 12
    torch.testing.assert_close(CWDLoss()(s, t), by_hand)
    assert CWDLoss()(s + 3.0, s) == pytest.approx(0.0, abs=1e-12)  # a constant moves no mass


def centres_by_hand(adapter, features: torch.Tensor, labels: torch.Tensor) -> tuple[dict, torch.Tensor]:
    adapted = F.normalize(adapter(features), dim=1)
    found = {}
    for number in sorted(set(labels.flatten().tolist()) - {255}):
        mean = torch.stack([adapted[n, :, y, x] for n, y, x in (labels == number).nonzero().tolist()]).mean(0)
        found[number] = mean / mean.norm()
    return found, adapted


def test_perspective_is_the_kl_of_likenesses_to_the_centres_that_are_there():
    s, t, labels = maps(4)
    labels[labels == 2] = 1  # class 2 is absent
    loss = APDLoss([(4, 5, 6)], [(4, 5, 6)], width=7).double()
    (own, f_s), (theirs, f_t) = (
        centres_by_hand(adapter, x, labels) for adapter, x in ((loss.adapter, s), (loss.target_adapter, t))
    )
    total = torch.zeros((), dtype=torch.float64)
    for n, y, x in (labels < 300).nonzero().tolist():
        p, q = (
            torch.softmax(10 * torch.stack([f[n, :, y, x] @ c for c in centres.values()]), 0)
            for f, centres in ((f_t, theirs), (f_s, own))
        )
        total = total + (p * (p / q).log()).sum() / (90 * 3)
    proto = sum(0.5 * (1 - own[number] @ theirs[number]) for number in own) / 3
    torch.testing.assert_close(loss([s], [t], labels), 10 * total + 10 * proto)


def test_the_teachers_adapter_learns_by_adam_and_by_nothing_else():
    _, t, labels = maps(5)
    loss = APDLoss([(4, 5, 6)], [(4, 5, 6)], width=7, adapter_learning_rate=1e-2).double()
    twin = torch.nn.Sequential(torch.nn.Conv2d(4, 7, 1), torch.nn.ReLU(), torch.nn.Conv2d(7, 7, 1)).double()
    twin.load_state_dict(loss.target_adapter.state_dict())
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-2)
    for _ in range(3):
        found, adapted = centres_by_hand(twin, t, labels)
        scores = 10 * torch.einsum("nchw,kc->nkhw", adapted, torch.stack(list(found.values())))
        optimizer.zero_grad()
        F.cross_entropy(scores, labels, ignore_index=255).backward()
        optimizer.step()
        loss.adapt([t], labels)
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(loss.target_adapter.state_dict()[name], value)
    assert not any(p.requires_grad for p in loss.target_adapter.parameters())
    assert {"steps", "first_0_weight", "second_2_bias"} <= set(loss.state_dict())


def test_a_batch_without_a_class_has_no_perspective():
    s, t, labels = maps(6)
    s.requires_grad_()
    loss = APDLoss([(4, 5, 6)], [(4, 5, 6)], width=7).double()
    value = loss([s], [t], torch.full_like(labels, 255))
    value.backward()
    loss.adapt([t], torch.full_like(labels, 255))
    assert value == 0
    assert all(value.isfinite().all() for value in loss.state_dict().values())
