"""Inputs without random numbers, on which published code was run once; each claim is (value, norm of the gradient)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Student logits, target logits, both (8, 10) in float64, and labels."""
    n = torch.arange(80, dtype=torch.float64)
    student = (2 * torch.sin(1 + 0.37 * n)).view(8, 10).requires_grad_()
    target = (3 * torch.cos(0.5 + 0.53 * n)).view(8, 10)
    return student, target, (3 * torch.arange(8) + 1) % 10


def holds(value: Tensor, student: Tensor, expected: float, norm: float) -> None:
    """Both numbers to the digits that are printed."""
    assert value.item() == pytest.approx(expected, abs=6e-9)
    assert torch.autograd.grad(value, student)[0].norm().item() == pytest.approx(norm, abs=6e-9)
