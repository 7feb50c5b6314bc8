"""Inputs for GKL's kernel, and the same calls by plain operations in float64."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from limbeck import functional

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Case(NamedTuple):
    """A call of `gkl_divergence`."""

    weights: str  # "table", "rows", "one row", "sample"
    options: dict[str, Any]
    masked: bool = False

    def __str__(self) -> str:
        return "-".join([self.weights, *map(str, self.options.values()), *(["masked"] if self.masked else [])])


# Every source of weights, normaliser and reduction, in pairs rather than in all combinations.
CASES = [
    Case("table", {"reduction": "mean", "temperature": 2.0}),
    Case("table", {"weight_power": 0.3, "reduction": "none"}, masked=True),
    Case("table", {"weight_power": 0.3, "normalizer": "row", "reduction": "sum"}),
    Case("table", {"normalizer": "samples", "ce_weight": 0.0}, masked=True),
    Case("rows", {"weight_power": 0.5, "normalizer": "given"}),
    Case("rows", {"mse_weight": 0.0}, masked=True),
    Case("one row", {"weight_power": 2.0, "reduction": "none"}),
    Case("sample", {"temperature": 2.0, "prior_temperature": 2.0}, masked=True),
    Case("sample", {"temperature": 2.0, "prior_temperature": 2.0, "normalizer": "row", "reduction": "none"}),
    Case("sample", {"prior_temperature": 4.0, "ce_weight": 0.0, "reduction": "sum"}),
    Case("sample", {"prior_temperature": 4.0, "weight_power": 0.4}, masked=True),
    Case("sample", {"prior_temperature": 4.0, "weight_power": 0.4, "normalizer": "row"}),
    Case("sample", {"prior_temperature": 4.0, "weight_power": 0.4, "normalizer": "given", "reduction": "sum"}),
    Case("sample", {"weight_power": 0.0, "normalizer": "weights"}, masked=True),
]


class Inputs(NamedTuple):
    """Tensors of a call."""

    logits: Tensor
    target: Tensor
    prior: Tensor | None
    labels: Tensor | None
    mask: Tensor | None


def batch(case: Case, samples: int, classes: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    logits, target = (3 * draw(samples, classes)).to(dtype), (3 * draw(samples, classes)).to(dtype)
    prior = labels = mask = None
    if case.weights == "table":
        prior = torch.softmax(2 * draw(classes, classes), -1)
        labels = torch.randint(classes, (samples,), generator=generator)
    elif case.weights == "rows":
        prior = torch.softmax(2 * draw(samples, classes), -1)
    elif case.weights == "one row":
        prior = torch.softmax(2 * draw(classes), -1).expand(samples, classes)
    if case.masked:  # what is left out may be anything
        mask = torch.arange(samples) != 1
        logits[1], target[1] = torch.nan, torch.nan
        labels = labels if labels is None else labels.masked_fill(~mask, -100)
    return Inputs(*(x if x is None else x.to(DEVICE) for x in (logits, target, prior, labels, mask)))


def by_kernel(case: Case, inputs: Inputs) -> list[Tensor]:
    """Value and both gradients by the kernel."""
    return _call(case, inputs, "triton", inputs.logits, inputs.target, inputs.prior)


def by_twin(case: Case, inputs: Inputs) -> list[Tensor]:
    """The same in float64 by plain operations."""
    prior = inputs.prior if inputs.prior is None else inputs.prior.double()
    return _call(case, inputs, "torch", inputs.logits.double(), inputs.target.double(), prior)


def by_torch(case: Case, inputs: Inputs) -> list[Tensor]:
    """The same in the inputs' own dtypes by plain operations."""
    return _call(case, inputs, "torch", inputs.logits, inputs.target, inputs.prior)


def _call(case: Case, inputs: Inputs, impl: str, logits: Tensor, target: Tensor, prior: Tensor | None) -> list[Tensor]:
    options = dict(case.options)
    if options.get("normalizer") == "given":
        options["normalizer"] = torch.tensor(2.5, device=DEVICE)
    logits, target = logits.detach().requires_grad_(), target.detach().requires_grad_()
    value = functional.gkl_divergence(
        logits, target, prior, labels=inputs.labels, mask=inputs.mask, impl=impl, **options
    )
    grad = torch.linspace(0.5, 1.5, value.numel(), device=DEVICE).reshape(value.shape).to(value.dtype)
    return [value, *torch.autograd.grad(value, (logits, target), grad, materialize_grads=True)]


def error(got: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest entry."""
    assert got.isfinite().all()
    return ((got.double() - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30)).item()


def assert_close(got: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert got.shape == wanted.shape
    assert error(got, wanted) <= tolerance


def family(name: str, inputs: Inputs, impl: str, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Value and both gradients of a relative of GKL."""
    logits, target = (x.detach().to(dtype or x.dtype).requires_grad_() for x in (inputs.logits, inputs.target))
    rows = torch.linspace(0.1, 2.0, logits.shape[-1], device=DEVICE, dtype=logits.dtype).expand(logits.shape)
    function, options = {
        "kl": (functional.kl_divergence, {"temperature": 2.0, "scale_by_t2": True}),
        "kl sum": (functional.kl_divergence, {"reduction": "sum"}),
        "reverse_kl": (functional.reverse_kl_divergence, {"temperature": 0.5}),
        "soft_cross_entropy": (functional.soft_cross_entropy, {"temperature": 2.0, "scale_by_t2": True}),
        "dkl": (functional.dkl_divergence, {"temperature": 3.0, "scale_by_t2": True}),
        "dkl rows": (functional.dkl_divergence, {"weight": rows, "symmetric": True, "temperature": 2.0}),
        "weighted_mse": (functional.weighted_mse, {"weight": rows}),
        "gkl": (functional.gkl_divergence, {}),
        "gkl powered": (functional.gkl_divergence, {"prior": rows, "weight_power": 0.5}),
    }[name]
    value = function(logits, target, impl=impl, **options)
    return [value, *torch.autograd.grad(value, (logits, target), materialize_grads=True)]
