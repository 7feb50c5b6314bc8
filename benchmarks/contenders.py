"""What is measured: losses of a student and a teacher, ours and others', each beside its float64 form.

A contender takes logits alone: whatever else it needs, log-probabilities for instance, it makes itself and is timed
with. Bytes are those of the mathematics, for every contender the same: a forward pass reads each logit tensor once, a
backward pass once more, and each wanted gradient is written once; class rows, where weights are class-wise, are read
as often as the logits.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck import functional

Loss = Callable[[Tensor, Tensor, "Case"], Tensor]
POWER, TEMPERATURE, MSE_WEIGHT = 0.3, 4.0, 4.0
GKL: dict[str, Any] = {"mse_weight": MSE_WEIGHT, "temperature": TEMPERATURE}
TABLE_BYTES = 8 * 2**30
PAIR_BYTES = {"cpu": 2**26, "cuda": 4 * 2**30}  # it needs several of them, and a graph of it as many again


class Case(NamedTuple):
    """One batch: logits of both sides (N, C), labels (N,), and class means (C, C) where they fit.

    The table is already raised to the power, as `GKLLoss` keeps it between two refreshes.
    """

    logits: Tensor
    target_logits: Tensor
    labels: Tensor
    table: Tensor | None

    def rows(self, count: int) -> Case:
        """Return its first rows."""
        return Case(self.logits[:count], self.target_logits[:count], self.labels[:count], self.table)


@dataclass(frozen=True)
class Contender:
    """A loss to be timed. `exact` is its float64 form, `whole` an independent form that the whole batch is held to."""

    name: str
    loss: Loss
    exact: Loss
    whole: Loss | None = None
    learning: bool = False
    class_rows: bool = False
    rounds_log_probabilities: bool = False
    kernel: str | None = None
    package: str | None = None
    pairs: bool = False
    most_classes: int | None = None
    compiled: bool = False
    while_captured: Callable[[], AbstractContextManager[None]] = nullcontext

    def missing(self) -> str | None:
        """Say which package it needs that is not installed."""
        found = self.package is None or importlib.util.find_spec(self.package)
        return None if found else f"{self.package} is not installed"

    def does_not_fit(self, case: Case) -> str | None:
        """Say why a batch of this size is not tried."""
        if self.class_rows and case.table is None:
            return f"a table of {case.logits.shape[1]:,} x {case.logits.shape[1]:,} is not made"
        if self.most_classes is not None and case.logits.shape[1] > self.most_classes:
            return f"for at most {self.most_classes} classes"
        pairs = 4 * case.logits.numel() * case.logits.shape[1]
        limit = PAIR_BYTES[case.logits.device.type]
        return f"one (N, C, C) tensor takes {pairs / 1e9:,.1f} GB" if self.pairs and pairs > limit else None

    def moved(self, case: Case, *, backward: bool) -> int:
        """Return the bytes that have to be read and written."""
        read = case.logits.nbytes + case.target_logits.nbytes
        if self.class_rows and case.table is not None:
            read += case.logits.numel() * case.table.element_size()
        return 2 * read + case.logits.nbytes * (1 + self.learning) if backward else read


def make_case(samples: int, classes: int, dtype: torch.dtype, device: str, seed: int, *, table: bool) -> Case:
    """Draw a batch, with a table if it takes no more than 8 GiB."""
    generator = torch.Generator(device).manual_seed(seed)
    options: dict[str, Any] = {"generator": generator, "device": device}
    logits, target_logits = (torch.randn(samples, classes, **options).mul_(3).to(dtype) for _ in range(2))
    labels = torch.randint(classes, (samples,), **options)
    if not table or classes**2 * 4 > TABLE_BYTES:
        return Case(logits, target_logits, labels, None)
    means = torch.randn(classes, classes, **options)
    for block in means.split(4096):
        block.copy_(block.softmax(-1).pow_(POWER))
    return Case(logits, target_logits, labels, means)


# --- in float64 ---------------------------------------------------------------------------------------------------


def exact_gkl(s: Tensor, t: Tensor, case: Case, *, class_wise: bool = False) -> Tensor:
    """S squared times half a weighted variance of the gaps, and a soft cross-entropy."""
    s, t = s.double(), t.double()
    u = case.table[case.labels].double() if class_wise else F.softmax(t.detach(), -1) ** POWER
    mass = u.sum(-1, keepdim=True)
    gap = s - t
    centred = gap - (u * gap).sum(-1, keepdim=True) / mass
    mse = (mass * u * centred**2).sum() / 2 / (mass**2).sum()
    p = F.softmax(t.detach() / TEMPERATURE, -1)
    return MSE_WEIGHT * mse - (p * F.log_softmax(s / TEMPERATURE, -1)).sum(-1).mean()


def exact_gkl_of_classes(s: Tensor, t: Tensor, case: Case) -> Tensor:
    """The same with the class's row of the table for weights."""
    return exact_gkl(s, t, case, class_wise=True)


def exact_kl(s: Tensor, t: Tensor, case: Case, *, temperature: float = 1.0) -> Tensor:
    """KL(p_t || p_s), the mean over samples."""
    log_q, log_p = (F.log_softmax(x.double() / temperature, -1) for x in (s, t))
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean() * temperature**2


def exact_distillation(s: Tensor, t: Tensor, case: Case) -> Tensor:
    """Hinton's loss, T squared included."""
    return exact_kl(s, t, case, temperature=TEMPERATURE)


