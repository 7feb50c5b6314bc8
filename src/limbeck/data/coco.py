"""Images with boxes in files as COCO has them: a folder of images, and one JSON file of all annotations."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch.nn import functional as F

from limbeck.data.boxes import Objects, mirrored, refuse_other_views
from limbeck.data.decode import open_image, rgb
from limbeck.data.decoding import in_order, share_of_cores
from limbeck.data.loader import Batch, Epochs
from limbeck.data.sources import DataBundle, Pixels, standardise
from limbeck.data.stored_sets import IMAGENET
from limbeck.data_files import data_folder
from limbeck.draws import integers, permutation
from limbeck.errors import UserError, reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from limbeck.config import DataOptions
    from limbeck.data.loader import Portion
    from limbeck.data.sources import Samples
    from limbeck.data.streams import Order

DIVISOR = 32  # sides are padded to a multiple of the coarsest stride


class CocoFiles(NamedTuple):
    """What an annotation file says of a folder of images. N is the number of images.

    Attributes:
        folder: Of the images.
        names: File names, by image.
        sizes: int64 `(N, 2)`: heights and widths.
        boxes: float32 `(N, M, 5)`: class, x0, y0, x1, y1, first rows first; class -1 for no object. Crowds are not
            among them.
        objects: All boxes, crowds too.
        categories: Names of the classes, in the order of their ids in the file.
        fingerprint: SHA-256 of the file.
    """

    folder: str
    names: tuple[str, ...]
    sizes: Tensor
    boxes: Tensor
    objects: Objects
    categories: tuple[str, ...]
    fingerprint: str


def read_annotations(path: Path, folder: Path) -> CocoFiles:
    """Return the images, in the order of their ids, and boxes of an annotation file; category ids become 0, 1, ...

    Raises:
        UserError: The file or the folder is missing, or the file is none of COCO's.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: expected a folder of images; name it in `data.coco`, below `data.folder`")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: expected annotations as COCO writes them; {reason(error)}") from error
    try:
        parsed = json.loads(content)
        images = sorted(parsed["images"], key=lambda image: image["id"])
        categories = sorted(parsed["categories"], key=lambda category: category["id"])
        number = {category["id"]: place for place, category in enumerate(categories)}
        place = {image["id"]: index for index, image in enumerate(images)}
        rows = [
            (place[each["image_id"]], number[each["category_id"]], *map(float, each["bbox"]), each.get("iscrowd", 0))
            for each in parsed["annotations"]
        ]
        sizes = torch.tensor([[image["height"], image["width"]] for image in images]).view(-1, 2)
        names = tuple(image["file_name"] for image in images)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: expected images, categories and annotations as COCO writes them, got none ({error!r})"
        ) from error
    objects = _objects(rows)
    named = tuple(str(category.get("name", category["id"])) for category in categories)
    digest = hashlib.sha256(content).hexdigest()
    return CocoFiles(str(folder), names, sizes, _by_image(objects, len(names)), objects, named, digest)


def _objects(rows: Sequence[tuple[Any, ...]]) -> Objects:
    """Return rows of image, class, x, y, width, height and crowd as boxes by their corners."""
    table = torch.tensor(rows, dtype=torch.float64).view(-1, 7)
    boxes = torch.cat([table[:, 2:4], table[:, 2:4] + table[:, 4:6]], dim=1)
    order = table[:, 0].argsort(stable=True)
    return Objects(table[order, 0].long(), table[order, 1].long(), boxes[order], table[order, 6] > 0)


def _by_image(objects: Objects, count: int) -> Tensor:
    """Return the boxes that can be learned from, `(N, M, 5)`, M at least 1."""
    good = ~objects.crowd & (objects.boxes[:, 2:] > objects.boxes[:, :2]).all(dim=1)
    images = objects.images[good]
    rows = torch.cat([objects.classes[good].unsqueeze(1), objects.boxes[good]], dim=1).float()
    many = images.bincount(minlength=count)
    place = torch.arange(len(images)) - (many.cumsum(0) - many)[images]
    padded = torch.zeros(count, max(1, int(many.max()) if count else 0), 5)
    padded[..., 0] = -1
    padded[images, place] = rows
    return padded


