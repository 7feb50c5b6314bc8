"""Claims that hold for every loss between feature maps, against loops over samples, channels and positions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import maps_twins as loops
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from twins import gradients

from limbeck.functional.attention import attention_transfer
from limbeck.functional.class_attention import class_attention_transfer
from limbeck.functional.hint import hint_mse
from limbeck.functional.inter_channel import inter_channel_correlation
from limbeck.functional.overhaul import partial_l2
from limbeck.functional.review import hierarchical_context_loss
from limbeck.functional.selectivity import neuron_selectivity
from limbeck.functional.variational import variational_information

Shape = tuple[int, int, int]


class Method(NamedTuple):
    loss: Callable[..., Tensor]
    twin: Callable[[Tensor, Tensor], Tensor]  # of one sample, in loops
    shapes: tuple[tuple[Shape, Shape], ...]  # student's, target's


def numbers(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SAME = (((3, 4, 5), (3, 4, 5)), ((5, 1, 1), (5, 1, 1)))
SIZES = (((3, 4, 5), (3, 4, 5)), ((3, 5, 4), (6, 3, 3)), ((9, 2, 2), (4, 4, 4)), ((2, 6, 3), (7, 3, 6)))
GRAMS = (((3, 4, 4), (3, 4, 4)), ((3, 2, 2), (3, 3, 2)), ((7, 2, 2), (7, 2, 2)), ((8, 2, 3), (8, 1, 2)))
HEAD = numbers(4, 3, seed=2)
VARIANCE, MARGIN = torch.linspace(0.5, 3, 3).double(), -torch.linspace(0.1, 1.5, 3).double()

METHODS = {
    "hint": Method(hint_mse, partial(loops.hint, mode="code"), SAME),
    "hint_paper": Method(partial(hint_mse, mode="paper"), partial(loops.hint, mode="paper"), SAME),
    "at": Method(attention_transfer, partial(loops.attention, mode="code", power=2.0), SIZES),
    "at_power": Method(
        partial(attention_transfer, power=3.0), partial(loops.attention, mode="code", power=3.0), SIZES[:2]
    ),
    "at_paper": Method(
        partial(attention_transfer, mode="paper"), partial(loops.attention, mode="paper", power=2.0), SIZES
    ),
    "nst": Method(neuron_selectivity, loops.selectivity, SIZES),
    "ickd": Method(inter_channel_correlation, loops.inter_channel, GRAMS),
    "cat": Method(
        lambda s, t, **options: class_attention_transfer(s, t, *heads(s, t), **options),
        lambda s, t: loops.class_attention(s, t, *heads(s[None], t[None]), pool=2, normalize=False),
        (((3, 4, 4), (3, 4, 4)), ((3, 5, 3), (5, 4, 4))),
    ),
    "cat_normalized": Method(
        lambda s, t, **options: class_attention_transfer(s, t, *heads(s, t), pool=3, normalize=True, **options),
        lambda s, t: loops.class_attention(s, t, *heads(s[None], t[None]), pool=3, normalize=True),
        (((3, 4, 4), (3, 4, 4)), ((3, 5, 3), (5, 4, 4))),
    ),
    "vid": Method(
        lambda s, t, **options: variational_information(s, t, beside(s, VARIANCE), **options),
        lambda s, t: loops.variational(s, t, VARIANCE),
        SAME[:1],
    ),
    "ofd": Method(
        lambda s, t, **options: partial_l2(s, t, beside(s, MARGIN), **options),
        lambda s, t: loops.partial(s, t, MARGIN),
        SAME[:1],
    ),
    "hcl": Method(
        hierarchical_context_loss, loops.hierarchical, (*SAME, ((2, 8, 8), (2, 8, 8)), ((2, 2, 2), (2, 2, 2)))
    ),
}


def beside(features: Tensor, option: Tensor) -> Tensor:
    """In float64 beside maps in float64, else in float32, as parameters are."""
    return option if isinstance(features, Tensor) and features.dtype == torch.float64 else option.float()


def heads(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The classifiers of a case: one and the same where the channels agree, so that equal maps have equal classes."""
    student = beside(s, HEAD)
    other = isinstance(s, Tensor) and s.shape[1] != t.shape[1]
    return student, beside(t, numbers(4, t.shape[1])) if other else student


