"""Claims that hold for every loss with hard labels, `loss(logits, target_logits, labels)`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from twins import gradients, labelled_batch

from limbeck import functional
from limbeck.functional.one_for_all import ofa_loss

LOSSES = {"MART": functional.mart_loss, "DKD": functional.dkd_divergence, "NKD": functional.nkd_loss, "OFA": ofa_loss}
Loss = Callable[..., Tensor]

every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


@every_loss
def test_loss_is_captured_whole_and_maps_over_samples(loss: Loss) -> None:
    student, target, labels = labelled_batch()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.isclose(compiled(student, target, labels), loss(student, target, labels))
    mapped = torch.func.vmap(torch.func.grad(loss))(student.detach(), target.detach(), labels)
    expected = gradients(loss(student, target, labels, reduction="sum"), student)[0]
    assert (mapped - expected).abs().max() < 1e-12


@every_loss
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_loss_has_leading_axes_and_its_own_dtype_under_autocast(loss: Loss, dtype: torch.dtype) -> None:
    student, target, labels = labelled_batch(samples=12)
    none = loss(student.view(3, 4, 5), target.view(3, 4, 5), labels.view(3, 4).to(dtype), reduction="none")
    assert none.shape == (3, 4)
    assert torch.isclose(none.mean(), loss(student, target, labels))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(student.float(), target.float(), labels)
    assert torch.equal(inside, loss(student.float(), target.float(), labels))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": torch.full((2, 3), 1 / 3)}, TypeError, "`labels` expected class indices.*{} has no form for soft"),
        ({"labels": torch.full((2, 3), 1 / 3)}, TypeError, "leave mixup and cutmix out or pass their `argmax"),
        ({"labels": None}, TypeError, "`labels` expected class indices .* got NoneType"),
        ({"labels": torch.tensor([0, 3])}, ValueError, r"\[0, 2\], got 0 to 3"),
        ({"labels": torch.tensor([0])}, ValueError, "shape"),
        ({"target_logits": torch.zeros(2, 4)}, ValueError, "one shape"),
        ({"reduction": "batchmean"}, ValueError, "`reduction`"),
    ],
)
def test_bad_input_is_said_in_one_line(
    name: str, change: dict[str, object], error: type[Exception], message: str
) -> None:
    sides = {"logits": torch.zeros(2, 3), "target_logits": torch.zeros(2, 3), "labels": torch.tensor([0, 1])}
    with pytest.raises(error, match=message.replace("{}", name)):
        LOSSES[name](**{**sides, **change})


def test_more_losses_can_be_captured_in_a_process_than_torch_captures_of_one_function() -> None:
    student, target, _ = labelled_batch()
    pairs = (
        functional.kl_divergence,
        functional.reverse_kl_divergence,
        functional.js_divergence,
        functional.total_variation,
        functional.soft_cross_entropy,
        functional.logit_mse,
        functional.ttm_divergence,
        functional.akl_divergence,
        functional.probabilistic_transfer,
    )
    for loss in pairs:  # the limit is eight
        assert torch.isfinite(torch.compile(loss, fullgraph=True, backend="eager")(student, target))