def exact_js(s: Tensor, t: Tensor, case: Case) -> Tensor:
    """Half of KL(p || m) and half of KL(q || m), m halfway between."""
    log_q, log_p = (F.log_softmax(x.double(), -1) for x in (s, t))
    log_m = torch.logaddexp(log_q, log_p) - torch.log(torch.tensor(2.0, dtype=torch.float64, device=s.device))
    return ((log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(-1) / 2).mean()


# --- ours, and plain torch ----------------------------------------------------------------------------------------


def gkl(impl: str, *, class_wise: bool = False) -> Loss:
    """GKL with weights from the target, or with rows of a table by label."""

    def loss(s: Tensor, t: Tensor, case: Case) -> Tensor:
        options: dict[str, Any] = (
            {"labels": case.labels, "weight_power": 1.0} if class_wise else {"weight_power": POWER}
        )
        return functional.gkl_divergence(s, t, case.table if class_wise else None, impl=impl, **options, **GKL)

    return loss


def kl(impl: str) -> Loss:
    """KL."""
    return lambda s, t, case: functional.kl_divergence(s, t, impl=impl)


def js(impl: str) -> Loss:
    """JS, halfway."""
    return lambda s, t, case: functional.js_divergence(s, t, impl=impl)


@functools.cache
def cost_between(classes: int, device: torch.device) -> Tensor:
    """Costs of transport between classes: symmetric, 0 on the diagonal."""
    drawn = torch.rand(classes, classes, generator=torch.Generator(device).manual_seed(0), device=device)
    return (drawn + drawn.T).fill_diagonal_(0)


def transport(impl: str, dtype: torch.dtype) -> Loss:
    """WKD-L's two parts, ten sweeps."""

    def loss(s: Tensor, t: Tensor, case: Case) -> Tensor:
        cost = cost_between(s.shape[1], s.device).to(dtype)
        sides = s.to(dtype), t.to(dtype)
        return sum(functional.wkd_logit(*sides, case.labels, cost, temperature=TEMPERATURE, impl=impl))

    return loss


def transports(kernels: Sequence[str]) -> list[Contender]:
    """WKD-L by torch, and by the kernel for few classes, which nobody takes unasked."""
    exact = transport("torch", torch.float64)
    found = [Contender("WKD-L, torch", transport("torch", torch.float32), exact)]
    if "sinkhorn" in kernels:
        by_kernel = transport("triton", torch.float32), exact, transport("torch", torch.float32)
        found.append(Contender("WKD-L, kernel", *by_kernel, kernel="sinkhorn", most_classes=128))
    return found


def distillation(s: Tensor, t: Tensor, case: Case) -> Tensor:
    """Hinton's loss as most code bases write it."""
    log_q = F.log_softmax(s / TEMPERATURE, -1)
    return F.kl_div(log_q, F.softmax(t / TEMPERATURE, -1), reduction="batchmean") * TEMPERATURE**2


def brute_force(s: Tensor, t: Tensor, case: Case) -> Tensor:
    """GKL as it is printed, with its (N, C, C) tensors; sample-wise weights."""
    s, t = s.float(), t.float()
    u = F.softmax(t.detach(), -1) ** POWER
    weights = u.unsqueeze(-1) * u.unsqueeze(-2)
    gaps = (t.unsqueeze(-1) - t.unsqueeze(-2)) - (s.unsqueeze(-1) - s.unsqueeze(-2))
    mse = (weights * gaps**2).sum() / weights.sum((-1, -2)).sum() / 4
    p = F.softmax(t.detach() / TEMPERATURE, -1)
    return MSE_WEIGHT * mse - (p * F.log_softmax(s / TEMPERATURE, -1)).sum(-1).mean()


def compiled(loss: Loss) -> Loss:
    """torch.compile of a loss, for the shape it is first called with."""
    return torch.compile(loss, dynamic=False)


def own(*, learning: bool, kernels: Sequence[str]) -> list[Contender]:
    """Ours by torch and by each kernel, GKL by weights of the sample and of the class."""
    found = [Contender("GKL, torch", gkl("torch"), exact_gkl, learning=learning)]
    if not learning:  # compiling takes longer than all else
        found.append(Contender("GKL, torch.compile", compiled(gkl("torch")), exact_gkl, gkl("torch"), compiled=True))
    if "gkl" in kernels:
        more: dict[str, Any] = {"learning": learning, "kernel": "gkl"}
        rows = gkl("triton", class_wise=True), exact_gkl_of_classes, gkl("torch", class_wise=True)
        found += [
            Contender("KL, kernel", kl("triton"), exact_kl, kl("torch"), **more),
            Contender("GKL class-wise, kernel", *rows, class_rows=True, **more),
            Contender("GKL, kernel", gkl("triton"), exact_gkl, gkl("torch"), **more),
        ]
    if "js" in kernels:
        found.insert(-1, Contender("JS, kernel", js("triton"), exact_js, js("torch"), learning=learning, kernel="js"))
    return found


def plain() -> list[Contender]:
    """Distillation by torch alone, and GKL with all pairs of classes."""
    return [
        Contender("F.kl_div distillation", distillation, exact_distillation, rounds_log_probabilities=True),
        Contender("GKL, brute force", brute_force, exact_gkl, gkl("torch"), pairs=True),
    ]
