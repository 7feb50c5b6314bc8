"""Claims about projectors: they reach the teacher's shape with the parameters that papers count, or say why not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.losses.projectors import ProjectedLoss, build_projector


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("kind", ["conv1x1", "bottleneck"])
@pytest.mark.parametrize(
    ("size", "target_size"),
    [
        ((8, 8), (8, 8)),
        ((8, 8), (4, 4)),
        ((4, 4), (8, 8)),
        ((7, 7), (4, 4)),
        ((8, 8), (7, 7)),
        ((2, 2), (1, 1)),
        ((1, 1), (2, 2)),
        ((8, 6), (4, 3)),
        ((9, 5), (8, 5)),
        ((8, 8), (4, 8)),
        ((3, 3), (1, 1)),
    ],
)
def test_any_size_that_can_be_matched_is(kind: str, size: tuple[int, int], target_size: tuple[int, int]) -> None:
    shape, target_shape = (5, *size), (7, *target_size)
    assert build_projector(kind, shape, target_shape)(torch.randn(2, *shape)).shape == (2, *target_shape)


@pytest.mark.parametrize("shape", [(5,), (4, 5), (5, 3, 2)])
def test_linear_maps_the_channels_of_each_position(shape: tuple[int, ...]) -> None:
    target_shape = {1: (7,), 2: (4, 7), 3: (7, 3, 2)}[len(shape)]
    projector = build_projector("linear", shape, target_shape)
    x = torch.randn(2, *shape)
    assert parameters(projector) == 5 * 7 + 7
    assert projector(x).shape == (2, *target_shape)
    weight, bias = (p.detach() for p in projector.parameters())
    channels_last = x if len(shape) < 3 else x.movedim(1, -1)
    expected = channels_last @ weight.view(7, 5).T + bias
    assert torch.allclose(projector(x), expected if len(shape) < 3 else expected.movedim(-1, 1), atol=1e-6)


def test_none_is_the_identity() -> None:
    x = torch.randn(2, 5, 3, 3)
    assert build_projector("none", (5, 3, 3), (5, 3, 3))(x) is x


@pytest.mark.parametrize(
    ("kind", "shape", "target_shape", "count"),
    [
        ("bottleneck", (512, 7, 7), (512, 7, 7), 854_016),  # the paper's 0.81 M in units of 2**20: 851,968 weights
        ("bottleneck", (512, 4, 4), (512, 8, 8), 854_016 + (16 - 9) * 256**2),
        ("conv1x1", (256, 8, 8), (256, 8, 8), 256**2 + 256 + 2 * 256),
        ("conv1x1", (160, 8, 8), (128, 4, 4), 9 * 160 * 128 + 128 + 2 * 128),
        ("conv1x1", (960, 4, 4), (128, 8, 8), 16 * 960 * 128 + 128 + 2 * 128),
        ("conv1x1", (10, 7, 7), (20, 4, 4), 16 * 10 * 20 + 20 + 2 * 20),
    ],
)
def test_parameters_are_those_of_the_public_code(
    kind: str, shape: tuple[int, ...], target_shape: tuple[int, ...], count: int
) -> None:
    assert parameters(build_projector(kind, shape, target_shape)) == count


def test_a_bottleneck_is_one_affine_map_until_its_end() -> None:
    projector = build_projector("bottleneck", (5, 4, 4), (7, 4, 4))
    assert [type(layer).__name__ for layer in projector] == ["Conv2d", "Conv2d", "Conv2d", "BatchNorm2d", "ReLU"]
    affine = projector[:3].double()
    x, y = (torch.randn(2, 5, 4, 4, dtype=torch.float64) for _ in range(2))
    assert torch.allclose(affine((x + y) / 2), (affine(x) + affine(y)) / 2, atol=1e-12)


@pytest.mark.parametrize("kind", ["conv1x1", "bottleneck"])
def test_only_without_the_activation_a_signed_target_is_reached(kind: str) -> None:
    x = torch.randn(64, 5, 4, 4)
    assert build_projector(kind, (5, 4, 4), (7, 4, 4))(x).min() == 0
    assert build_projector(kind, (5, 4, 4), (7, 4, 4), activation=False)(x).min() < 0


@pytest.mark.parametrize(
    ("kind", "shape", "target_shape", "message"),
    [
        ("conv1x1", (5, 4, 4), (7, 7, 7), "at most as large as the student's, or exactly twice as large, got 7 x 7"),
        ("bottleneck", (5, 4, 4), (7, 5, 3), "at most as large"),
        ("conv1x1", (5, 4, 4), (7, 8, 9), "at most as large"),
        ("conv1x1", (5,), (7,), r"'conv1x1' expected maps \(D, H, W\), got \(5,\) for the target's \(7,\); tokens and"),
        ("bottleneck", (5, 4, 4), (16, 7), "'bottleneck' expected maps"),
        ("linear", (5, 4, 4), (7, 2, 2), "'linear' expected shapes that differ in D alone"),
        ("linear", (5, 4, 4), (16, 7), "'linear' expected shapes that differ in D alone"),
        ("linear", (5, 4, 4, 4), (5, 4, 4, 7), "'linear' expected shapes that differ in D alone"),
        ("none", (5, 4, 4), (7, 4, 4), "'none' expected one shape"),
        (
            "conv",
            (5, 4, 4),
            (7, 4, 4),
            "`projector` expected one of 'conv1x1', 'conv3x3', 'bottleneck', 'linear', 'none', got",
        ),
    ],
)
def test_what_cannot_be_matched_is_refused_in_one_line(
    kind: str, shape: tuple[int, ...], target_shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        build_projector(kind, shape, target_shape)
    assert "\n" not in str(error.value)


def test_a_projected_loss_projects_each_layer_and_detaches_the_targets() -> None:
    loss = ProjectedLoss([(5, 4, 4), (6, 2, 2)], [(7, 4, 4), (8, 4, 4)], projector="conv1x1")
    features = [torch.randn(3, 5, 4, 4), torch.randn(3, 6, 2, 2)]
    targets = [torch.randn(3, 7, 4, 4, requires_grad=True), torch.randn(3, 8, 4, 4, requires_grad=True)]
    pairs = loss.projected([x.half() for x in features], targets)
    assert [feature.shape for feature, _ in pairs] == [target.shape for target in targets]
    assert all(feature.requires_grad and not target.requires_grad for feature, target in pairs)
    with pytest.raises(ValueError, match=r"`features` expected 2 layers, as many as `shapes` has in .*, got 1"):
        loss.projected(features[:1], targets[:1])


def test_positions_may_stay_the_students() -> None:
    loss = ProjectedLoss([(5, 4, 4)], [(49, 7)], projector="linear", same_positions=False)
    (feature, _), *_ = loss.projected(torch.randn(3, 5, 4, 4), torch.randn(3, 49, 7))
    assert feature.shape == (3, 7, 4, 4)
    with pytest.raises(ValueError, match="maps"):
        ProjectedLoss([(5, 4, 4)], [(49, 7)], projector="conv1x1", same_positions=False)
