"""A network that learns more classes than it began with: its head grows, and its older self says nothing of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# The logit of a class that a network does not know: finite, as all that is kept has to be, and of probability 0.
UNKNOWN = -1e4


class FewerClasses(nn.Module):
    """A network among more classes than it knows; the logits of the others, which come last, are `UNKNOWN`.

    Args:
        network: Returns `(N, K)`.
        classes: C, at least K.
    """

    def __init__(self, network: nn.Module, classes: int) -> None:
        super().__init__()
        self.network, self.classes = network, classes

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `(N, C)` of images."""
        logits: Tensor = self.network(images)
        return F.pad(logits, (0, self.classes - logits.shape[-1]), value=UNKNOWN)


def grow(student: nn.Module, before: nn.Module) -> None:
    """Give a student the weights of the network before it; rows of its head for classes that are new stay its own.

    Args:
        student: For more classes; changed in place.
        before: The same network for the first of them.

    Raises:
        ValueError: They differ in more than rows.

    Example:
        >>> before, student = nn.Linear(2, 1), nn.Linear(2, 3)
        >>> grow(student, before)
        >>> torch.equal(student.weight[:1], before.weight)
        True
    """
    known = before.state_dict()
    grown = {name: _with_first_rows(value, known[name]) for name, value in student.state_dict().items()}
    student.load_state_dict(grown)


def _with_first_rows(own: Tensor, known: Tensor) -> Tensor:
    if own.shape == known.shape:
        return known
    if own.shape[1:] != known.shape[1:] or len(known) > len(own):
        shapes = f"{tuple(known.shape)} for {tuple(own.shape)}"
        raise ValueError(f"expected a network that differs in the rows of its head alone, got {shapes}")
    return torch.cat([known.to(own), own[len(known) :]])
