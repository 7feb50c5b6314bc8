"""Claims about the modules of self-distillation: each is its function, with its own classifier where it has one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from twins import labelled_batch

from limbeck.functional.teacher_free import tf_kd_loss
from limbeck.functional.universal_self import uskd_loss
from limbeck.functional.zipf import dense_votes, zipf_loss
from limbeck.losses.base import DivergenceLoss
from limbeck.losses.teacher_free import TfKDLoss
from limbeck.losses.universal_self import USKDLoss
from limbeck.losses.zipf import ZipfLoss


def batch() -> tuple[Tensor, Tensor, Tensor, nn.Linear]:
    logits, _, labels = labelled_batch()
    generator = torch.Generator().manual_seed(1)
    maps = torch.randn(7, 4, 3, 3, generator=generator, requires_grad=True)
    head = nn.Linear(4, 5)
    head.weight.data.normal_(generator=generator)
    return logits.detach().float().requires_grad_(), labels, maps, head


def test_tf_kd_is_its_function() -> None:
    logits, labels, _, _ = batch()
    options = {"correct": 0.8, "temperature": 5.0, "mode": "paper", "reduction": "none"}
    assert torch.equal(TfKDLoss(**options)(logits, labels), tf_kd_loss(logits, labels, **options))


def test_zipf_ranks_by_the_votes_of_all_its_maps_or_by_the_logits() -> None:
    logits, labels, maps, head = batch()
    votes = dense_votes(maps, head.weight, head.bias, upsample=2)
    value = ZipfLoss(upsample=2)(logits, labels, maps, head)
    assert torch.equal(value, zipf_loss(logits, labels, votes))
    both = ZipfLoss(upsample=2)(logits, labels, [maps, maps.flip(0)], head)
    summed = votes + dense_votes(maps.flip(0), head.weight, head.bias, upsample=2)
    assert torch.equal(both, zipf_loss(logits, labels, summed))
    plain = ZipfLoss(dense=False, reduction="none")(logits, labels)
    assert torch.equal(plain, zipf_loss(logits, labels, reduction="none"))
    assert not torch.isclose(value, plain.mean())


def test_dense_zipf_without_a_map_says_what_to_give() -> None:
    logits, labels, maps, _ = batch()
    for given in ((), (maps,)):
        with pytest.raises(ValueError, match=r"`features` and `head` expected the last map.*`dense=False` needs"):
            ZipfLoss()(logits, labels, *given)


@pytest.mark.parametrize("shape", [(4, 3, 3), (9, 4), (4,)])
def test_uskd_reads_the_mean_over_positions_with_its_own_classifier(shape: tuple[int, ...]) -> None:
    logits, labels, maps, _ = batch()
    features = {3: maps, 2: maps.flatten(2).mT, 1: maps.mean((2, 3))}[len(shape)]
    options = {"target_weight": 0.1, "rest_weight": 0.3, "weak_weight": 0.7, "mode": "paper"}
    loss = USKDLoss(5, [shape], **options)
    value = loss(logits, labels, [features])
    weak = loss.weak_head(maps.mean((2, 3)))
    assert torch.isclose(value, uskd_loss(logits, weak, labels, **options))
    value.backward()
    assert all(x.grad.isfinite().all() and x.grad.any() for x in (*loss.parameters(), maps, logits))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_uskd_takes_features_of_half_precision(dtype: torch.dtype) -> None:
    logits, labels, maps, _ = batch()
    loss = USKDLoss(5, [(4, 3, 3)], weak_weight=1.0)
    assert torch.isclose(loss(logits, labels, maps.to(dtype)), loss(logits, labels, maps), rtol=0.02)


@pytest.mark.parametrize("shapes", [[], [(4, 3, 3), (8, 2, 2)], [(2, 3, 4, 5)]])
def test_uskd_refuses_all_but_one_layer(shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="`shapes` expected that of one layer"):
        USKDLoss(5, shapes)


def test_uskd_refuses_all_but_one_tensor() -> None:
    logits, labels, maps, _ = batch()
    for features in ([], [maps, maps], torch.zeros(7)):
        with pytest.raises(ValueError, match="`features` expected one map"):
            USKDLoss(5, [(4, 3, 3)])(logits, labels, features)


@pytest.mark.parametrize("loss", [TfKDLoss(), ZipfLoss(), USKDLoss(5, [(4, 3, 3)])], ids=["tf_kd", "zipf", "uskd"])
def test_module_is_captured_whole_and_a_call_changes_no_state(loss: DivergenceLoss) -> None:
    logits, labels, maps, head = batch()
    given = (logits, labels, *((maps, head) if isinstance(loss, ZipfLoss) else ()))
    given += (maps,) if isinstance(loss, USKDLoss) else ()
    before = copy.deepcopy(loss.state_dict())
    value = loss(*given)
    assert all(torch.equal(before[key], loss.state_dict()[key]) for key in before)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.isclose(compiled(*given), value)
    assert type(loss).__name__ in repr(loss)


@pytest.mark.parametrize(
    ("constructor", "message"),
    [
        (lambda: TfKDLoss(correct=1.0), "`correct`"),
        (lambda: TfKDLoss(reduction="batchmean"), "`reduction`"),
        (lambda: ZipfLoss(upsample=0), "`upsample`"),
        (lambda: USKDLoss(5, [(4,)], weak_weight=-1.0), "`weak_weight`"),
    ],
)
def test_bad_options_are_said_in_one_line(constructor: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        constructor()