@dataclass(frozen=True, eq=False)
class CocoSource:
    """A part of the images, decoded when a batch needs them.

    Attributes:
        files: All of a folder.
        places: Which of them, int64 `(P,)`.
        shorter: Shorter sides, one of which is drawn in training; the last is that of testing.
        longer: The longer side's limit.
        pixels: What the images' numbers stand for.
        workers: Processes that decode.
        device: Where batches are moved.
    """

    files: CocoFiles
    places: Tensor
    shorter: tuple[int, ...]
    longer: int
    pixels: Pixels
    workers: int
    device: torch.device

    def __len__(self) -> int:
        return len(self.places)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """A square image of the test images' shorter side; images have many shapes."""
        return (3, self.shorter[-1], self.shorter[-1])

    @property
    def objects(self) -> Objects:
        """The true boxes of the part, in the pixels of the files."""
        number = torch.full((len(self.files.names),), -1)
        number[self.places] = torch.arange(len(self.places))
        images = number[self.files.objects.images]
        mine = images >= 0
        return Objects(images[mine], *(field[mine] for field in self.files.objects[1:]))

    @property
    def scales(self) -> Tensor:
        """What sides are multiplied by in testing, `(P,)`."""
        return self.scale(self.places, torch.full((len(self.places),), self.shorter[-1]))

    def scale(self, places: Tensor, shorter: Tensor) -> Tensor:
        """Return what the sides of images are multiplied by, so that the shorter one becomes `shorter`, float64."""
        sizes = self.files.sizes[places].double()
        return torch.minimum(shorter / sizes.amin(dim=1), self.longer / sizes.amax(dim=1))

    def to(self, device: torch.device) -> CocoSource:
        """Return the same part for a device; images stay in their files."""
        return replace(self, device=device)

    def order(self, seed: int, epoch: int, *, batch_size: int, steps: int) -> Tensor:
        """Return the indices of an epoch's batches, each once, in an order of (seed, epoch)."""
        return permutation(seed, epoch, len(self))

    def open(self, order: Order) -> CocoStream:
        """Return the batches that a run asks for.

        Raises:
            UserError: Images are to be augmented otherwise than by flipping.
        """
        refuse_other_views(order)
        return CocoStream(self, order)

    def seen(self, size: int, first: int = 0, every: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalised, padded test images and their sizes; every so many batches, from `first` on."""
        scales = self.scales
        batches = torch.split(torch.arange(len(self)), size)[first::every] if len(self) else ()
        asked = [_Asked(self.places[batch], scales[batch]) for batch in batches]
        yield from zip(self.decoded(asked), (self.sizes(each).to(self.device) for each in asked), strict=True)

    def pictures(self, count: int) -> Tensor:
        """Return the first test images, padded to one size."""
        asked = _Asked(self.places[:count], self.scales[:count])
        return _Decoder(self, [asked]).make(0, 0)[0].permute(0, 3, 1, 2)

    def sizes(self, asked: _Asked) -> Tensor:
        """Return the heights and widths of images after they are resized, int64 `(B, 2)`."""
        return (self.files.sizes[asked.places] * asked.scales.unsqueeze(1)).round().long().clamp(min=1)

    def decoded(self, asked: Sequence[_Asked]) -> Iterator[Tensor]:
        """Yield normalised, padded images; what is padded is 0 after normalisation."""
        pieces = _Decoder(self, list(asked))
        made = in_order(pieces, range(len(asked)), workers=self.workers, device=self.device)
        for images, inside in made:
            yield standardise(images, self.pixels) * inside


class _Asked(NamedTuple):
    """Images of a batch: their places among all files, and what their sides are multiplied by."""

    places: Tensor
    scales: Tensor


@dataclass(frozen=True, eq=False)
class _Decoder:
    """Makes the images of a batch in any process: padded at the right and below to one size."""

    source: CocoSource
    asked: list[_Asked]

    @property
    def parts(self) -> int:
        """One piece for each batch, whose images have one size."""
        return 1

    def make(self, step: int, part: int) -> tuple[Tensor, ...]:
        """Return the images, uint8 `(B, H, W, 3)`, and which pixels are theirs, `(B, H, W, 1)`."""
        asked, files = self.asked[step], self.source.files
        sizes = self.source.sizes(asked)
        height, width = (-(-int(side) // DIVISOR) * DIVISOR for side in sizes.amax(dim=0))
        images = torch.zeros(len(sizes), height, width, 3, dtype=torch.uint8)
        inside = torch.zeros(len(sizes), height, width, 1, dtype=torch.uint8)
        for row, (place, size) in enumerate(zip(asked.places.tolist(), sizes.tolist(), strict=True)):
            tall, wide = size
            images[row, :tall, :wide] = _resized(files, place, (tall, wide))
            inside[row, :tall, :wide] = 1
        return images, inside


def _resized(files: CocoFiles, place: int, size: tuple[int, int]) -> Tensor:
    """Return an image of a file, uint8 `(H, W, 3)`."""
    path = str(Path(files.folder) / files.names[place])
    image = rgb(open_image(path, path), path)
    height, width = files.sizes[place].tolist()
    if image.size != (width, height):
        raise UserError(
            f"{path}: expected {width} x {height} pixels, as the annotations say, got {image.width} x {image.height}"
        )
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(height, width, 3)
    resized = F.interpolate(pixels.permute(2, 0, 1).unsqueeze(0), size, mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0)


@dataclass(frozen=True, eq=False)
class CocoStream:
    """Batches of images from files; order, sides and flips are functions of (seed, epoch, sample).

    Attributes:
        source: The training part.
        order: What the run asks for.
    """

    source: CocoSource
    order: Order

    @property
    def _epochs(self) -> Epochs:
        return self.order.epochs(len(self.source))

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return self._epochs.steps

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield flipped, normalised, padded images, their boxes, and their sizes as the first view."""
        source = self.source
        portions = list(self._epochs.portions(source, epoch, start_step))
        asked = [self._asked(portion, epoch) for portion in portions]
        for portion, each, images in zip(portions, asked, source.decoded(asked), strict=True):
            yield self._batch(portion, each, images, epoch)

    def _asked(self, portion: Portion, epoch: int) -> _Asked:
        source, sides = self.source, torch.tensor(self.source.shorter)
        drawn = sides[integers(self.order.seed, epoch, portion.indices, "shorter side", len(sides))]
        places = source.places[portion.indices]
        return _Asked(places, source.scale(places, drawn))

    def _batch(self, portion: Portion, asked: _Asked, images: Tensor, epoch: int) -> Batch:
        source = self.source
        sizes, boxes = source.sizes(asked), source.files.boxes[asked.places]
        boxes = boxes[:, : max(1, int((boxes[..., 0] >= 0).sum(dim=1).max()))]
        boxes = torch.cat([boxes[..., :1], boxes[..., 1:] * asked.scales.view(-1, 1, 1).float()], dim=-1)
        if self.order.augment.flip:
            flipped = integers(self.order.seed, epoch, portion.indices, "flip", 2).bool()
            boxes = torch.where(flipped.view(-1, 1, 1), mirrored(boxes, sizes[:, 1:]), boxes)
            images = _flipped(images, flipped, sizes)
        device = images.device
        return Batch(images, boxes.to(device), portion.indices, portion.step, (sizes.to(device),), portion.whole)


def _flipped(images: Tensor, flipped: Tensor, sizes: Tensor) -> Tensor:
    """Return images `(N, C, H, W)` of which some are mirrored within their own widths, what is padded left in place."""
    columns = torch.arange(images.shape[3]).expand(len(images), -1)
    own = columns < sizes[:, 1:]
    columns = torch.where(flipped.unsqueeze(1) & own, sizes[:, 1:] - 1 - columns, columns).to(images.device)
    return images.gather(3, columns.view(len(images), 1, 1, -1).expand_as(images))


def open_coco(options: DataOptions, told: Callable[[str], None] = lambda line: None) -> DataBundle:
    """Return COCO's training images, those held out of them, and its validation images for testing.

    Args:
        options: `coco`, `folder`, `validation`, `split_seed`, `standardise` and `workers` are read.
        told: Called with a line before what takes long.

    Raises:
        UserError: Files are missing, or the two annotation files have other categories.
    """
    root, chosen = data_folder(options.folder), options.coco
    told(f"reading {root / chosen.train_annotations}")
    train = read_annotations(root / chosen.train_annotations, root / chosen.train_images)
    test = read_annotations(root / chosen.test_annotations, root / chosen.test_images)
    if train.categories != test.categories:
        raise UserError(
            f"{root / chosen.test_annotations}: expected the {len(train.categories)} categories of the training "
            f"images, got {len(test.categories)} others; name annotations that belong together in `data.coco`"
        )
    pixels = IMAGENET if options.standardise else IMAGENET._replace(mean=(0.0,) * 3, std=(1.0,) * 3)
    learned = (train.boxes[..., 0] >= 0).any(dim=1).nonzero().flatten()  # an image without an object teaches nothing
    order = learned[permutation(options.split_seed, 0, len(learned), "coco")]
    held = round(options.validation * len(order))
    workers = share_of_cores() if options.workers is None else options.workers

    def part(files: CocoFiles, places: Tensor) -> CocoSource:
        cpu = torch.device("cpu")
        return CocoSource(files, places, chosen.shorter, chosen.longer, pixels, workers, cpu)

    training = part(train, order[held:].sort().values)
    digest = hashlib.sha256(f"{train.fingerprint} {test.fingerprint} {chosen!r} {pixels!r} {held}".encode())
    return DataBundle(
        name=options.name,
        train=training,
        validation=cast("Samples", part(train, order[:held].sort().values)),
        test=cast("Samples", part(test, torch.arange(len(test.names)))),
        num_classes=len(train.categories),
        image_shape=training.image_shape,
        class_counts=torch.empty(0, dtype=torch.int64),
        fingerprint=digest.hexdigest(),
        device=torch.device("cpu"),
    )