every_method = pytest.mark.parametrize("name", METHODS)
every_shape = pytest.mark.parametrize(
    ("name", "shapes"), [(name, shapes) for name, method in METHODS.items() for shapes in method.shapes]
)


def maps(name: str, shapes: tuple[Shape, Shape] | None = None, samples: int = 3) -> tuple[Tensor, Tensor]:
    student, target = shapes or METHODS[name].shapes[0]
    return (
        numbers(samples, *student, seed=3).requires_grad_(),
        (numbers(samples, *target, seed=4) + 0.3).requires_grad_(),
    )


@every_shape
def test_loss_equals_its_loops(name: str, shapes: tuple[Shape, Shape]) -> None:
    student, target = maps(name, shapes)
    each = torch.stack([METHODS[name].twin(s, t.detach()) for s, t in zip(student, target, strict=True)])
    for reduction, expected in (("none", each), ("mean", each.mean()), ("sum", each.sum())):
        value = METHODS[name].loss(student, target, reduction=reduction)
        assert value.shape == expected.shape
        assert (value - expected).abs().max() < 1e-12 * expected.abs().max().clamp_min(1)
        got, wanted = (gradients(x.sum(), student)[0] for x in (value, expected))
        assert (got - wanted).abs().max() < 1e-11


@every_shape
def test_equal_maps_are_at_rest(name: str, shapes: tuple[Shape, Shape]) -> None:
    """No gradient, and no loss but VID's logarithm of the variances."""
    student, _ = maps(name, (shapes[0], shapes[0]))
    value = METHODS[name].loss(student, student.detach().clone())
    assert value.item() == pytest.approx(VARIANCE.log().mean().item() / 2 if name == "vid" else 0.0, abs=1e-14)
    assert gradients(value, student)[0].abs().max() < 1e-14


@every_method
def test_target_receives_no_gradient(name: str) -> None:
    student, target = maps(name)
    METHODS[name].loss(student, target).backward()
    assert student.grad is not None
    assert student.grad.any()
    assert target.grad is None


@every_method
def test_samples_are_not_coupled(name: str) -> None:
    student, target = maps(name)
    together = METHODS[name].loss(student, target, reduction="none")
    alone = torch.stack([METHODS[name].loss(s[None], t[None]) for s, t in zip(student, target, strict=True)])
    assert torch.allclose(together, alone, rtol=1e-12)
    assert not gradients(together[0], student)[0][1:].any()


@every_shape
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_the_input_alone(name: str, shapes: tuple[Shape, Shape], dtype: torch.dtype) -> None:
    """Arithmetic is float32's, at the largest numbers of float16 too; the gradient has the input's dtype."""
    for scale in (1.0, 1e4):
        student, target = ((scale * x.detach()).to(dtype).requires_grad_() for x in maps(name, shapes))
        value = METHODS[name].loss(student, target)
        exact = METHODS[name].loss(*(x.detach().float().requires_grad_() for x in (student, target)))
        assert value.dtype == torch.float32
        assert value.isfinite()
        assert torch.allclose(value, exact, rtol=1e-6)
        (gradient,) = gradients(value / value.detach().abs().clamp_min(1), student)
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()


@every_shape
@pytest.mark.parametrize("dead", ["student", "target", "both", "a channel"])
def test_dead_maps_have_finite_gradients(name: str, shapes: tuple[Shape, Shape], dead: str) -> None:
    """Such a map has no direction: it must not divide by a floor, which would give gradients of 1e12."""
    student, target = (x.detach().float() for x in maps(name, shapes))
    if dead == "a channel":
        student[:, 0] = 0.0
    else:
        student = 0.0 * student if dead in ("student", "both") else student
        target = 0.0 * target if dead in ("target", "both") else target
    value = METHODS[name].loss(student.requires_grad_(), target)
    assert value.isfinite()
    assert gradients(value, student)[0].abs().max() < 1e2


