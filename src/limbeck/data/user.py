"""A user's own loaders: any iterable of batches, made to be the same in every epoch of the same number."""

from __future__ import annotations

import hashlib
import numbers
import random
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from limbeck.data.loader import Batch
from limbeck.data.sources import DataBundle
from limbeck.draws import key
from limbeck.errors import UserError

Unpack = Callable[[Any], tuple[Tensor, Tensor]]

BATCHES_OF = "to make batches of single samples, wrap the data set in torch.utils.data.DataLoader"
_END = object()
_HELD_OUT = 0  # seed of each pass over validation or test data, so that all passes are the same


def first_two(batch: Any) -> tuple[Tensor, Tensor]:
    """Return the inputs and labels of a batch that is a sequence of them.

    Raises:
        UserError: The batch is something else.

    Example:
        >>> first_two([torch.zeros(1), torch.ones(1), "more"])
        (tensor([0.]), tensor([1.]))
    """
    if isinstance(batch, (list, tuple)) and len(batch) >= 2:
        return batch[0], batch[1]
    shown = f"a dict with keys {', '.join(map(repr, batch))}" if isinstance(batch, dict) else type(batch).__name__
    raise UserError(
        f"the loader expected batches of (inputs, labels), got {shown}; "
        "pass `unpack`, such as lambda batch: (batch['image'], batch['label'])"
    )


# --- one pass over a loader -------------------------------------------------------------------------------


class RandomState:
    """States of torch's, Python's and numpy's global generators that are not the program's own.

    Args:
        seed: What they start from.
    """

    def __init__(self, seed: int) -> None:
        import numpy

        self._states = (
            torch.Generator().manual_seed(seed).get_state(),
            random.Random(seed).getstate(),
            numpy.random.RandomState(seed % 2**32).get_state(legacy=False),
        )

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Draw from these states, keep what becomes of them, and put the program's back."""
        before = _global_states()
        _set_global_states(self._states)
        try:
            yield
        finally:
            self._states = _global_states()
            _set_global_states(before)


def _global_states() -> tuple[Any, ...]:
    import numpy

    return torch.get_rng_state(), random.getstate(), numpy.random.get_state(legacy=False)  # noqa: NPY002 (theirs)


def _set_global_states(states: tuple[Any, ...]) -> None:
    import numpy

    torch.set_rng_state(states[0])
    random.setstate(states[1])
    numpy.random.set_state(states[2])  # noqa: NPY002 (what loaders draw from)


def read(loader: Iterable[Any], seed: int) -> Iterator[Any]:
    """Yield the batches of one pass. Whatever the loader draws, and its workers, is a function of `seed`.

    Not so what it draws from a generator that nobody can see, such as one that the data set keeps.
    """
    sampler, batch_sampler = (getattr(loader, name, None) for name in ("sampler", "batch_sampler"))
    for place, holder in enumerate((loader, sampler, batch_sampler, getattr(batch_sampler, "sampler", None))):
        generator = getattr(holder, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(key(seed, place, "generator") % 2**63)
    state = RandomState(seed)
    with state.entered():
        iterator = iter(loader)
    while True:
        with state.entered():
            batch = next(iterator, _END)
        if batch is _END:
            return
        yield batch


def first_inputs(train: Iterable[Any], unpack: Unpack) -> Tensor:
    """Return the inputs of a first batch of a training loader, which is left as it was but for hidden generators.

    Raises:
        UserError: The loader has no length or no batches, keeps its workers over the epochs, or a batch is no pair of
            tensors.
    """
    return _first_batch(train, unpack)[0]


def _first_batch(train: Iterable[Any], unpack: Unpack) -> tuple[Tensor, Tensor]:
    if not isinstance(train, Sized) or not len(train):
        got = "an empty one" if isinstance(train, Sized) else f"{type(train).__name__} without len()"
        raise UserError(f"`train` expected a loader of a known number of batches, at least one, got {got}")
    if getattr(train, "persistent_workers", False):
        raise UserError(
            "`train` expected a loader with persistent_workers=False, got True: workers that stay draw on from the "
            "epoch before, so neither a resumed run nor another loss would see the same views"
        )
    for batch in read(cast("Iterable[Any]", train), key(0, 0, "first batch") % 2**63):
        return _unpacked(batch, unpack, "training")
    raise UserError(f"the training loader expected {len(train)} batches, as its length says, got none")


def _unpacked(batch: Any, unpack: Unpack, who: str) -> tuple[Tensor, Tensor]:
    pair = unpack(batch)
    if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and all(isinstance(part, Tensor) for part in pair)):
        parts = pair if isinstance(pair, (tuple, list)) else (pair,)
        sample = any(isinstance(part, numbers.Number) for part in parts)
        raise UserError(
            f"the {who} loader expected tensors (inputs, labels) in each batch, "
            f"got ({', '.join(type(part).__name__ for part in parts)}); {BATCHES_OF if sample else 'see `unpack`'}"
        )
    if not all(part.dim() for part in pair):
        shapes = " and ".join(str(tuple(part.shape)) for part in pair)
        raise UserError(f"the {who} loader expected batches, got tensors of the shapes {shapes}; {BATCHES_OF}")
    if len(pair[0]) != len(pair[1]):
        raise UserError(
            f"the {who} loader expected as many labels as inputs in a batch, got {len(pair[1])} and {len(pair[0])}"
        )
    return pair[0], pair[1]


