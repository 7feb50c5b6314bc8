"""AutoAugment's policy of CIFAR-10, with a sub-policy for each image (Cubuk et al. 2019, arXiv 1805.09501)."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.data.image_ops import IDENTITY, apply_operations, codes_of
from limbeck.draws import integers, uniform

_Step = tuple[str, float, int]  # operation, probability, level of 0 to 9; the level of auto_contrast & co. says nothing

# The 25 sub-policies of the paper's appendix, as DeepVoltaire/AutoAugment, GKL's code and torchvision have them.
# Old copies of the first have probability 0.8 in the second step of the 17th. The authors' release
# (tensorflow/models, research/autoaugment) has all but the 16th to the 20th, among 95.
POLICY: tuple[tuple[_Step, _Step], ...] = (
    (("invert", 0.1, 7), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("auto_contrast", 0.5, 8), ("equalize", 0.9, 2)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("colour", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 5), ("equalize", 0.5, 1)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("colour", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, 7), ("auto_contrast", 0.4, 8)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("colour", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 3)),
    (("equalize", 0.2, 0), ("auto_contrast", 0.6, 0)),
    (("equalize", 0.2, 8), ("equalize", 0.6, 4)),
    (("colour", 0.9, 9), ("equalize", 0.6, 6)),
    (("auto_contrast", 0.8, 4), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("colour", 0.7, 0)),
    (("solarize", 0.4, 5), ("auto_contrast", 0.9, 3)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("auto_contrast", 0.9, 2), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 8), ("invert", 0.1, 3)),
    (("translate_y", 0.7, 9), ("auto_contrast", 0.9, 1)),
)
LEVELS = 9  # strongest level
_CODES = torch.stack([codes_of([name for name, _, _ in steps]) for steps in POLICY])
_PROBABILITIES = torch.tensor([[probability for _, probability, _ in steps] for steps in POLICY], dtype=torch.float64)
_STRENGTHS = torch.tensor([[level / LEVELS for _, _, level in steps] for steps in POLICY], dtype=torch.float64)


def auto_augment(images: Tensor, *, seed: int, epoch: int, indices: Tensor) -> Tensor:
    """Apply one of the 25 sub-policies to each image; the view of a sample is a function of (seed, epoch, index).

    Each of a sub-policy's two steps has a probability of its own. Shears, translations, rotations, contrast, colour,
    brightness and sharpness go either way with probability 1/2. Geometry takes the nearest pixel and fills with 128.

    Args:
        images: uint8 `(N, C, H, W)` with all 256 levels in use, C 1 or 3.
        seed: Seed of the run.
        epoch: Epoch.
        indices: The samples' positions in the source, int64 `(N,)`.

    Returns:
        uint8 `(N, C, H, W)`. The input is never written to.

    Raises:
        TypeError: `images` are not uint8, or `indices` not int64 of one dimension.
        ValueError: `images` have neither one nor three channels.

    Example:
        >>> images, indices = torch.arange(12, dtype=torch.uint8).view(3, 1, 2, 2), torch.arange(3)
        >>> views = auto_augment(images, seed=0, epoch=1, indices=indices)
        >>> torch.equal(views[2:], auto_augment(images[2:], seed=0, epoch=1, indices=indices[2:]))
        True
    """
    indices = indices.cpu()
    chosen = integers(seed, epoch, indices, "auto_augment policy", len(POLICY))
    applied = uniform(seed, epoch, indices, "auto_augment apply", (2,)) < _PROBABILITIES[chosen]
    negative = integers(seed, epoch, indices, "auto_augment sign", 2, (2,)).bool()
    codes = _CODES[chosen].masked_fill_(~applied, IDENTITY)
    for step in range(2):
        images = apply_operations(images, codes[:, step], _STRENGTHS[chosen, step], negative[:, step])
    return images
