"""A user's own loaders: any iterable of batches, told to be the same in every epoch of the same number."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from limbeck.data.draws import key
from limbeck.data.loader import Batch
from limbeck.data.sources import DataBundle
from limbeck.errors import UserError

Unpack = Callable[[Any], tuple[Tensor, Tensor]]
_SEEDS = 2**32


def first_two(batch: Any) -> tuple[Tensor, Tensor]:
    """Return the inputs and labels of a batch that is a sequence of them.

    Raises:
        UserError: The batch is something else.

    Example:
        >>> first_two([torch.zeros(1), torch.ones(1), "more"])
        (tensor([0.]), tensor([1.]))
    """
    if isinstance(batch, (list, tuple)) and len(batch) >= 2 and all(isinstance(part, Tensor) for part in batch[:2]):
        return batch[0], batch[1]
    shown = f"a dict with keys {', '.join(map(repr, batch))}" if isinstance(batch, dict) else type(batch).__name__
    raise UserError(
        f"the loader expected batches of (inputs, labels), got {shown}; "
        "pass `unpack`, such as lambda batch: (batch['image'], batch['label'])"
    )


class _RandomState:
    """The random states that a loader may draw from: torch's, Python's and, once imported, numpy's."""

    def __init__(self, seed: int) -> None:
        self.torch = torch.Generator().manual_seed(seed).get_state()
        self.python = random.Random(seed).getstate()
        import numpy

        self.numpy = numpy.random.RandomState(seed % _SEEDS).get_state(legacy=False)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Run under these states, keep what becomes of them, and put the callers' back."""
        import numpy

        before = torch.get_rng_state(), random.getstate(), numpy.random.get_state(legacy=False)  # noqa: NPY002 (loaders draw from it)
        torch.set_rng_state(self.torch)
        random.setstate(self.python)
        numpy.random.set_state(self.numpy)  # noqa: NPY002 (loaders draw from it)
        try:
            yield
        finally:
            self.torch, self.python = torch.get_rng_state(), random.getstate()
            self.numpy = numpy.random.get_state(legacy=False)  # noqa: NPY002 (loaders draw from it)
            torch.set_rng_state(before[0])
            random.setstate(before[1])
            numpy.random.set_state(before[2])  # noqa: NPY002 (loaders draw from it)


@dataclass(frozen=True, eq=False)
class UserTraining:
    """A user's training loader.

    Attributes:
        loader: Yields batches; has a length.
        unpack: Batch -> inputs and labels.
    """

    loader: Iterable[Any]
    unpack: Unpack

    def __len__(self) -> int:
        return len(cast("Sized", self.loader))

    def stream(self, seed: int, device: torch.device) -> UserStream:
        """Return the batches of a run with a seed."""
        return UserStream(self, seed, device)