def _checked(labels: Tensor, who: str, num_classes: int, *, soft: bool = False) -> Tensor:
    """Return labels as the losses read them: int64, or float probabilities where `soft` ones are allowed."""
    if soft and labels.is_floating_point() and labels.shape[1:] == (num_classes,):
        return labels
    if labels.dim() != 1 or labels.is_floating_point():
        raise UserError(
            f"the {who} loader expected labels as class numbers of shape (N,), got {labels.dtype} {tuple(labels.shape)}"
        )
    labels = labels.long()
    if labels.device.type == "cpu" and len(labels):  # elsewhere the check would wait for the device
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= num_classes:
            raise UserError(
                f"the {who} loader expected labels from 0 to {num_classes - 1}, as the network has {num_classes} "
                f"outputs, got {low if low < 0 else high}"
            )
    return labels


# --- what the engine reads --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class UserTraining:
    """A user's training loader.

    Attributes:
        loader: Yields batches; has a length.
        unpack: Batch -> inputs and labels.
        num_classes: C.
    """

    loader: Iterable[Any]
    unpack: Unpack
    num_classes: int

    def __len__(self) -> int:
        return len(cast("Sized", self.loader))

    def stream(self, seed: int, device: torch.device) -> UserStream:
        """Return the batches of a run with a seed."""
        return UserStream(self, seed, device)


@dataclass(frozen=True, eq=False)
class UserStream:
    """Batches of a user's loader.

    An epoch is a function of (seed, epoch), see `read`. So shuffling and augmentation repeat, and a run resumes in
    mid-epoch by passing over what it has seen; that costs the loading of it.

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
        """Yield the batches of an epoch, from `start_step` on.

        Raises:
            UserError: The loader has fewer batches than its length says, or a batch is no pair of inputs and labels.
        """
        loader, unpack = self.training.loader, self.training.unpack
        for part in (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)):
            if callable(set_epoch := getattr(part, "set_epoch", None)):
                set_epoch(epoch)
        whole = read(loader, key(self.seed, epoch, "loader") % 2**63)
        seen = 0
        for step in range(self.steps_per_epoch):
            if (batch := next(whole, _END)) is _END:
                raise UserError(
                    f"the training loader expected {self.steps_per_epoch} batches, as its length says, got {step}"
                )
            inputs, labels = _unpacked(batch, unpack, "training")
            places = torch.arange(seen, seen := seen + len(inputs))
            if step >= start_step:
                labels = _checked(labels, "training", self.training.num_classes, soft=True)
                yield Batch(inputs.to(self.device), labels.to(self.device), places, step)


@dataclass(frozen=True, eq=False)
class UserSamples:
    """A user's loader for validation or testing.

    Attributes:
        loader: Yields batches, the same in each pass.
        unpack: Batch -> inputs and labels.
        labels: int64 `(N,)` on the CPU, of the first pass.
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

    def batches(self, size: int, first: int = 0, every: int = 1) -> Iterator[Tensor]:
        """Yield the inputs as the loader has them, whatever `size` is; the loader makes all batches.

        Raises:
            UserError: The labels are not those of the first pass: the loader shuffles in a way that `read` cannot see.
        """
        seen = 0
        for number, batch in enumerate(read(self.loader, _HELD_OUT)):
            inputs, labels = _unpacked(batch, self.unpack, self.who)
            if not torch.equal(labels.cpu().long(), self.labels[seen : seen + len(labels)]):
                raise UserError(
                    f"the {self.who} loader expected the same order in each pass, got another; do not shuffle it"
                )
            seen += len(labels)
            if number >= first and (number - first) % every == 0:
                yield inputs.to(self.device)
        if seen != len(self):
            raise UserError(f"the {self.who} loader expected {len(self)} samples in each pass, got {seen}")


