"""Claims about attention transfer and class attention beside the common ones."""

from __future__ import annotations

import golden
import pytest
import torch
from torch import Tensor, nn

from limbeck.functional.attention import attention_transfer
from limbeck.functional.class_attention import class_attention_transfer


def maps() -> tuple[Tensor, Tensor]:
    n = torch.arange(8 * 6 * 4 * 4, dtype=torch.float64)
    return torch.sin(1 + 0.37 * n).view(8, 6, 4, 4).requires_grad_(), (torch.cos(0.5 + 0.53 * n) + 0.3).view(8, 6, 4, 4)


def test_attention_gives_the_number_of_the_public_code() -> None:
    student, target = maps()
    golden.holds(attention_transfer(student, target), student, 0.00464226, 0.00308677)


def test_paper_and_code_are_one_distance_in_two_units() -> None:
    student, target = maps()
    code, paper = (attention_transfer(student, target, mode=mode, reduction="none") for mode in ("code", "paper"))
    assert torch.allclose(paper, (code * 16).sqrt() / 2)


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_entries_that_a_relu_made_0_have_a_finite_gradient_at_any_power(power: float) -> None:
    student, target = maps()
    value = attention_transfer(student.relu(), target.relu(), power=power)
    value.backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"power": 0.0}, "`power`"), ({"mode": "squared"}, "`mode` expected one of 'code', 'paper', got 'squared'")],
)
def test_options_of_attention_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention_transfer(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3), **options)


def test_class_maps_average_to_the_logits_without_bias() -> None:
    """At one position the loss is the mean squared difference of what the classifiers say, less their biases."""
    student, target = maps()
    head, target_head = nn.Linear(6, 5).double(), nn.Linear(6, 5).double()
    value = class_attention_transfer(student, target, head.weight, target_head.weight, pool=1)
    logits, target_logits = head(student.mean((2, 3))) - head.bias, target_head(target.mean((2, 3))) - target_head.bias
    assert torch.isclose(value, (logits - target_logits).square().mean())
    value.backward()
    assert head.weight.grad is not None
    assert target_head.weight.grad is None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight": torch.zeros(5, 4)}, ValueError, r"`weight` expected \(C, D\) with D = 6"),
        ({"target_weight": torch.zeros(6)}, ValueError, "`target_weight` expected"),
        ({"target_weight": torch.zeros(4, 6)}, ValueError, "`weight` expected the target's 4 classes, got 5"),
        ({"weight": torch.zeros(5, 6, dtype=torch.int64)}, TypeError, "`weight` expected the floating weight"),
        ({"pool": 5}, ValueError, r"`pool` expected a whole number in \[1, 4\]"),
        ({"pool": 0}, ValueError, "`pool`"),
    ],
)
def test_classifiers_that_do_not_fit_are_refused(
    change: dict[str, object], error: type[Exception], message: str
) -> None:
    given = {"weight": torch.zeros(5, 6), "target_weight": torch.zeros(5, 6), **change}
    with pytest.raises(error, match=message) as caught:
        class_attention_transfer(*maps(), **given)
    assert "\n" not in str(caught.value)