@dataclass(frozen=True, eq=False)
class UserStream:
    """Batches of a user's loader.

    Before an epoch every random state that the loader may draw from is set to a function of (seed, epoch), and it
    draws from those alone. So shuffling and augmentation repeat, and a run resumes in mid-epoch by passing over what it
    has seen; that costs the loading of it.

    Attributes:
        training: The loader.
        seed: Seed of the run.
        device: Where batches are moved.
    """

    training: UserTraining
    seed: int
    device: torch.device

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return len(self.training)

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, from `start_step` on."""
        state = _RandomState(key(self.seed, epoch, "loader") % 2**63)
        loader = self.training.loader
        for part in (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)):
            if callable(set_epoch := getattr(part, "set_epoch", None)):
                set_epoch(epoch)
        self._seed_generators(epoch)
        with state.entered():
            iterator = iter(loader)
        for step in range(self.steps_per_epoch):
            with state.entered():
                batch = next(iterator, None)
            if batch is None:
                raise UserError(
                    f"the training loader expected {self.steps_per_epoch} batches, as its length says, got {step}"
                )
            if step >= start_step:
                inputs, labels = self.training.unpack(batch)
                nothing = torch.empty(0, dtype=torch.int64)
                yield Batch(inputs.to(self.device), labels.to(self.device), nothing, step)

    def _seed_generators(self, epoch: int) -> None:
        """Seed the generators that a loader and its samplers may hold, each with a number of its own."""
        loader = self.training.loader
        holders = {"loader": loader, "sampler": getattr(loader, "sampler", None)}
        for name, holder in holders.items():
            generator = getattr(holder, "generator", None)
            if isinstance(generator, torch.Generator):
                generator.manual_seed(key(self.seed, epoch, f"{name}'s generator") % 2**63)


@dataclass(frozen=True, eq=False)
class UserSamples:
    """A user's loader for validation or testing.

    Attributes:
        loader: Yields batches in the same order each time.
        unpack: Batch -> inputs and labels.
        labels: int64 `(N,)`, of the first pass.
        device: Where inputs are moved.
        who: What the loader is called in messages.
    """

    loader: Iterable[Any]
    unpack: Unpack
    labels: Tensor
    device: torch.device
    who: str

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield the inputs as the loader has them, whatever `size` is.

        Raises:
            UserError: The labels are not those of the first pass: the loader shuffles.
        """
        seen = 0
        for batch in self.loader:
            inputs, labels = self.unpack(batch)
            if not torch.equal(labels.cpu().long(), self.labels[seen : seen + len(labels)]):
                raise UserError(
                    f"the {self.who} loader expected the same order in each pass, got another; do not shuffle it"
                )
            seen += len(labels)
            yield inputs.to(self.device)


def user_data(
    train: Iterable[Any],
    validation: Iterable[Any] | None,
    test: Iterable[Any] | None,
    *,
    unpack: Unpack,
    device: torch.device,
) -> DataBundle:
    """Wrap a user's loaders as a data set. Validation and test loaders are read once, for their labels.

    Args:
        train: Yields batches; has a length.
        validation: The same, in one order; or None.
        test: As `validation`.
        unpack: Batch -> inputs and labels.
        device: Where batches are moved.

    Raises:
        UserError: A loader has no length or no batches, or labels are no class numbers.
    """
    if not isinstance(train, Sized) or not len(train):
        got = "an empty one" if isinstance(train, Sized) else f"{type(train).__name__} without len()"
        raise UserError(f"`train` expected a loader of a known number of batches, got {got}")
    inputs, labels = unpack(next(iter(train)))
    parts = {who: _samples(loader, unpack, device, who) for who, loader in (("validation", validation), ("test", test))}
    every = torch.cat([_class_numbers(labels, "training"), *(part.labels for part in parts.values())])
    digest = hashlib.sha256(f"{len(train)} {tuple(inputs.shape[1:])}".encode())
    for part in parts.values():
        digest.update(part.labels.numpy().tobytes())
    return DataBundle(
        name="custom",
        train=UserTraining(train, unpack),
        validation=parts["validation"],
        test=parts["test"],
        num_classes=int(every.max()) + 1,
        image_shape=tuple(inputs.shape[1:]),
        class_counts=torch.empty(0, dtype=torch.int64),
        fingerprint=digest.hexdigest(),
        device=device,
    )


def _samples(loader: Iterable[Any] | None, unpack: Unpack, device: torch.device, who: str) -> UserSamples:
    labels = [_class_numbers(unpack(batch)[1], who) for batch in loader or ()]
    if loader is not None and not labels:
        raise UserError(f"the {who} loader expected at least one batch, got none")
    whole = torch.cat(labels) if labels else torch.empty(0, dtype=torch.int64)
    return UserSamples(loader or (), unpack, whole, device, who)


def _class_numbers(labels: Tensor, who: str) -> Tensor:
    if labels.dim() == 2 and labels.is_floating_point() and who == "training":
        return labels.argmax(dim=1).cpu()  # soft labels, from mixup of the user's own
    if labels.dim() != 1 or labels.is_floating_point():
        raise UserError(
            f"the {who} loader expected labels as class numbers of shape (N,), got {labels.dtype} {tuple(labels.shape)}"
        )
    return labels.cpu().long()
