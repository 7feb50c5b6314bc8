"""Claims about the losses between distributions of features: a projector, a distance, their terms' options."""

from __future__ import annotations

import inspect

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from limbeck.config_terms import FeatureTerm
from limbeck.config_terms_moments import MOMENTS_TERMS
from limbeck.functional.feature_distributions import gaussian_kl
from limbeck.functional.gaussian import gaussian_wasserstein
from limbeck.losses.feature_distributions import DISTANCES, FeatureDistributionLoss
from limbeck.losses.gaussian import WKDFeatureLoss

LOSSES = {"wkd_feature": WKDFeatureLoss, "feature_distribution": FeatureDistributionLoss}
SHAPES, TARGET_SHAPES = [(6, 8, 8), (5, 4, 4)], [(7, 4, 4), (3, 8, 8)]
every_loss = pytest.mark.parametrize("kind", LOSSES.values(), ids=LOSSES.keys())
Kind = type[WKDFeatureLoss] | type[FeatureDistributionLoss]


def batch() -> tuple[list[Tensor], list[Tensor]]:
    draw = torch.Generator().manual_seed(0)
    sides = [[torch.randn(3, *shape, generator=draw) for shape in shapes] for shapes in (SHAPES, TARGET_SHAPES)]
    return [x.requires_grad_() for x in sides[0]], [y.relu().requires_grad_() for y in sides[1]]


@every_loss
def test_layers_are_summed_and_projectors_trained_but_not_the_target(kind: Kind) -> None:
    features, targets = batch()
    loss = kind(SHAPES, TARGET_SHAPES).eval()  # batch normalisation from its running statistics
    value = loss(features, targets)
    value.backward()
    assert all(x.grad is not None and x.grad.any() for x in (*features, *loss.parameters()))
    assert all(y.grad is None for y in targets)
    singles = [loss.projectors[i](features[i]) for i in range(2)]
    distance = gaussian_kl if kind is FeatureDistributionLoss else gaussian_wasserstein
    options = {} if kind is FeatureDistributionLoss else {"mean_weight": 2.0}
    expected = sum(distance(x, y, **options) for x, y in zip(singles, targets, strict=True))
    assert torch.isclose(value, expected)


@every_loss
def test_reductions_agree_and_one_layer_needs_no_sequence(kind: Kind) -> None:
    features, targets = (side[0] for side in batch())
    losses = {word: kind(SHAPES[:1], TARGET_SHAPES[:1], reduction=word).eval() for word in ("none", "mean", "sum")}
    for loss in losses.values():
        loss.load_state_dict(losses["none"].state_dict())
    each = losses["none"](features, targets)
    assert each.shape == (3,)
    assert torch.isclose(losses["mean"](features, targets), each.mean())
    assert torch.isclose(losses["sum"]([features], [targets]), each.sum())


def test_options_reach_the_distance() -> None:
    (features, _), _ = batch()
    target = torch.randn_like(features)
    for options in (
        {"mean_weight": 5.0},
        {"mean_weight": 0.0, "covariance": "full"},
        {"mean_weight": 1.0, "grid": 4, "unbiased": False},
    ):
        loss = WKDFeatureLoss([(6, 8, 8)], [(6, 8, 8)], projector="none", **options)
        assert torch.equal(loss(features, target), gaussian_wasserstein(features, target, **options))


@pytest.mark.parametrize("kind", DISTANCES)
def test_each_rival_trains_the_projector_towards_its_target(kind: str) -> None:
    torch.manual_seed(0)
    features, target = torch.rand(8, 6, 4, 4), torch.rand(8, 7, 4, 4)
    loss = FeatureDistributionLoss([(6, 4, 4)], [(7, 4, 4)], kind=kind)
    optimizer = torch.optim.SGD(loss.parameters(), lr=1e-3)
    values = []
    for _ in range(8):
        value = loss(features, target)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < values[0]