@pytest.mark.parametrize("name", ["at", "at_power", "at_paper", "nst", "ickd", "cat_normalized"])
@pytest.mark.parametrize("scale", [1e-6, 1e12])
def test_methods_of_directions_see_no_scale(name: str, scale: float) -> None:
    """Of neither side, in float32, however many powers are taken; and no gradient leads along the map itself."""
    for shapes in METHODS[name].shapes:
        student, target = maps(name, shapes)
        scaled = (scale * student.detach()).float().requires_grad_()
        value = METHODS[name].loss(scaled, (2 * scale * target).float())
        assert value.item() == pytest.approx(METHODS[name].loss(student, target).item(), rel=1e-5)
        assert (gradients(value, scaled)[0] * scaled).sum().abs() < 1e-6


class LargestTensor(TorchDispatchMode):
    """Records the most elements that a result of any operation has."""

    numel = 0

    def __torch_dispatch__(
        self, func: Callable[..., object], types: object, args: tuple[object, ...] = (), kwargs: dict | None = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            self.numel = max(self.numel, x.numel() if isinstance(x, Tensor) else 0)
        return result


@pytest.mark.parametrize(("channels", "size"), [(64, 2), (8, 8)])
@pytest.mark.parametrize("name", ["nst", "ickd", "cat"])
def test_no_tensor_is_larger_than_the_maps(name: str, channels: int, size: int) -> None:
    """Neither Gram matrices of many channels or positions, nor maps of many classes, forwards and backwards."""
    student, target = numbers(3, channels, size, size).requires_grad_(), numbers(3, channels, size, size, seed=2)
    heads = (numbers(50, channels), numbers(50, channels, seed=2)) if name == "cat" else ()
    loss = class_attention_transfer if name == "cat" else METHODS[name].loss
    with LargestTensor() as largest:
        loss(student, target, *heads).backward()
    assert largest.numel <= max(x.numel() for x in (student, *heads))


@every_method
def test_autocast_changes_nothing(name: str) -> None:
    student, target = (x.detach().float() for x in maps(name))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = METHODS[name].loss(student, target)
    assert torch.equal(inside, METHODS[name].loss(student, target))


@every_method
def test_loss_is_captured_whole(name: str) -> None:
    student, target = maps(name)
    compiled = torch.compile(METHODS[name].loss, fullgraph=True, backend="aot_eager")
    assert torch.isclose(compiled(student, target), METHODS[name].loss(student, target))


@every_method
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": None}, TypeError, "`features` expected a tensor, got NoneType"),
        ({"target_features": torch.zeros(2, 3, 4, 4, dtype=torch.int64)}, TypeError, "`target_features` .*floating"),
        ({"features": torch.zeros(2, 3)}, ValueError, r"`features` expected a non-empty map \(N, D, H, W\)"),
        ({"target_features": torch.zeros(0, 3, 4, 4)}, ValueError, "`target_features` expected a non-empty map"),
        ({"target_features": torch.zeros(5, 3, 4, 4)}, ValueError, "expected the same N.*nothing is broadcast"),
        ({"reduction": "batchmean"}, ValueError, "`reduction`"),
    ],
)
def test_bad_input_is_said_in_one_line(
    name: str, change: dict[str, object], error: type[Exception], message: str
) -> None:
    given = {"features": torch.zeros(2, 3, 4, 4), "target_features": torch.zeros(2, 3, 4, 4), **change}
    with pytest.raises(error, match=message) as caught:
        METHODS[name].loss(given.pop("features"), given.pop("target_features"), **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["hint", "ofd", "hcl", "vid"])
def test_maps_of_other_shapes_are_refused_not_broadcast(name: str) -> None:
    for shape in ((2, 1, 4, 4), (2, 3, 1, 4), (2, 3, 4, 1)):
        with pytest.raises(ValueError, match="`features` and `target_features` expected the same N, D, H, W"):
            METHODS[name].loss(torch.zeros(2, 3, 4, 4), torch.zeros(shape))


def test_channels_of_another_number_have_no_gram_matrix_to_share() -> None:
    with pytest.raises(ValueError, match="expected the same N, D in"):
        inter_channel_correlation(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, 4))
