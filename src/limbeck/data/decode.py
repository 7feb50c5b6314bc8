"""Images from files, as bytes: Pillow decodes and cuts. What is drawn is drawn for many images at once.

Test views are resized by Pillow, random parts by torch, whose kernel for bytes takes two thirds of the time and differs
from Pillow by one level at most.

Images become RGB as torchvision's loader makes them: grey levels are repeated, palettes looked up, CMYK converted, and
an orientation in EXIF is not followed, so that published figures can be measured again.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import torch
from torch.nn import functional as F

from limbeck.data.resized_crop import draw_boxes_in
from limbeck.draws import integers
from limbeck.errors import UserError, missing_extra, reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from PIL.Image import Image
    from torch import Tensor

    from limbeck.config import AugmentOptions
    from limbeck.data.image_files import ImageFiles

CHANNELS = 3


@dataclass(frozen=True)
class MiddleView:
    """The shorter side resized, then the middle: torchvision's Resize and CenterCrop, bilinear with antialiasing.

    Attributes:
        resize: Shorter side in pixels.
        size: Side of the square in the middle, at most `resize`.
    """

    resize: int
    size: int

    def of(self, image: Image) -> Image:
        """Return the view of an image."""
        from PIL.Image import Resampling

        shorter, longer = sorted(image.size)
        longer = int(self.resize * longer / shorter)  # the fraction is cut off, as there
        sides = (self.resize, longer) if image.width <= image.height else (longer, self.resize)
        if sides != image.size:
            image = image.resize(sides, Resampling.BILINEAR)
        left, top = (round((side - self.size) / 2) for side in sides)
        return image.crop((left, top, left + self.size, top + self.size))


def middle_views(files: ImageFiles, places: Tensor, view: MiddleView) -> Tensor:
    """Return the test views of files, uint8 `(N, H, W, 3)`.

    Args:
        files: The files.
        places: Which of them, int64 `(N,)`.
        view: What is seen.

    Raises:
        UserError: A file is missing or no image, or Pillow is not installed.
    """
    return _stacked((view.of(rgb(*opened)) for opened in _open(files, places)), len(places), view.size)


@dataclass(frozen=True)
class Crop:
    """What is done to a training image while it is decoded; all draws are functions of (seed, epoch, key).

    Attributes:
        options: `resized_crop`, and `flip` where nothing is padded, are read; the rest of them acts on whole batches.
        view: What is cut out where no part is drawn, and the size.
        seed: Seed of the run.
        epoch: Epoch.
    """

    options: AugmentOptions
    view: MiddleView
    seed: int
    epoch: int

    def draw(self, sizes: Tensor, keys: Tensor) -> Callable[[Image, int], Tensor]:
        """Draw for all images at once; return what makes the view of an image, uint8 `(H, W, 3)`, by its position.

        Args:
            sizes: Height and width of each, int64 `(N, 2)`.
            keys: What the draws of each are keyed by, int64 `(N,)`.
        """
        boxes, flips = [], [0] * len(keys)
        if shares := self.options.resized_crop:
            boxes = draw_boxes_in(sizes, shares, seed=self.seed, epoch=self.epoch, indices=keys).tolist()
        if flips_here(self.options):
            flips = integers(self.seed, self.epoch, keys, "flip", 2).tolist()

        def make(image: Image, position: int) -> Tensor:
            if not boxes:
                view = _bytes(self.view.of(image))
            else:
                top, left, height, width = boxes[position]
                view = _resized(_bytes(image.crop((left, top, left + width, top + height))), self.view.size)
            return view.flip(1) if flips[position] else view

        return make


def flips_here(options: AugmentOptions) -> bool:
    """Whether images are flipped as they are decoded: where crops are padded, one pass over the batch does both."""
    return options.flip and not options.crop_padding


def train_views(files: ImageFiles, places: Tensor, keys: Tensor, crops: tuple[Crop, ...]) -> tuple[Tensor, ...]:
    """Return one or two views of files, each uint8 `(N, H, W, 3)`; each file is decoded once.

    Args:
        files: The files.
        places: Which of them, int64 `(N,)`.
        keys: What the draws of each are keyed by, int64 `(N,)`.
        crops: What is done, one for each view.

    Raises:
        UserError: A file is missing or no image, or Pillow is not installed.
    """
    return views_of(list(_open(files, places)), keys, crops)


def views_of(opened: list[tuple[Image, str]], keys: Tensor, crops: tuple[Crop, ...]) -> tuple[Tensor, ...]:
    """Return one or two views of images, as `train_views` does.

    Args:
        opened: Images of which the first bytes are read, and what they are called; it is empty afterwards.
        keys: See `train_views`.
        crops: See `train_views`.

    Raises:
        UserError: An image is damaged.
    """
    sizes = torch.tensor([(image.height, image.width) for image, _ in opened]).view(-1, 2)
    makers = [crop.draw(sizes, keys) for crop in crops]
    outputs = [_empty(len(opened), crop.view.size) for crop in crops]
    for position in range(len(keys)):
        whole = rgb(*opened.pop(0))  # kept no longer, so that the next one is decoded to memory that is at hand
        for make, output in zip(makers, outputs, strict=True):
            output[position] = make(whole, position)
    return tuple(outputs)


def _open(files: ImageFiles, places: Tensor) -> Iterable[tuple[Image, str]]:
    """Yield images of which the first bytes are read, and their paths."""
    for place in places.tolist():
        path = files.path(place)
        yield open_image(path, path), path


def open_image(source: str | BinaryIO, name: str) -> Image:
    """Return an image of which the first bytes are read.

    Args:
        source: Path or content of a file.
        name: What it is called.

    Raises:
        UserError: It is missing, no image or one of too many pixels, or Pillow is not installed.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise missing_extra("pillow", "images", "reading images from files") from error
    try:
        return Image.open(source)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _broken(name, error) from error


def rgb(image: Image, path: str) -> Image:
    """Return an image decoded, in RGB.

    Raises:
        UserError: It is damaged.
    """
    try:
        image.load()
        return image if image.mode == "RGB" else image.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, zlib.error, struct.error) as error:
        raise _broken(path, error) from error


def _broken(path: str, error: Exception) -> UserError:
    """Return the error of a file that is no image, or a damaged one."""
    words = "no image that Pillow knows" if type(error).__name__ == "UnidentifiedImageError" else reason(error)
    return UserError(f"{path} cannot be decoded ({words}); put a whole file in its place, or delete it for a new run")


def _empty(count: int, size: int) -> Tensor:
    return torch.empty(count, size, size, CHANNELS, dtype=torch.uint8)


def _bytes(image: Image) -> Tensor:
    """Return an RGB image, uint8 `(H, W, 3)`."""
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, CHANNELS)


def _resized(image: Tensor, size: int) -> Tensor:
    """Return an image `(H, W, 3)` as a square, bilinear with antialiasing."""
    planes = image.permute(2, 0, 1).unsqueeze(0)
    square = F.interpolate(planes, (size, size), mode="bilinear", align_corners=False, antialias=True)
    return square.squeeze(0).permute(1, 2, 0)


def _stacked(images: Iterable[Image], count: int, size: int) -> Tensor:
    stacked = _empty(count, size)
    for position, image in enumerate(images):
        stacked[position] = _bytes(image)
    return stacked
