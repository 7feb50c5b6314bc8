"""Training images in shards: tar files that are read from beginning to end, for data sets too large for single files.

Which shards a stream of samples reads, and in which order, is a function of (seed, epoch, rank); so is how it shuffles.
Each rank has a fixed number of streams, which its processes share out among them.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import os
import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils.data import IterableDataset, get_worker_info

from limbeck.data.decode import CHANNELS, Crop, MiddleView, open_image, views_of
from limbeck.data.decoding import PIECE, ended, put_together, started
from limbeck.data.loader import Portion
from limbeck.data.sources import Pixels
from limbeck.data.stored import left_to_batches
from limbeck.data.words import Tokenizer
from limbeck.draws import key, permutation
from limbeck.errors import UserError, missing_extra, reason

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from limbeck.config import AugmentOptions
    from limbeck.data.loader import Epochs

BUFFER = 256  # samples, not decoded, that each stream draws the next one from
MOST_STREAMS = 16
IMAGES = ("jpg", "jpeg", "png", "webp")  # endings of a sample's image
SHOWN = 3


class Sample(NamedTuple):
    """A sample as a shard has it."""

    key: str
    image: bytes
    label: int | str


@dataclass(frozen=True, eq=False)
class ShardSource:
    """Training images in shards, of which neither the order nor the labels are known before they are read.

    Attributes:
        shards: Paths of the tar files.
        samples: What an epoch is long.
        num_classes: C.
        pixels: What the numbers stand for.
        view: Size of the images, and what is cut out where no part is drawn.
        workers: Processes that decode.
        device: Where images are moved.
        tokens_of: What makes tokens of captions, which samples then have in place of a class; None reads classes.
    """

    shards: tuple[str, ...]
    samples: int
    num_classes: int
    pixels: Pixels
    view: MiddleView
    workers: int
    device: torch.device
    tokens_of: Tokenizer | None = None

    def __len__(self) -> int:
        return self.samples

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image."""
        return CHANNELS, self.view.size, self.view.size

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the names and sizes of the shards, of the length of an epoch, and of how images are seen."""
        files = [(os.path.basename(shard), os.stat(shard).st_size) for shard in self.shards]
        said = f"{files} {self.samples} {tuple(self.pixels)} {tuple(vars(self.view).values())}"
        return hashlib.sha256(said.encode()).hexdigest()

    def to(self, device: torch.device) -> ShardSource:
        """Return the same source for images on a device."""
        return replace(self, device=device)

    def order(self, seed: int, epoch: int, *, batch_size: int, steps: int) -> Tensor:
        """Raise UserError: what a shard holds shows when it is read."""
        raise UserError("images in shards have no positions; name single files, without `data.shards`")

    def left(self, options: AugmentOptions) -> AugmentOptions:
        """Return which augmentations are left to do when images are read."""
        return left_to_batches(options)

    def read(
        self, epochs: Epochs, epoch: int, start_step: int, views: Sequence[tuple[AugmentOptions, int]]
    ) -> Iterator[tuple[Portion, Tensor, list[Tensor]]]:
        """Yield the portions of an epoch from a step on, their labels, and their images, uint8, for each view.

        A portion's indices are hashes of the samples' keys. Images are mixed with others of the same rank.
        """
        first, last = (epochs.batch_size * (epochs.rank + more) // epochs.world for more in (0, 1))
        crops = tuple(Crop(options, self.view, seed, epoch) for options, seed in views)
        steps, own = range(start_step, epochs.steps), torch.arange(last - first)
        pieces = _ShardPieces(self, crops, epochs, epoch, last - first, start_step)
        made = started(pieces, workers=_halved(self.workers, pieces.streams), device=self.device)
        for step in steps:
            *images, labels, indices = zip(*(next(made) for _ in range(pieces.parts)), strict=True)
            partners = None
            if epochs.mixing:
                name = f"mix partners {step}" + (f" of rank {epochs.rank}" if epochs.rank else "")
                partners = permutation(epochs.seed, epoch, last - first, name)
            there = torch.cat(indices)
            portion = Portion(step, there, there, epochs.batch_size, own if epochs.mixing else None, partners)
            on_device = torch.cat(labels).to(self.device)
            yield portion, on_device, [put_together(parts, self.device) for parts in images]
        ended(made)


class _ShardPieces(IterableDataset["tuple[Tensor, ...] | UserError"]):
    """Pieces of a rank's batches in order; each process makes those of its number."""

    def __init__(
        self, source: ShardSource, crops: tuple[Crop, ...], epochs: Epochs, epoch: int, own: int, start_step: int
    ) -> None:
        self._shards, self._num_classes, self._tokens_of = source.shards, source.num_classes, source.tokens_of
        self._crops, self._epochs, self._epoch = crops, epochs, epoch
        self.parts = max(1, math.ceil(own / PIECE))
        self.streams = _halved(MOST_STREAMS, max(1, len(self._shards) // epochs.world))
        self._sizes = [len(part) for part in torch.arange(own).tensor_split(self.parts)]
        self._first, self._last = start_step * self.parts, epochs.steps * self.parts

    def __iter__(self) -> Iterator[tuple[Tensor, ...] | UserError]:
        process = get_worker_info()
        number, processes = (process.id, process.num_workers) if process else (0, 1)
        try:
            yield from self._pieces(self._first + number, processes)
        except UserError as error:  # handed over, since a raised one loses its one line
            yield error

    @property
    def _beside(self) -> str:
        """Ending of what a sample has beside its image."""
        return "cls" if self._tokens_of is None else "txt"

    def _pieces(self, first: int, processes: int) -> Iterator[tuple[Tensor, ...]]:
        """Yield every so many pieces from the first on: piece n is of stream n modulo their number."""
        mine = [stream for stream in range(self.streams) if (stream - first) % processes == 0]
        samples = {stream: self._samples(stream) for stream in mine}
        for stream in mine:
            before = range(stream, self._first, self.streams)
            passed = sum(self._sizes[piece % self.parts] for piece in before)
            next(itertools.islice(samples[stream], passed, passed), None)  # read and not decoded
        for piece in range(first, self._last, processes):
            yield self._made(list(itertools.islice(samples[piece % self.streams], self._sizes[piece % self.parts])))

    def _made(self, samples: Sequence[Sample]) -> tuple[Tensor, ...]:
        indices = torch.tensor([_index(sample.key) for sample in samples], dtype=torch.int64)
        opened = [(open_image(io.BytesIO(sample.image), sample.key), sample.key) for sample in samples]
        said: list[Any] = [sample.label for sample in samples]
        labels = torch.tensor(said, dtype=torch.int64) if self._tokens_of is None else self._tokens_of(said)
        return (*views_of(opened, indices, self._crops), labels, indices)

    def _samples(self, stream: int) -> Iterator[Sample]:
        """Yield the samples of a stream's shards, shuffled, for ever: each once before any comes again."""
        epochs, epoch = self._epochs, self._epoch
        place = epochs.rank * self.streams + stream
        draws = random.Random(key(epochs.seed, epoch, f"shards {place}"))
        for time in itertools.count():
            order = permutation(epochs.seed, epoch, len(self._shards), f"shards {time}").tolist()
            mine = [self._shards[shard] for shard in order[place :: epochs.world * self.streams]]
            read = _shuffled((sample for shard in mine for sample in self._shard(shard)), draws)
            first = next(read, None)
            if first is None:
                raise UserError(f"{', '.join(mine[:SHOWN])}: expected samples in shards, got none")
            yield first
            yield from read

    def _shard(self, path: str) -> Iterator[Sample]:
        for found in _tar(path):
            name = f"{path}: {found['__key__']}"
            image, beside = next((found[ending] for ending in IMAGES if ending in found), None), self._beside
            if image is None or beside not in found:
                raise UserError(
                    f"{name}: expected a sample with an image ({', '.join(IMAGES)}) and {beside}, its "
                    f"{'class' if beside == 'cls' else 'caption'}"
                )
            if beside == "txt":
                yield Sample(found["__key__"], image, found[beside].decode(errors="replace").strip())
                continue
            label = found["cls"].decode(errors="replace").strip()
            if not label.isdecimal() or int(label) >= self._num_classes:
                raise UserError(f"{name}: expected cls of 0 to {self._num_classes - 1}, got {label[:20]!r}")
            yield Sample(found["__key__"], image, int(label))


def _tar(path: str) -> Iterator[dict[str, Any]]:
    """Yield the samples of a tar file, the contents by their endings."""
    try:
        from webdataset.tariterators import group_by_keys, tar_file_expander
    except ModuleNotFoundError as error:
        raise missing_extra("webdataset", "shards", "reading shards") from error
    import tarfile

    try:
        with open(path, "rb") as stream:
            yield from group_by_keys(tar_file_expander([{"url": path, "stream": stream}]))
    except (OSError, ValueError, EOFError, tarfile.TarError) as error:
        raise UserError(f"{path} cannot be read as a shard ({reason(error)}); put a whole one in its place") from error


def _shuffled(samples: Iterator[Sample], draws: random.Random) -> Iterator[Sample]:
    buffer: list[Sample] = []
    for sample in samples:
        if len(buffer) < BUFFER:
            buffer.append(sample)
            continue
        place = draws.randrange(BUFFER)
        yield buffer[place]
        buffer[place] = sample
    draws.shuffle(buffer)
    yield from buffer


def _index(name: str) -> int:
    """Return the number that a sample's draws are keyed by: a hash of its key, 63 bits."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 1


def _halved(most: int, limit: int) -> int:
    """Return the largest power of two that neither exceeds; 0 for 0."""
    return 2 ** (min(most, limit).bit_length() - 1) if min(most, limit) else 0


def find_shards(pattern: str) -> tuple[str, ...]:
    """Return the paths that a pattern such as `train-{0000..0146}.tar` stands for.

    Raises:
        UserError: Some are not there, or the package that reads them is not installed.
    """
    try:
        from webdataset.shardlists import expand_urls
    except ModuleNotFoundError as error:
        raise missing_extra("webdataset", "shards", "reading shards") from error
    shards = tuple(os.path.expanduser(path) for path in expand_urls(pattern))
    if absent := [shard for shard in shards if not os.path.isfile(shard)]:
        more = f" and {len(absent) - SHOWN:,} more" if len(absent) > SHOWN else ""
        raise UserError(
            f"`data.shards` expected tar files, as train-{{0000..0146}}.tar, got none at "
            f"{', '.join(absent[:SHOWN])}{more}"
        )
    return shards
