"""Claims about CTKD: its temperature climbs where the student descends, by a schedule, tau squared in the graph."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import twins
from torch import Tensor
from twins import gradients, labelled_batch

from limbeck.functional.curriculum import reversal, scale_gradient
from limbeck.losses.curriculum import CTKDLoss


def twin(logits: Tensor, target_logits: Tensor, tau: Tensor, scale_by_t2: bool = True) -> Tensor:
    q, p = (twins.softmax(x / tau) for x in (logits, target_logits))
    return twins.kl(p, q) * (tau**2 if scale_by_t2 else 1)


@pytest.mark.parametrize("epoch", [1, 4, 10, 33])
@pytest.mark.parametrize("scale_by_t2", [True, False])
def test_ctkd_is_kl_at_its_temperature_whose_gradient_is_reversed(epoch: int, scale_by_t2: bool) -> None:
    student, target, _ = labelled_batch()
    loss = CTKDLoss(min_temperature=2.0, temperature_range=5.0, scale_by_t2=scale_by_t2).double()
    loss.set_epoch(epoch)
    raw = torch.ones((), dtype=torch.float64, requires_grad=True)
    expected = twin(student, target, 2 + 5 / (1 + torch.exp(-raw)), scale_by_t2).mean()
    value = loss(student, target)
    assert torch.isclose(value, expected, rtol=1e-12)
    got = gradients(value, student, loss.raw_temperature)
    wanted = gradients(expected, student, raw)
    assert (got[0] - wanted[0]).abs().max() < 1e-12
    factor = -(1 - math.cos(math.pi * min(epoch, 10) / 10)) / 2
    assert got[1].item() == pytest.approx(factor * wanted[1].item(), rel=1e-6)  # the factor is a float32 buffer
    assert torch.autograd.grad(value, target, allow_unused=True) == (None,)


@pytest.mark.parametrize("raw", [-3.0, 0.0, 1.0, 4.0])
@pytest.mark.parametrize("scale_by_t2", [True, False])
def test_a_step_of_descent_raises_the_loss_over_the_temperature_and_lowers_it_over_the_student(
    raw: float, scale_by_t2: bool
) -> None:
    student, target, _ = labelled_batch()
    loss = CTKDLoss(scale_by_t2=scale_by_t2).double()
    loss.raw_temperature.data.fill_(raw)
    loss.set_epoch(10)
    for parameter, rises in ((loss.raw_temperature, True), (student, False)):
        before = loss(student, target)
        (step,) = gradients(before, parameter)
        with torch.no_grad():
            parameter -= 1e-3 * step / step.norm()
        assert bool(loss(student, target) > before) == rises


def test_temperature_starts_at_that_of_the_public_code_and_stays_between_its_bounds() -> None:
    loss = CTKDLoss()
    assert loss.temperature().item() == pytest.approx(1 + 20 / (1 + math.exp(-1)))  # 15.6
    for raw, expected in ((-100.0, 1.0), (100.0, 21.0)):
        loss.raw_temperature.data.fill_(raw)
        assert loss.temperature().item() == pytest.approx(expected)


def test_reversal_is_a_half_cosine_that_stays_at_its_end() -> None:
    assert [reversal(epoch, 4) for epoch in (0, 1, 2, 3, 4, 9)] == pytest.approx(
        [0, -(1 - math.sqrt(0.5)) / 2, -0.5, -(1 + math.sqrt(0.5)) / 2, -1, -1]
    )
    assert reversal(1, 0) == -1
    with pytest.raises(ValueError, match="`epoch`"):
        reversal(-1, 4)


@pytest.mark.parametrize("factor", [0.0, -1.0, 0.3])
def test_scaling_a_gradient_leaves_the_value(factor: float) -> None:
    x = torch.linspace(-3, 1e4, 7, dtype=torch.float64, requires_grad=True)
    for given in (factor, torch.tensor(factor, dtype=torch.float64, requires_grad=True)):
        assert torch.equal(scale_gradient(x, given), x)
        (got,) = gradients((scale_gradient(x, given) ** 2).sum(), x)
        assert torch.allclose(got, factor * 2 * x)


def test_the_schedule_is_no_memory_and_the_temperature_is() -> None:
    loss = CTKDLoss(ramp_epochs=4)
    assert list(loss.state_dict()) == ["raw_temperature"]
    assert loss.strength.item() == pytest.approx(reversal(1, 4))
    loss.set_epoch(3)
    assert copy.deepcopy(loss).strength.item() == pytest.approx(reversal(3, 4))


def test_equal_logits_are_stationary_for_both_players() -> None:
    student, _, _ = labelled_batch()
    loss = CTKDLoss().double()
    loss.set_epoch(10)
    value = loss(student, student)
    assert value.abs() < 1e-15
    assert all(g.abs().max() < 1e-14 for g in gradients(value, student, loss.raw_temperature))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_ctkd_is_finite_in_any_dtype_and_with_absent_classes(dtype: torch.dtype) -> None:
    student = torch.tensor([[6e4, 0.0, -torch.inf], [0.0, 1.0, 2.0]], dtype=dtype, requires_grad=True)
    target = torch.tensor([[-6e4, 0.0, -torch.inf], [3.0, 1.0, 2.0]], dtype=dtype)
    loss = CTKDLoss()
    loss.set_epoch(5)
    value = loss(student, target)
    assert value.dtype == torch.float32
    assert all(g.isfinite().all() for g in (value, *gradients(value, student, loss.raw_temperature)))


def test_one_graph_serves_all_epochs() -> None:
    student, target, _ = labelled_batch()
    loss = CTKDLoss().double()
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    for epoch in (1, 5, 10):
        loss.set_epoch(epoch)
        pair = [gradients(f(student, target), loss.raw_temperature)[0] for f in (compiled, loss)]
        assert torch.isclose(*pair)
    assert len(graphs) == 1


@pytest.mark.parametrize("option", ["min_temperature", "temperature_range", "ramp_epochs"])
def test_bad_options_are_said_in_one_line(option: str) -> None:
    with pytest.raises(ValueError, match=f"`{option}`"):
        CTKDLoss(**{option: -1.0})
