"""Claims about losses between the samples of a batch: RKD, PKT, SP, CC, EMD. Each has a float64 twin made of loops."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import golden
import pytest
import torch
from relation_twins import (
    angle_twin,
    distance_twin,
    ipot_twin,
    kernel_twin,
    neighbour_twin,
    pkt_twin,
    sp_twin,
    transport_twin,
)
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from twins import gradients

from limbeck.functional import relational
from limbeck.functional.congruence import kernel_congruence, neighbour_congruence
from limbeck.functional.proximal_transport import ipot_plan, ipot_transport
from limbeck.functional.relational import relational_angle, relational_distance
from limbeck.functional.similarity import probabilistic_transfer, similarity_preserving

Loss = Callable[..., Tensor]


TWINS: dict[str, tuple[Loss, Loss]] = {
    "RKD distance": (relational_distance, distance_twin),
    "RKD angle": (relational_angle, angle_twin),
    "PKT": (probabilistic_transfer, pkt_twin),
    "SP": (similarity_preserving, sp_twin),
    "neighbour CC": (neighbour_congruence, neighbour_twin),
    "Gaussian CC": (kernel_congruence, partial(kernel_twin, gaussian=True)),
    "bilinear CC": (partial(kernel_congruence, kernel="bilinear"), partial(kernel_twin, gaussian=False)),
    "torchdistill's CC": (
        partial(kernel_congruence, gamma=0.3, degree=3, normalize=False, squared=False),
        partial(kernel_twin, gaussian=True, gamma=0.3, degree=3, unit=False, power=1),
    ),
    "EMD": (ipot_transport, transport_twin),
    "Euclidean EMD": (
        partial(ipot_transport, metric="squared_euclidean"),
        partial(transport_twin, euclidean=True),
    ),
}
LOSSES = {name: loss for name, (loss, _) in TWINS.items()}
LIVE_TARGET = {name for name in TWINS if "CC" in name}  # both embeddings are trained
ONE_WIDTH = {"neighbour CC", "EMD", "Euclidean EMD"}
NO_TRANSPORT = [name for name in TWINS if "EMD" not in name]

every_loss = pytest.mark.parametrize("name", TWINS)


def batch(samples: int = 6, width: int = 5, target_width: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sides = [torch.randn(samples, d, generator=generator, dtype=torch.float64) for d in (width, target_width)]
    return sides[0].requires_grad_(), sides[1].requires_grad_()


@pytest.mark.parametrize(
    ("loss", "value", "norm"),
    [(relational_distance, 0.39571116, 0.02887624), (probabilistic_transfer, 0.13822639, 0.04919296)],
)
def test_loss_of_vectors_gives_the_number_of_the_public_code(loss: Loss, value: float, norm: float) -> None:
    n = torch.arange(48, dtype=torch.float64)
    student = torch.sin(1 + 0.37 * n).view(8, 6).requires_grad_()
    golden.holds(loss(student, torch.cos(0.5 + 0.53 * n).view(8, 6)), student, value, norm)


def test_sp_gives_the_number_of_the_public_code() -> None:
    n = torch.arange(8 * 96, dtype=torch.float64)
    student = torch.sin(1 + 0.37 * n).view(8, 6, 4, 4).requires_grad_()
    target = (torch.cos(0.5 + 0.53 * n) + 0.3).view(8, 6, 4, 4)
    golden.holds(similarity_preserving(student, target), student, 0.24549678, 0.00254811)


@every_loss
def test_loss_equals_its_twin(name: str) -> None:
    loss, twin = TWINS[name]
    for width in (5,) if name in ONE_WIDTH else (5, 3):
        student, target = batch(target_width=width)
        value, expected = loss(student, target), twin(student, target)
        assert value.shape == ()
        assert abs(value - expected) < 1e-10
        assert (gradients(value, student)[0] - gradients(expected, student)[0]).abs().max() < 1e-10
        if name in LIVE_TARGET:
            assert (gradients(value, target)[0] - gradients(expected, target)[0]).abs().max() < 1e-10
        else:
            assert torch.autograd.grad(value, target, allow_unused=True) == (None,)


@pytest.mark.parametrize("name", NO_TRANSPORT)
def test_loss_is_zero_with_zero_gradient_on_equal_features(name: str) -> None:
    student, _ = batch()
    value = LOSSES[name](student, student.detach().clone())
    assert value.abs() < 1e-15
    assert gradients(value, student)[0].abs().max() < (1e-8 if name == "PKT" else 1e-15)  # PKT: its floors of 1e-7


@pytest.mark.parametrize("name", [name for name in TWINS if name != "neighbour CC"])
def test_order_of_the_batch_does_not_count(name: str) -> None:
    student, target = batch()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    value = LOSSES[name](student, target)
    assert torch.isclose(LOSSES[name](student[order], target[order]), value, rtol=1e-10)


def test_order_of_the_batch_counts_in_neighbour_congruence() -> None:
    student, target = batch()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert not torch.isclose(neighbour_congruence(student[order], target[order]), neighbour_congruence(student, target))


@every_loss
def test_maps_are_flattened(name: str) -> None:
    student, target = batch(width=12, target_width=12)
    maps = [x.view(6, 3, 2, 2) for x in (student, target)]
    assert torch.isclose(LOSSES[name](*maps), LOSSES[name](student, target), rtol=1e-12)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loss_is_right_in_half_precision(name: str, dtype: torch.dtype) -> None:
    """Also for features so large that their squares leave float16."""
    student, target = (x.detach().to(dtype) for x in batch())
    exact = LOSSES[name](student.double(), target.double())
    assert torch.isclose(LOSSES[name](student, target).double(), exact, rtol=1e-4)
    scale = 3 if "torchdistill" in name else 1e4  # its kernel grows with the sixth power of the features
    large = (scale * student).requires_grad_()
    value = LOSSES[name](large, target)
    assert value.dtype == torch.float32
    assert value.isfinite()
    gradient = gradients(value, large)[0]
    assert gradient.dtype == dtype
    assert gradient.isfinite().all()


@every_loss
def test_loss_has_its_own_dtype_under_autocast(name: str) -> None:
    student, target = (x.detach().float() for x in batch())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = LOSSES[name](student, target)
    assert torch.equal(inside, LOSSES[name](student, target))


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dead_and_equal_samples_have_bounded_gradients(name: str, dtype: torch.dtype) -> None:
    """Two samples are dead on both sides, two are equal: no direction, no distance."""
    sides = [x.detach().to(dtype).clone() for x in batch()]
    for x in sides:
        x[0], x[1], x[3] = 0.0, 0.0, x[2]
    student, target = sides[0].requires_grad_(), sides[1]
    for teacher in (target, torch.zeros_like(target)):
        value = LOSSES[name](student, teacher)
        assert value.isfinite()
        assert gradients(value, student)[0].abs().max() < 100
    collapsed = torch.ones_like(target).requires_grad_()
    value = LOSSES[name](collapsed, target)
    assert value.isfinite()
    assert gradients(value, collapsed)[0].abs().max() < 100


@pytest.mark.parametrize("name", [name for name in TWINS if "EMD" not in name and "CC" not in name] + ["neighbour CC"])
def test_one_sample_has_no_relation_to_miss(name: str) -> None:
    student, target = batch(samples=1)
    value = LOSSES[name](student, target)
    assert value == 0
    assert gradients(value, student)[0].abs().max() < 1e-15


@pytest.mark.parametrize("name", [*NO_TRANSPORT[:6], "EMD"])
def test_loss_is_captured_whole(name: str) -> None:
    student, target = batch()
    # No `partial`: torch.compile counts all of those as one function, and captures eight of one.
    loss = (lambda ours, theirs: ipot_transport(ours, theirs, iterations=2)) if name == "EMD" else LOSSES[name]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    value = compiled(student, target)
    expected = loss(student, target)
    assert torch.isclose(value, expected, rtol=1e-10)
    assert (gradients(value, student)[0] - gradients(expected, student)[0]).abs().max() < 1e-10


@every_loss
def test_bad_features_are_said_in_one_line(name: str) -> None:
    good = torch.ones(3, 4)
    bad: list[tuple[object, object, type[Exception], str]] = [
        ([1.0], good, TypeError, "`features` expected a tensor, got list"),
        (good, good.long(), TypeError, "`target_features` expected a floating dtype"),
        (torch.ones(3), good, ValueError, r"`features` expected a non-empty shape \(N, D\)"),
        (good, torch.ones(2, 4), ValueError, "the same N samples"),
        (torch.ones(0, 4), torch.ones(0, 4), ValueError, "non-empty"),
    ]
    if name in ONE_WIDTH:
        bad.append((good, torch.ones(3, 5), ValueError, "one width D, got 4 and 5"))
    for features, target, error, message in bad:
        with pytest.raises(error, match=message) as caught:
            LOSSES[name](features, target)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        (kernel_congruence, {"kernel": "rbf"}, "`kernel` expected 'gaussian' or 'bilinear'"),
        (kernel_congruence, {"gamma": 0.0}, "`gamma`"),
        (kernel_congruence, {"degree": 0}, "`degree`"),
        (ipot_transport, {"metric": "euclidean"}, "`metric` expected 'cosine' or 'squared_euclidean'"),
        (ipot_transport, {"beta": 0.0}, "`beta`"),
        (ipot_transport, {"iterations": 0}, "`iterations`"),
    ],
)
def test_bad_options_are_said(loss: Loss, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss(torch.ones(3, 4), torch.ones(3, 4), **options)


@pytest.mark.parametrize("name", ["RKD distance", "RKD angle"])
def test_rkd_sees_neither_scale_nor_shift_nor_turn(name: str) -> None:
    student, target = batch()
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    value = LOSSES[name](student, target)
    assert torch.isclose(LOSSES[name](0.1 * student @ turn + 3, target), value, rtol=1e-9)


@pytest.mark.parametrize("name", ["RKD distance", "RKD angle"])
def test_rkd_is_right_in_float32_far_from_the_origin(name: str) -> None:
    """A product of features that are not centred would leave nothing of distances of 1 at 1000."""
    generator = torch.Generator().manual_seed(2)
    sides = [torch.randn(64, 128, generator=generator).round(decimals=2) + 1024 for _ in range(2)]
    exact = LOSSES[name](*(x.double() for x in sides))
    assert torch.isclose(LOSSES[name](*sides).double(), exact, rtol=1e-4)


def test_samples_nearer_than_rounding_tells_have_no_distance() -> None:
    """Their distance would be the root of a rounding error, and their gradient its direction."""
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    x[4:] = x[:4] + 1e-4 * x[:4].flip(1)
    distances = relational._geometry(x)[1]
    assert not distances.diagonal(4).any()
    assert (distances.diagonal(1)[:3] > 1).all()


def test_angles_in_blocks_are_angles(monkeypatch: pytest.MonkeyPatch) -> None:
    student, target = batch(samples=7)
    whole = relational_angle(student, target)
    monkeypatch.setattr(relational, "BLOCK_ELEMENTS", 2 * 7 * 7 + 1)
    blocks = relational_angle(student, target)
    assert torch.isclose(blocks, whole, rtol=1e-12)
    assert (gradients(blocks, student)[0] - gradients(whole, student)[0]).abs().max() < 1e-12


def test_angles_in_blocks_never_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 48 samples' cosines, 2**12 elements at a time: nothing near 48**3 is kept for the backward pass."""
    student, target = batch(samples=48)
    monkeypatch.setattr(relational, "BLOCK_ELEMENTS", 2**12)
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes() // 8
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        relational_angle(student, target)
    assert sum(kept.values()) < 48**3 / 2