@pytest.mark.parametrize("kind", ["wkd_feature", *(name for name in DISTANCES if not name.startswith("spatial"))])
def test_a_map_may_be_drawn_to_tokens_and_tokens_to_a_map(kind: str) -> None:
    for shape, target_shape in (((6, 4, 4), (49, 7)), ((49, 6), (7, 4, 4)), ((6, 4, 4), (7, 3, 3))):
        loss = (
            WKDFeatureLoss([shape], [target_shape], projector="linear")
            if kind == "wkd_feature"
            else FeatureDistributionLoss([shape], [target_shape], kind=kind, projector="linear")
        )
        assert loss(torch.rand(2, *shape), torch.rand(2, *target_shape)).isfinite()


@every_loss
def test_half_features_and_autocast_give_float32(kind: Kind) -> None:
    features, targets = batch()
    loss = kind(SHAPES, TARGET_SHAPES).eval()
    expected = loss(features, targets)
    assert loss([x.bfloat16() for x in features], targets).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(features, targets)
    assert inside.dtype == torch.float32
    assert torch.isclose(inside, expected, rtol=0.05)


@every_loss
def test_loss_is_captured_whole(kind: Kind) -> None:
    features, targets = batch()
    loss = kind(SHAPES, TARGET_SHAPES).eval()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.isclose(compiled(features, targets), loss(features, targets))


@pytest.mark.parametrize(
    ("kind", "shapes", "target_shapes", "options", "message"),
    [
        (WKDFeatureLoss, [(6, 2, 2)], [(7, 4, 4)], {"grid": 4}, "got 4 x 4 cells on a map of 4 x 4"),
        (WKDFeatureLoss, [(6, 2, 2)], [(7, 1, 1)], {}, "cells of at least 2 positions"),
        (WKDFeatureLoss, [(6,)], [(7,)], {"projector": "linear"}, r"expected maps \(D, H, W\) or tokens \(L, D\)"),
        (WKDFeatureLoss, [(6, 4, 4)], [(7, 4, 4)], {"projector": "none"}, "'none' expected one shape"),
        (WKDFeatureLoss, [(6, 4, 4)], [(7, 4, 4)], {"covariance": "banded"}, "`covariance`"),
        (WKDFeatureLoss, [(6, 4, 4)], [(7, 4, 4)], {"mean_weight": -1.0}, "`mean_weight`"),
        (WKDFeatureLoss, [(6, 4, 4)], [], {}, "one shape per layer"),
        (FeatureDistributionLoss, [(6, 4, 4)], [(7, 4, 4)], {"kind": "cauchy_kl"}, "`kind` expected one of"),
        (FeatureDistributionLoss, [(6,)], [(7,)], {"projector": "linear"}, "a vector has no distribution"),
        (
            FeatureDistributionLoss,
            [(6, 4, 4)],
            [(7, 3, 3)],
            {"kind": "spatial_first", "projector": "linear"},
            "shapes that differ in D alone",
        ),
    ],
)
def test_what_cannot_work_is_refused_when_the_loss_is_made(
    kind: Kind, shapes: list[tuple[int, ...]], target_shapes: list[tuple[int, ...]], options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kind(shapes, target_shapes, **options)


@pytest.mark.parametrize("name", MOMENTS_TERMS)
def test_module_has_the_options_of_its_term_in_order_with_their_defaults(name: str) -> None:
    declared = [
        (option, field.default, field.annotation)
        for option, field in MOMENTS_TERMS[name].model_fields.items()
        if option not in FeatureTerm.model_fields
    ]
    parameters = list(inspect.signature(LOSSES[name], eval_str=True).parameters.values())
    assert [p.name for p in parameters[:2]] == ["shapes", "target_shapes"]
    options = [p for p in parameters[2:] if p.name != "reduction"]
    assert [(p.name, p.default, p.annotation) for p in options] == declared
    assert all(p.kind is p.KEYWORD_ONLY for p in options)
    assert MOMENTS_TERMS[name]().features == ("last",)


def test_term_refuses_what_its_module_refuses() -> None:
    for name, options in (
        ("wkd_feature", {"grid": 0}),
        ("wkd_feature", {"mean_weight": -1.0}),
        ("feature_distribution", {"kind": "cauchy_kl"}),
    ):
        with pytest.raises(ValidationError):
            MOMENTS_TERMS[name](**options)
        with pytest.raises(ValueError, match=next(iter(options))):
            LOSSES[name]([(6, 4, 4)], [(6, 4, 4)], **options)
