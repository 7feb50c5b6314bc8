"""What the theory is computed with: random logits, gradients, small networks trained on scikit-learn's digits."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from limbeck import ClassPrior, dkl_divergence, kl_divergence


def normal(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    """Return float64 draws that depend on the seed alone."""
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradients(
    divergence: Callable[..., Tensor], logits: Tensor, target: Tensor, *rest: Tensor, **options: object
) -> list[Tensor]:
    """Return the gradients of a divergence to both of its inputs, zeros where none arrives."""
    sides = [x.detach().clone().requires_grad_() for x in (logits, target)]
    value = divergence(*sides, *rest, **options)
    return list(torch.autograd.grad(value, sides, materialize_grads=True))


def part_gradients(logits: Tensor, target: Tensor, *, symmetric: bool) -> dict[str, list[Tensor]]:
    """Return the gradients of DKL's two parts, each to the student's and to the target's logits."""
    return {
        name: gradients(dkl_divergence, logits, target, symmetric=symmetric, mse_weight=mse, ce_weight=1 - mse)
        for name, mse in (("weighted MSE", 1.0), ("soft cross-entropy", 0.0))
    }


def network(width: int, seed: int) -> nn.Module:
    """Return an MLP with one hidden layer; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10)).double()


@functools.cache
def digits_and_teacher() -> tuple[Tensor, Tensor, nn.Module]:
    """Return scikit-learn's digits, and a network trained on them with cross-entropy."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 8 - 1, dtype=torch.float64), torch.tensor(labels, dtype=torch.int64)
    teacher = network(64, seed=0)
    optimizer = torch.optim.SGD(teacher.parameters(), lr=0.1, momentum=0.9)
    for batch in batches(len(x), steps=150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(teacher(x[batch]), y[batch]).backward()
        optimizer.step()
    return x, y, teacher.requires_grad_(False)


def batches(samples: int, steps: int) -> Iterator[Tensor]:
    """Draw the indices of 64 samples per step, the same ones on every call."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        yield torch.randint(samples, (64,), generator=generator)


@functools.cache
def teacher_logits() -> Tensor:
    """Return the teacher's logits for all images of the digit 8."""
    images, labels, teacher = digits_and_teacher()
    return teacher(images[labels == 8])


def class_row(power: float) -> Tensor:
    """Return the weights of the digit 8 at a power, normalised to sum 1."""
    images, labels, teacher = digits_and_teacher()
    prior = ClassPrior(10)
    prior.observe(teacher(images), labels)
    prior.refresh()
    weight = prior.prior[8].double() ** power
    return weight / weight.sum()


class Trained(NamedTuple):
    """A student, and after each step its loss and all its weights in one row."""

    network: nn.Module
    losses: Tensor
    weights: Tensor


TRAINED_WITH: dict[str, Callable[..., Tensor]] = {
    "kl": kl_divergence,
    "dkl": dkl_divergence,
    "dkl with BA": functools.partial(dkl_divergence, symmetric=True),
}


@functools.cache
def train(divergence: str, *, both_learn: bool = False, steps: int = 300) -> Trained:
    """Train a student from a frozen teacher, or on two views of its own where both sides get gradients."""
    images, labels, teacher = digits_and_teacher()
    student = network(16, seed=1)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    losses, weights = [], []
    for step, batch in enumerate(batches(len(images), steps)):
        x = images[batch]
        if both_learn:
            clean, noisy = student(x), student(x + normal(*x.shape, seed=step, scale=0.3))
            loss = nn.functional.cross_entropy(clean, labels[batch]) + TRAINED_WITH[divergence](noisy, clean)
        else:
            loss = TRAINED_WITH[divergence](student(x), teacher(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        weights.append(nn.utils.parameters_to_vector(student.parameters()).detach())
    return Trained(student, torch.stack(losses), torch.stack(weights))