def test_second_derivatives_of_rkd_exist() -> None:
    student, target = batch(samples=4)
    for name in ("RKD distance", "RKD angle"):
        assert torch.autograd.gradgradcheck(partial(LOSSES[name], target_features=target.detach()), (student,))


@pytest.mark.parametrize("shape", [(5, 5), (4, 7)])
def test_ipot_equals_the_published_updates(shape: tuple[int, int]) -> None:
    cost = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for beta, iterations in ((0.5, 1), (0.5, 20), (2.0, 50)):
        plan = ipot_plan(cost, beta=beta, iterations=iterations)
        assert (plan - ipot_twin(cost, beta, iterations)).abs().max() < 1e-12
    assert torch.allclose(plan.sum(0), torch.full_like(cost[0], 1 / shape[1]), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 1e5])
def test_ipot_tends_to_the_plan_without_regularisation(dtype: torch.dtype, scale: float) -> None:
    """The best assignment by the Hungarian method."""
    cost = scale * torch.rand(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows, columns = linear_sum_assignment(cost.numpy())
    expected = torch.zeros(8, 8, dtype=torch.float64)
    expected[rows, columns] = 1 / 8
    plan = ipot_plan(cost.to(dtype), beta=0.5 * scale, iterations=2000)
    assert plan.dtype == dtype
    assert (plan - expected).abs().max() < 1e-3
    coarse = ipot_plan(cost / scale, beta=2.0, iterations=50)
    assert (coarse * cost / scale).sum() > (expected * cost / scale).sum() + 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_no_cost_is_too_large_for_ipot(dtype: torch.dtype) -> None:
    """exp(-cost / beta) would be 0 everywhere."""
    cost = (1 + torch.rand(8, 5, generator=torch.Generator().manual_seed(0))).mul(3e4).to(dtype)
    plan = ipot_plan(cost, beta=0.5, iterations=50)
    assert plan.dtype == torch.float32
    assert torch.allclose(plan.sum(0), torch.full((5,), 0.2), rtol=1e-3)


def test_ipot_between_different_numbers_of_points_is_the_linear_programme() -> None:
    """Each of 3 points stands for 2: the assignment of the doubled points."""
    cost = torch.rand(6, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    doubled = cost.repeat_interleave(2, 1)
    rows, columns = linear_sum_assignment(doubled.numpy())
    plan = ipot_plan(cost, beta=0.5, iterations=3000)
    assert torch.isclose((plan * cost).sum(), doubled[rows, columns].sum() / 6, rtol=1e-4)


def test_transport_of_a_set_to_itself_is_the_identity() -> None:
    student, _ = batch(samples=8, width=16)
    value = ipot_transport(student, student.detach(), iterations=200)
    assert value < 1e-6
    unit = torch.nn.functional.normalize(student.detach(), dim=1)
    assert (ipot_plan(1 - unit @ unit.T, iterations=200) - torch.eye(8) / 8).abs().max() < 1e-6
    assert gradients(value, student)[0].abs().max() < 1e-5


def test_a_plan_has_no_gradient() -> None:
    cost = torch.rand(3, 3, requires_grad=True)
    assert not ipot_plan(cost).requires_grad


@pytest.mark.parametrize(
    ("cost", "error", "message"),
    [
        ([[1.0]], TypeError, "`cost` expected a tensor"),
        (torch.ones(2, 2, dtype=torch.int64), TypeError, "`cost` expected a floating"),
        (torch.ones(2), ValueError, r"\(n, m\)"),
    ],
)
def test_a_bad_cost_is_said(cost: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ipot_plan(cost)
