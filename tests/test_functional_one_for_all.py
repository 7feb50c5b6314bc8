"""Claims about OFA, against a float64 twin that goes class by class, and about its exit heads."""

from __future__ import annotations

import pytest
import torch
import twins
from torch import Tensor, nn
from twins import gradients, labelled_batch

from limbeck import functional
from limbeck.functional.one_for_all import ofa_loss
from limbeck.losses.exits import SpatialExit, TokenExit
from limbeck.losses.one_for_all import OFALoss


def twin(
    logits: Tensor, target_logits: Tensor, labels: Tensor, power: float, mode: str, temperature: float = 1.0
) -> Tensor:
    values = []
    for q, p, y in zip(
        twins.softmax(logits, temperature), twins.softmax(target_logits.detach(), temperature), labels, strict=True
    ):
        total = torch.zeros((), dtype=q.dtype)
        for k in range(len(q)):
            own = float(k == y)
            weights = {"code": (p[k] + own) ** power - own, "paper": (1 + p[k]) ** power if own else p[k]}
            total = total - weights[mode] * q[k].log()
        values.append(total)
    return torch.stack(values)


@pytest.mark.parametrize("mode", ["code", "paper"])
@pytest.mark.parametrize(("power", "temperature"), [(1.0, 1.0), (1.5, 1.0), (2.0, 4.0), (0.5, 2.0)])
def test_ofa_equals_its_formula(mode: str, power: float, temperature: float) -> None:
    student, target, labels = labelled_batch()
    each = twin(student, target, labels, power, mode, temperature)
    for reduction, expected in (("none", each), ("mean", each.mean()), ("sum", each.sum())):
        value = ofa_loss(student, target, labels, power=power, mode=mode, temperature=temperature, reduction=reduction)
        assert value.shape == expected.shape
        assert (value - expected).abs().max() < 1e-12 * len(each)
        got, wanted = (gradients(x.sum(), student)[0] for x in (value, expected))
        assert (got - wanted).abs().max() < 1e-12


def test_code_at_power_1_is_soft_cross_entropy_and_paper_has_the_labels_beside_it() -> None:
    student, target, labels = labelled_batch()
    soft = functional.soft_cross_entropy(student, target)
    assert torch.isclose(ofa_loss(student, target, labels), soft, rtol=1e-12)
    both = soft + nn.functional.cross_entropy(student, labels)
    assert torch.isclose(ofa_loss(student, target, labels, mode="paper"), both, rtol=1e-12)


def test_equal_logits_are_stationary_at_power_1_alone() -> None:
    student, _, labels = labelled_batch()
    assert gradients(ofa_loss(student, student, labels), student)[0].abs().max() < 1e-15
    assert gradients(ofa_loss(student, student, labels, power=1.5), student)[0].abs().max() > 1e-3


def test_target_is_detached_and_shifts_and_orders_count_for_nothing() -> None:
    student, target, labels = labelled_batch()
    value = ofa_loss(student, target, labels, power=1.5)
    assert torch.autograd.grad(value, target, allow_unused=True) == (None,)
    assert torch.isclose(ofa_loss(student + 3, target - 5, labels, power=1.5), value, rtol=1e-12)
    assert torch.isclose(ofa_loss(student.flip(0), target.flip(0), labels.flip(0), power=1.5), value, rtol=1e-12)


def test_derivatives_of_both_orders_agree_with_finite_differences() -> None:
    student, target, labels = labelled_batch(samples=3, classes=4)
    for mode in ("code", "paper"):
        options = {"power": 1.5, "mode": mode}
        assert torch.autograd.gradcheck(lambda s, o=options: ofa_loss(s, target, labels, **o), student)
        assert torch.autograd.gradgradcheck(lambda s, o=options: ofa_loss(s, target, labels, **o), student)


@pytest.mark.parametrize("mode", ["code", "paper"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_ofa_is_finite_at_any_gap_in_any_dtype(dtype: torch.dtype, mode: str) -> None:
    student = torch.tensor([[6e4, 0.0, -6e4], [0.0, 0.0, -torch.inf]], dtype=dtype, requires_grad=True)
    target = torch.tensor([[-6e4, 0.0, 6e4], [1.0, 1.0, -torch.inf]], dtype=dtype)
    value = ofa_loss(student, target, torch.tensor([2, 0]), power=1.5, mode=mode, reduction="none")
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    assert value.isfinite().all()
    assert value[0] > 1e5  # (1 + 1)^1.5 times the gap, less one gap in mode "code"
    (gradient,) = gradients(value.sum(), student)
    assert gradient.dtype == dtype
    assert gradient.isfinite().all()
    assert gradient[1, 2] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [({"power": 0.0}, "`power`"), ({"mode": "published"}, "`mode` expected 'code'"), ({"temperature": -1.0}, "`temp")],
)
def test_bad_options_are_said_in_one_line(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ofa_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([0, 1]), **change)
    with pytest.raises(ValueError, match=message):
        OFALoss(3, [(4, 2, 2)], **change)


# --- the module and its exit heads ---

STAGES = [(8, 8, 8), (16, 4, 4), (32, 2, 2), (64, 1, 1)]


def features_of(shapes: list[tuple[int, ...]], samples: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(samples, *shape, generator=generator, requires_grad=True) for shape in shapes]


def test_exits_halve_the_sides_once_per_stage_that_remains() -> None:
    loss = OFALoss(5, STAGES, width=48)
    for place, (head, feature) in enumerate(zip(loss.heads, features_of(STAGES), strict=True)):
        body = head.body(feature)
        assert body.shape[1:] == (48, 1, 1)
        assert sum(isinstance(m, nn.BatchNorm2d) for m in head.modules()) == 3 - place
    assert loss.heads[3].body.kernel_size == (1, 1)


@pytest.mark.parametrize("reduction", ["mean", "none", "sum"])
def test_module_is_the_sum_of_the_losses_of_logits_and_exits(reduction: str) -> None:
    student, target, labels = labelled_batch(samples=6)
    options = {"power": 1.5, "mode": "paper", "temperature": 2.0, "reduction": reduction}
    loss = OFALoss(5, STAGES, logit_weight=0.5, exit_weight=0.25, **options)
    features = features_of(STAGES)
    value = loss(student, target, labels, features)
    exits = [ofa_loss(h(f), target, labels, **options) for h, f in zip(loss.heads, features, strict=True)]
    expected = 0.5 * ofa_loss(student, target, labels, **options) + 0.25 * sum(exits)
    assert torch.allclose(value, expected)
    value.sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (*loss.parameters(), *features, student))


