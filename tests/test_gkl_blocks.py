"""Claims about how GKL is computed on a CPU: its blocks, their memory, and what torch.compile captures."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from limbeck import GKLLoss, functional
from limbeck.functional import _blocks, _pairs


def batch(samples: int = 7, classes: int = 5) -> tuple[Tensor, ...]:
    """Student, target, class table, labels."""
    generator = torch.Generator().manual_seed(0)
    student, target = 3 * torch.randn(2, samples, classes, generator=generator, dtype=torch.float64)
    table = torch.softmax(torch.randn(classes, classes, generator=generator, dtype=torch.float64), -1)
    labels = torch.randint(classes, (samples,), generator=generator)
    return student.requires_grad_(), target.requires_grad_(), table, labels


def gradients(value: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, inputs, materialize_grads=True)


def test_a_compiled_loss_is_captured_once_for_all_sizes_and_epochs() -> None:
    torch.compiler.reset()
    graphs = []
    loss = GKLLoss(5, weight_power=0.3, ramp_epochs=3)
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=lambda graph, _: graphs.append(graph) or graph)
    for samples in (7, 3, 12, 64):
        student, target = torch.randn(2, samples, 5)
        labels, mask = torch.randint(5, (samples,)), torch.rand(samples) < 0.8
        assert torch.allclose(compiled(student, target, labels, mask=mask), loss(student, target, labels, mask=mask))
        loss.observe(target, labels)
        loss.refresh()
    assert len(graphs) == 1


@pytest.mark.parametrize(
    ("class_wise", "power", "temperature"), [(True, 1, 2), (True, 0.3, 2), (False, 0.3, 2), (False, 1, 1)]
)
def test_a_large_batch_needs_less_than_twice_its_logits(class_wise: bool, power: float, temperature: float) -> None:
    samples, classes = 1024, 1000
    student, target = torch.randn(2, samples, classes)
    student.requires_grad_()
    table = torch.softmax(torch.randn(classes, classes), -1) if class_wise else None
    options = {"labels": torch.arange(samples) % classes if class_wise else None, "temperature": temperature}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        functional.gkl_divergence(student, target, table, weight_power=power, **options).backward()
    alive = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    assert peak - student.nbytes < 2 * student.nbytes


@pytest.mark.parametrize("elements", [1, 64, 2**15, 2**20])
@pytest.mark.parametrize("normalizer", ["weights", "row"])
def test_values_and_gradients_do_not_depend_on_the_block(
    elements: int, normalizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_blocks, "_block_elements", lambda: elements)
    student, target, table, labels = batch()
    mask = torch.arange(len(labels)) != 2
    for rows, options in (
        (table, {"labels": labels}),
        (None, {"prior_temperature": 2.0}),
        (None, {"temperature": 2.0}),
    ):
        options |= {"weight_power": 0.3, "mask": mask, "normalizer": normalizer, "reduction": "none"}
        value = functional.gkl_divergence(student, target, rows, **options)
        with monkeypatch.context() as plain:
            plain.setattr(_pairs, "_can_fuse", lambda *_: False)
            wanted = functional.gkl_divergence(student, target, rows, **options)
        assert torch.allclose(value, wanted, rtol=1e-12)
        factors = torch.linspace(-1, 2, len(labels), dtype=torch.float64)
        for got, exact in zip(
            gradients(value @ factors, student, target), gradients(wanted @ factors, student, target), strict=True
        ):
            assert torch.allclose(got, exact, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("offset", [1e4, -1e6])
@pytest.mark.parametrize("power", [0.3, 1, 3])
@pytest.mark.parametrize("classes", [103, 3001])
def test_a_common_offset_of_logits_costs_no_digits(offset: float, power: float, classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = (3 * torch.randn(2, 6, classes, generator=generator) + offset).unbind()
    found, exact = [], []
    for into, dtype in ((found, torch.float32), (exact, torch.float64)):
        student, target = (x.to(dtype).requires_grad_() for x in drawn)
        value = functional.gkl_divergence(student, target, weight_power=power, prior_temperature=1.7)
        into += [value, *gradients(value, student, target)]
    for ours, wanted in zip(found, exact, strict=True):
        assert (ours.double() - wanted).norm() <= 2e-6 * wanted.norm()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_many_incoming_gradients_at_once_are_as_one_after_another(reduction: str) -> None:
    student, target, table, labels = batch()
    value = functional.gkl_divergence(student, target, table, labels=labels, reduction=reduction)
    incoming = torch.randn(3, *value.shape, dtype=torch.float64)
    one_by_one = [torch.autograd.grad(value, (student, target), each, retain_graph=True) for each in incoming]
    at_once = torch.autograd.grad(value, (student, target), incoming, is_grads_batched=True)
    for found, wanted in zip(at_once, zip(*one_by_one, strict=True), strict=True):
        assert torch.allclose(found, torch.stack(wanted))


def test_labels_and_masks_may_come_from_inference_mode() -> None:
    student, target, table, labels = batch()
    mask = torch.arange(len(labels)) != 2
    wanted = gradients(functional.gkl_divergence(student, target, table, labels=labels, mask=mask), student)
    with torch.inference_mode():
        table, labels, mask = table.clone(), labels.clone(), mask.clone()
    assert torch.equal(
        gradients(functional.gkl_divergence(student, target, table, labels=labels, mask=mask), student)[0], wanted[0]
    )


@pytest.mark.parametrize("samples", [1, 2, 33, 512, 4096])
@pytest.mark.parametrize("classes", [2, 100, 1000, 40_000])
@pytest.mark.parametrize("elements", [2**15, 2**18])
def test_blocks_of_a_large_batch_are_halves_at_most(
    samples: int, classes: int, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_blocks, "_block_elements", lambda: elements)
    rows = _blocks._block_rows(torch.empty(1).expand(samples, classes))
    assert 1 <= rows <= samples
    assert rows == 1 or rows * classes <= elements
    assert rows * classes <= max(_blocks.SMALL_BATCH, (samples + 1) // 2 * classes)
