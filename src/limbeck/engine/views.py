"""What the runs of one seed have in common, kept in memory: the batches they see, and what the teachers say of them.

In a comparison every row sees the same views, so all runs of a seed but the first are spared the draws, the
augmentation and the teachers' forward passes. The tensors are those of the first run: results are the same to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from limbeck.data import AugMixed, PairSource, Source, open_stream
from limbeck.engine import ranks

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from limbeck.config import Recipe
    from limbeck.data import Batch, DataBundle, Stream

KEPT_BYTES = 256 * 2**20  # of batches, in each process; those that find no room are made anew for each run


@dataclass(frozen=True, eq=False)
class PlacedStream:
    """A stream whose batches lie as the networks want them.

    Attributes:
        stream: Makes the batches.
        device: Where the places of the samples go too, which the draws leave on the CPU; nobody waits for them.
        channels_last: Memory format of the images.
    """

    stream: Stream
    device: torch.device
    channels_last: bool

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return self.stream.steps_per_epoch

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from a step on."""
        for batch in self.stream.batches(epoch, start_step):
            indices = batch.indices.to(self.device, non_blocking=True)
            views = tuple(map(self._laid_out, batch.views))
            yield replace(batch, images=self._laid_out(batch.images), indices=indices, views=views)

    def _laid_out(self, images: Tensor) -> Tensor:
        wanted = self.channels_last and images.dim() == 4
        return images.contiguous(memory_format=torch.channels_last) if wanted else images


@dataclass(eq=False)
class KeptStream:
    """A stream whose batches are kept once they are made, as far as the room reaches.

    Attributes:
        stream: Makes the batches.
        room: Bytes that are left for more of them.
    """

    stream: Stream
    room: int
    _kept: dict[tuple[int, int], Batch] = field(default_factory=dict)

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return self.stream.steps_per_epoch

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from a step on, those that are kept as the same objects."""
        step = start_step
        while (epoch, step) in self._kept:
            yield self._kept[epoch, step]
            step += 1
        if step == self.steps_per_epoch:
            return
        for batch in self.stream.batches(epoch, step):
            size = sum(tensor.nbytes for tensor in (batch.images, batch.labels, batch.indices, *batch.views))
            if size <= self.room:
                self._kept[epoch, batch.step] = batch
                self.room -= size
            yield batch


class RememberingTeacher(nn.Module):
    """A frozen teacher that does not compute its logits twice for one tensor of images, as long as that exists.

    Args:
        teacher: The network, in eval mode.
    """

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.teacher = teacher
        self._said = WeakIdKeyDictionary()

    def forward(self, images: Tensor, *others: Tensor) -> Any:
        """Return the logits `(N, C)` of the images; of pairs, whose tokens belong to the images, both features."""
        if images not in self._said:
            self._said[images] = self.teacher(images, *others)
        return self._said[images]

    def through(self, network: nn.Module) -> RememberingTeacher:
        """Return a teacher of the same memory that asks another network, such as this one compiled."""
        other = RememberingTeacher(network)
        other._said = self._said
        return other


def without_memory(teacher: nn.Module) -> nn.Module:
    """Return the network itself, whose layers can be looked at, since those of remembered logits never run."""
    return teacher.teacher if isinstance(teacher, RememberingTeacher) else teacher


class ViewStore:
    """The training batches of one seed at a time: a run that sees others takes their place.

    Args:
        room: Bytes that the batches may take.
    """

    def __init__(self, room: int = KEPT_BYTES) -> None:
        self._room = room
        self._key: Hashable = None
        self._stream: Stream | None = None

    def stream(self, recipe: Recipe, data: DataBundle) -> Stream:
        """Return the training batches of a run, shared with the run before where nothing they depend on differs.

        Threads and precision count too: the teachers' logits hang on the batches.
        """
        if not isinstance(data.train, Source | PairSource | AugMixed):
            return open_run_stream(recipe, data)  # views of files are too large; a user's loader keeps what it wants
        train = recipe.train
        teaching = (train.teacher_precision, train.teacher_compile)
        arithmetic = (train.threads, train.precision, train.channels_last, train.accumulate, teaching)
        order = (recipe.seed, train.batch_size, train.drop_last, recipe.data.repeats)
        views = (recipe.data.augment, recipe.data.second_view, recipe.data.augmix)
        key = (data.fingerprint, data.device, views, order, arithmetic)
        if self._stream is None or key != self._key:
            self._key, self._stream = key, KeptStream(open_run_stream(recipe, data), self._room)
        return self._stream


def open_run_stream(recipe: Recipe, data: DataBundle) -> Stream:
    """Return the training batches of a run."""
    train = recipe.train
    stream = open_stream(
        data,
        recipe.data.augment,
        batch_size=train.batch_size,
        drop_last=train.drop_last,
        seed=recipe.seed,
        second_view=recipe.data.second_view,
        repeats=recipe.data.repeats,
        rank=ranks.here().rank,
        world=ranks.here().world,
    )
    return PlacedStream(stream, data.device, train.channels_last)
