"""Right before fast: a contender is held to float64 on as many rows as fit, and as a whole to torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.contenders import Case, Contender, Loss

EXACT_ELEMENTS = {"cpu": 2**22, "cuda": 2**26}  # of one tensor in float64, of which a dozen are alive
# Gradients are rounded once, relative to each entry; log-probabilities of half precision are already off by 2 ** -9 of
# some 10 to 20, so that contenders which are handed them lose some per cent.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
ROUNDED = {torch.float32: 1e-4, torch.bfloat16: 0.15, torch.float16: 0.05}


def sides(case: Case, *, learning: bool) -> tuple[Tensor, Tensor]:
    """Return both logits as leaves that ask for the gradients that are wanted."""
    return case.logits.detach().requires_grad_(), case.target_logits.detach().requires_grad_(learning)


def gradients(loss: Loss, case: Case, both: tuple[Tensor, Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
    """Return the value, and the gradients of the sides that want one."""
    value = loss(*both, case)
    return value, torch.autograd.grad(value, [side for side in both if side.requires_grad])


def error_of(contender: Contender, case: Case) -> float:
    """Return the largest relative error: of the value, and of each gradient in the Euclidean norm.

    NaN is infinitely wrong.
    """
    count = max(1, EXACT_ELEMENTS[case.logits.device.type] // case.logits.shape[1])
    # Another shape is another compilation.
    exact = [] if contender.compiled else [(case.rows(count), contender.exact)]
    twins = [*exact, *([(case, contender.whole)] if contender.whole else [])]
    return max(_error(contender, where, twin) for where, twin in twins)


def _error(contender: Contender, case: Case, twin: Loss) -> float:
    found = gradients(contender.loss, case, sides(case, learning=contender.learning))
    expected = gradients(twin, case, sides(case, learning=contender.learning))
    pairs = zip((found[0], *found[1]), (expected[0], *expected[1]), strict=True)
    errors = [relative(ours, theirs) for ours, theirs in pairs]
    return max(math.inf if math.isnan(error) else error for error in errors)


def relative(found: Tensor, expected: Tensor) -> float:
    """Return the distance of two tensors over the norm of the second."""
    if found.shape != expected.shape:
        return math.inf
    square = norm = 0.0
    blocks = (x.reshape(-1).split(2**24) for x in (found, expected))  # float64 of a whole batch may not fit
    for ours, theirs in zip(*blocks, strict=True):
        square += (ours.double() - theirs.double()).square().sum().item()
        norm += theirs.double().square().sum().item()
    return math.sqrt(square / norm) if norm else math.sqrt(square)


def tolerance(contender: Contender, dtype: torch.dtype) -> float:
    """Return the error beyond which no time is printed."""
    return (ROUNDED if contender.rounds_log_probabilities else TOLERANCE)[dtype]