def user_data(
    train: Iterable[Any],
    validation: Iterable[Any] | None,
    test: Iterable[Any] | None,
    *,
    unpack: Unpack,
    num_classes: int,
    device: torch.device,
    attacked: bool = False,
) -> DataBundle:
    """Wrap a user's loaders as a data set. Validation and test loaders are read once, for their labels.

    Args:
        train: Yields batches; has a length.
        validation: The same without need of a length, or None.
        test: As `validation`.
        unpack: Batch -> inputs and labels.
        num_classes: C, the network's outputs.
        device: Where batches are moved.
        attacked: Whether inputs are to be pixels in [0, 1]. Of the training loader the first batch is looked at.

    Raises:
        UserError: A loader has no batches, the training loader no length, labels are no class numbers below C, or
            attacked pixels are not in [0, 1].
    """
    inputs, labels = _first_batch(train, unpack)
    labels = _checked(labels, "training", num_classes, soft=True)
    if attacked:
        _check_pixels(inputs, "training")
    parts = [
        _samples(loader, unpack, num_classes, device, who, attacked=attacked)
        for who, loader in (("validation", validation), ("test", test))
    ]
    shape = tuple(inputs.shape[1:])
    digest = hashlib.sha256(f"{len(cast('Sized', train))} {shape}".encode())
    for each in (labels, *(part.labels for part in parts)):
        digest.update(f"{tuple(each.shape)} ".encode() + each.cpu().numpy().tobytes())
    return DataBundle(
        name="custom",
        train=UserTraining(train, unpack, num_classes),
        validation=parts[0],
        test=parts[1],
        num_classes=num_classes,
        image_shape=shape,
        class_counts=torch.empty(0, dtype=torch.int64),
        fingerprint=digest.hexdigest(),
        device=device,
    )


def _samples(
    loader: Iterable[Any] | None, unpack: Unpack, num_classes: int, device: torch.device, who: str, *, attacked: bool
) -> UserSamples:
    if loader is None:
        return UserSamples((), unpack, torch.empty(0, dtype=torch.int64), device, who)
    if isinstance(loader, Iterator):
        raise UserError(f"the {who} loader expected to be read many times, got the iterator {type(loader).__name__}")
    seen = []
    for batch in read(loader, _HELD_OUT):
        inputs, labels = _unpacked(batch, unpack, who)
        seen.append(_checked(labels, who, num_classes).cpu())
        if attacked:
            _check_pixels(inputs, who)
    if not seen:
        raise UserError(f"the {who} loader expected at least one batch, got none")
    return UserSamples(loader, unpack, torch.cat(seen), device, who)


def _check_pixels(inputs: Tensor, who: str) -> None:
    """Raise UserError for inputs outside of [0, 1]: before the training, not at the first attack after hours of it."""
    low, high = (float(bound) for bound in inputs.aminmax())
    if not (low >= 0 and high <= 1):  # NaN too
        raise UserError(
            f"the {who} loader expected pixels in [0, 1], which attacks keep them in, got {low:.4g} to {high:.4g}; "
            "move the normalisation into the network"
        )