def test_without_exits_no_head_is_built_and_no_feature_read() -> None:
    student, target, labels = labelled_batch()
    loss = OFALoss(5, STAGES, exit_weight=0.0)
    assert not list(loss.parameters())
    assert torch.equal(loss(student, target, labels), ofa_loss(student, target, labels))


def merged_by_hand(patches: Tensor, side: int) -> Tensor:
    rows = [
        torch.cat([patches[:, (2 * i + a) * side + 2 * j + b] for a in (0, 1) for b in (0, 1)], -1)
        for i in range(side // 2)
        for j in range(side // 2)
    ]
    return torch.stack(rows, 1)


@pytest.mark.parametrize("class_token", [0, 1])
def test_tokens_merge_as_squares_down_to_seven_a_side(class_token: int) -> None:
    exit_of_tokens = TokenExit(196 + class_token, 12, 8, 2, 5)
    assert len(exit_of_tokens.merges) == 1
    assert len(exit_of_tokens.blocks) == 2
    tokens = features_of([(196 + class_token, 12)], samples=2)[0]
    merged = nn.functional.gelu(exit_of_tokens.merges[0](merged_by_hand(tokens[:, class_token:], 14)))
    expected = exit_of_tokens.head(exit_of_tokens.blocks(merged).mean(1))
    assert merged.shape == (2, 49, 8)
    assert torch.allclose(exit_of_tokens(tokens), expected, atol=1e-6)


def test_exits_take_tokens_and_vectors_too_and_are_captured_whole() -> None:
    student, target, labels = (x.float() if x.is_floating_point() else x for x in labelled_batch(samples=6))
    shapes = [(17, 8), (16, 8), (8,)]
    loss, features = OFALoss(5, shapes), features_of(shapes)
    assert [type(head) for head in loss.heads] == [TokenExit, TokenExit, nn.Linear]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.isclose(compiled(student, target, labels, features), loss(student, target, labels, features))


def test_exits_take_half_precision_with_and_without_autocast() -> None:
    student, target, labels = labelled_batch(samples=6)
    loss, features = OFALoss(5, STAGES), features_of(STAGES)
    full = loss(student, target, labels, features)
    half = [x.to(torch.bfloat16) for x in features]
    assert torch.isclose(loss(student, target, labels, half), full, rtol=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(student, target, labels, half)
    assert inside.dtype == torch.float64  # the widest of what came in
    assert torch.isclose(inside, full, rtol=0.05)


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        ([(2, 3, 4, 5)], {}, r"`shapes` expected maps \(D, H, W\), tokens .* got \(2, 3, 4, 5\)"),
        ([(12, 8)], {}, r"`shapes` expected tokens \(L, D\) of a square grid.* got L = 12"),
        ([(16, 8)], {"width": 10}, "`width` expected a multiple of 4"),
        ([], {}, "`shapes` expected one shape per layer, got none; `exit_weight=0`"),
        ([(8,)], {"exit_weight": -1.0}, "`exit_weight`"),
        ([(8,)], {"width": 0}, "`width` expected at least 1 channel, got 0"),
        ([(8,)], {"logit_weight": -1.0}, "`logit_weight`"),
    ],
)
def test_features_that_no_head_takes_are_refused(
    shapes: list[tuple[int, ...]], options: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        OFALoss(5, shapes, **options)


def test_a_wrong_number_of_features_is_refused() -> None:
    student, target, labels = labelled_batch(samples=6)
    loss = OFALoss(5, STAGES)
    for features in (None, features_of(STAGES)[:3], features_of(STAGES)[0]):
        with pytest.raises(ValueError, match="`features` expected 4 tensors, one per exit head, got"):
            loss(student, target, labels, features)


def test_a_head_of_maps_is_a_head_of_any_side() -> None:
    assert SpatialExit(4, 8, 2, 3)(torch.randn(2, 4, 7, 5)).shape == (2, 3)
