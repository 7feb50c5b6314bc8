"""Claims about the modules of RKD, PKT, SP, CC and EMD: what they sum, what they train, what they refuse."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear
from twins import gradients

from limbeck.functional.congruence import kernel_congruence, neighbour_congruence
from limbeck.functional.proximal_transport import ipot_transport
from limbeck.functional.relational import relational_angle, relational_distance
from limbeck.functional.similarity import probabilistic_transfer, similarity_preserving
from limbeck.losses.congruence import CCLoss
from limbeck.losses.feature import FeatureLoss
from limbeck.losses.proximal_transport import EMDLoss
from limbeck.losses.relational import RKDLoss
from limbeck.losses.similarity import PKTLoss, SPLoss

SHAPES, TARGET_SHAPES = [(3, 2, 2), (8,)], [(4, 2, 2), (5,)]
BUILD: dict[str, Callable[[], FeatureLoss]] = {
    "RKD": RKDLoss,
    "PKT": PKTLoss,
    "SP": SPLoss,
    "CC": lambda: CCLoss(SHAPES, TARGET_SHAPES, dim=6),
    "kernel CC": lambda: CCLoss(SHAPES, TARGET_SHAPES, dim=6, form="kernel"),
    "EMD": lambda: EMDLoss(SHAPES, TARGET_SHAPES),
}
TRAINED = ["CC", "kernel CC", "EMD"]

every_loss = pytest.mark.parametrize("name", BUILD)


def layers(dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    sides = ([torch.randn(5, *shape, generator=generator).to(dtype) for shape in s] for s in (SHAPES, TARGET_SHAPES))
    return tuple([x.requires_grad_() for x in side] for side in sides)


def built(name: str) -> FeatureLoss:
    torch.manual_seed(0)
    return BUILD[name]()


def plain(loss: FeatureLoss, layer: int, s: Tensor, t: Tensor) -> Tensor:
    """The layer's value from the functions, the modules' weights written out."""
    s, t = s.flatten(1), t.flatten(1)
    match loss:
        case RKDLoss():
            return 25 * relational_distance(s, t) + 50 * relational_angle(s, t)
        case PKTLoss():
            return probabilistic_transfer(s, t)
        case SPLoss():
            return similarity_preserving(s, t)
        case EMDLoss():
            return ipot_transport(s @ loss.projections[layer].weight.T, t)
        case CCLoss():
            function = kernel_congruence if loss.form == "kernel" else neighbour_congruence
            own, target = loss.embeddings[layer], loss.target_embeddings[layer]
            return function(linear(s, own.weight, own.bias), linear(t, target.weight, target.bias))
        case _:
            raise AssertionError


@every_loss
def test_loss_sums_over_the_layers(name: str) -> None:
    loss = built(name)
    student, target = layers()
    value = loss(student, target)
    expected = sum(plain(loss, i, s, t) for i, (s, t) in enumerate(zip(student, target, strict=True)))
    assert value.shape == ()
    assert torch.isclose(value, expected, rtol=1e-6)


@every_loss
def test_gradients_reach_the_student_and_the_trained_parts_alone(name: str) -> None:
    loss = built(name)
    student, target = layers()
    value = loss(student, target)
    assert all(gradient.any() for gradient in gradients(value, *student, *loss.parameters()))
    assert torch.autograd.grad(value, target, allow_unused=True) == (None, None)
    assert bool(list(loss.parameters())) == (name in TRAINED)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_features_are_taken_alone_and_under_autocast(name: str, dtype: torch.dtype) -> None:
    loss = built(name)
    exact = loss(*layers())
    student, target = layers(dtype)
    value = loss(student, target)
    assert value.dtype == torch.float32
    assert torch.isclose(value, exact, rtol=0.05)
    assert all(gradient.isfinite().all() for gradient in gradients(value, *student))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isclose(loss(*layers()), exact, rtol=0.05)


@every_loss
def test_a_loss_without_memory_keeps_nothing(name: str) -> None:
    loss = built(name)
    before = {key: value.clone() for key, value in loss.state_dict().items()}
    loss(*layers())
    loss.observe(torch.zeros(5, 3), torch.zeros(5, dtype=torch.int64))
    assert all(torch.equal(value, before[key]) for key, value in loss.state_dict().items())


def test_rkd_weighs_its_parts() -> None:
    student, target = (side[1] for side in layers())
    distance, angle = relational_distance(student, target), relational_angle(student, target)
    for weights in ((1.0, 2.0), (0.0, 3.0), (4.0, 0.0), (0.0, 0.0)):
        value = RKDLoss(distance_weight=weights[0], angle_weight=weights[1])(student, target)
        assert torch.isclose(value, weights[0] * distance + weights[1] * angle)
        assert value.requires_grad


def test_options_of_cc_and_emd_reach_their_functions() -> None:
    student, target = (side[1] for side in layers())
    options = {"kernel": "gaussian", "gamma": 0.2, "degree": 3, "normalize": False, "squared": False}
    loss = CCLoss([(8,)], [(5,)], form="kernel", dim=7, **options)
    assert loss.embeddings[0].out_features == 7
    expected = kernel_congruence(loss.embeddings[0](student), loss.target_embeddings[0](target), **options)
    assert torch.isclose(loss(student, target), expected)
    options = {"metric": "squared_euclidean", "beta": 0.5, "iterations": 3}
    loss = EMDLoss([(8,)], [(5,)], **options)
    assert [tuple(parameter.shape) for parameter in loss.parameters()] == [(5, 8)]  # no bias
    assert torch.isclose(loss(student, target), ipot_transport(loss.projections[0](student), target, **options))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RKDLoss(distance_weight=-1.0), "`distance_weight`"),
        (lambda: RKDLoss(angle_weight=float("nan")), "`angle_weight`"),
        (lambda: CCLoss([], []), "`shapes`"),
        (lambda: CCLoss([(8,)], [(8,)], form="paper"), "`form` expected 'neighbour' or 'kernel', got 'paper'"),
        (lambda: CCLoss([(8,)], [(8,)], dim=0), "`dim`"),
        (lambda: CCLoss([(8,)], [(8,)], kernel="rbf"), "`kernel`"),
        (lambda: EMDLoss([(8,)], [(8,), (4,)]), "`shapes` and `target_shapes`"),
        (lambda: EMDLoss([(8,)], [(8,)], metric="l2"), "`metric`"),
        (lambda: EMDLoss([(8,)], [(8,)], iterations=0), "`iterations`"),
    ],
)
def test_bad_options_are_said_at_once(build: Callable[[], FeatureLoss], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("name", TRAINED)
def test_features_of_another_shape_than_told_are_refused(name: str) -> None:
    loss = built(name)
    student, target = layers()
    with pytest.raises(ValueError, match="`features` expected 2 layers, as many as `shapes`"):
        loss(student[0], target[0])
    with pytest.raises(ValueError, match=r"`features` expected 12 numbers per sample.* got the shape \(5, 8\)"):
        loss(student[::-1], target)
