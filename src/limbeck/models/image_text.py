"""Small networks of two towers, for images and for their captions, that meet in one space."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

PADDING = 0  # the token behind the end of a caption
VOCABULARY = 16384  # tokens that the small networks know
LONGEST = 77  # tokens of a caption, as in CLIP
LARGEST_SCALE = 100.0  # CLIP clips its learned scale here
# Where scale and bias start: of CLIP, a temperature of 0.07; of SigLIP, so that most pairs count as strangers.
SOFTMAX_START, SIGMOID_START = (1 / 0.07, 0.0), (10.0, -10.0)


class Towers(NamedTuple):
    """What a network of two towers makes of pairs.

    Attributes:
        images: `(N, D)`, of unit length.
        texts: `(N, D)`, of unit length.
        scale: 0-d; what a similarity is multiplied by.
        bias: 0-d; what is added to it.
    """

    images: Tensor
    texts: Tensor
    scale: Tensor
    bias: Tensor


class ImageTextNetwork(nn.Module):
    """What an objective of images and texts asks of its networks, ours or a library's.

    Attributes:
        vocabulary: Tokens are below it.
        longest: Tokens that a caption may have.
        logit_scale: Logarithm of the learned scale.
        logit_bias: Learned, or a buffer of 0.
    """

    vocabulary: int
    longest: int
    logit_scale: Tensor
    logit_bias: Tensor

    @abstractmethod
    def encode_images(self, images: Tensor) -> Tensor:
        """Return features `(N, D)` of unit length of images `(N, C, H, W)`, standardised as the data are."""

    @abstractmethod
    def encode_texts(self, tokens: Tensor) -> Tensor:
        """Return features `(N, D)` of unit length of captions, int64 `(N, L)`."""

    def scale(self) -> Tensor:
        """Return the scale, at most 100; beyond that the logarithm gets no gradient, as where CLIP clamps it."""
        return self.logit_scale.clamp(max=math.log(LARGEST_SCALE)).exp().reshape(())

    def forward(self, images: Tensor, tokens: Tensor) -> Towers:
        """Return features, scale and bias of pairs: images `(N, C, H, W)` and tokens `(N, L)`."""
        return Towers(self.encode_images(images), self.encode_texts(tokens), self.scale(), self.logit_bias.reshape(()))


class SmallImageText(ImageTextNetwork):
    """A convolutional tower and a transformer over words; GroupNorm and LayerNorm, so that no pair sees another.

    Args:
        image_shape: `(C, H, W)`.
        width: Channels of the first stage; the text tower has four times as many, and the common space eight times.
        depth: Stages that halve the side, and blocks of the text tower.
        dropout: Before both projections.
        start: Scale and bias at first.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], width: int, depth: int, dropout: float, start: tuple[float, float]
    ) -> None:
        super().__init__()
        self.vocabulary, self.longest = VOCABULARY, LONGEST
        words, common = 4 * width, 8 * width
        self.image_tower, channels = _image_tower(image_shape[0], width, depth)
        self.image_projection = nn.Sequential(nn.Dropout(dropout), nn.Linear(channels, common, bias=False))
        self.words = nn.Embedding(VOCABULARY, words, padding_idx=PADDING)
        self.positions = nn.Parameter(torch.randn(LONGEST, words) * 0.01)
        nn.init.normal_(self.words.weight, std=0.1)
        self.blocks = nn.ModuleList(_Block(words) for _ in range(depth))
        self.text_norm = nn.LayerNorm(words)
        self.text_projection = nn.Sequential(nn.Dropout(dropout), nn.Linear(words, common, bias=False))
        scale, bias = start
        self.logit_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.logit_bias = nn.Parameter(torch.tensor(bias))

    def encode_images(self, images: Tensor) -> Tensor:
        """Return features `(N, D)` of images `(N, C, H, W)`."""
        return normalize(self.image_projection(self.image_tower(images)), dim=-1)

    def encode_texts(self, tokens: Tensor) -> Tensor:
        """Return features `(N, D)` of captions `(N, L)`: the mean over their words."""
        there = tokens != PADDING
        words = self.words(tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            words = block(words, there)
        mean = (self.text_norm(words) * there.unsqueeze(-1)).sum(1) / there.sum(1, keepdim=True).clamp(min=1)
        return normalize(self.text_projection(mean), dim=-1)


class _Block(nn.Module):
    """Attention over the words of a caption, and a layer for each word."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // 32)
        self.before_attention, self.before_layer = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.layer = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, words: Tensor, there: Tensor) -> Tensor:
        """Return `(N, L, E)`; `there` is false at words that nobody may look at."""
        count, length, width = words.shape
        parts = self.qkv(self.before_attention(words)).view(count, length, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        seen = there[:, None, None, :] | ~there.any(1)[:, None, None, None]  # an empty caption sees its padding
        seen_words = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        words = words + self.out(seen_words.transpose(1, 2).reshape(count, length, width))
        out: Tensor = words + self.layer(self.before_layer(words))
        return out


def _image_tower(incoming: int, width: int, depth: int) -> tuple[nn.Module, int]:
    """Return the tower and how many numbers an image is to it."""
    layers: list[nn.Module] = [*_stage(incoming, width, 1)]
    channels = width
    for _ in range(depth):
        layers += [*_stage(channels, 2 * channels, 2), *_stage(2 * channels, 2 * channels, 1)]
        channels *= 2
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten()), 4 * channels


def _stage(incoming: int, outgoing: int, stride: int) -> list[nn.Module]:
    groups = math.gcd(outgoing, max(1, outgoing // 8))
    return [
        nn.Conv2d(incoming, outgoing, 3, stride=stride, padding=1, bias=False),
        nn.GroupNorm(groups, outgoing),
        nn.ReLU(),
    ]


def image_text(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    width: int = 16,
    depth: int = 2,
    dropout: float = 0.0,
    start: tuple[float, float] = SOFTMAX_START,
) -> SmallImageText:
    """Build a small network of two towers; `num_classes` is of no concern to it.

    Args:
        image_shape: `(C, H, W)`.
        num_classes: Of the data's zero-shot classification.
        width: Channels of the first stage.
        depth: Stages of the image tower behind the first, and blocks of the text tower.
        dropout: Before both projections.
        start: Scale and bias at first.

    Raises:
        ValueError: The images have fewer pixels than the stages halve.
    """
    if min(image_shape[1:]) < 2**depth:
        raise ValueError(f"expected images of at least {2**depth} pixels a side for depth {depth}, got {image_shape}")
    return SmallImageText(image_shape, width, depth, dropout, start)
