"""Exit heads: small branches from a network's stages to logits of their own, for training alone."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

ATTENTION_HEADS = 4
FINAL_GRID = 7  # patches a side that a branch of tokens merges down to


class SpatialExit(nn.Sequential):
    """Maps (N, D, H, W) to logits (N, C): separable convolutions of stride 2, mean over the positions, a linear layer.

    Args:
        channels: D.
        width: channels before the linear layer.
        halvings: how often the sides are halved, each time on twice the channels; at 0 one 1x1 convolution.
        num_classes: C.
    """

    def __init__(self, channels: int, width: int, halvings: int, num_classes: int) -> None:
        sizes = [channels * 2**step for step in range(halvings)] + [width]
        blocks = [_halve(here, there) for here, there in itertools.pairwise(sizes)]
        body = nn.Sequential(*blocks) if blocks else nn.Conv2d(channels, width, 1)
        pool, flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        super().__init__(OrderedDict(body=body, pool=pool, flatten=flatten, head=nn.Linear(width, num_classes)))


def _halve(channels: int, out: int) -> nn.Sequential:
    """Half the sides: depthwise 3x3 convolution of stride 2, 1x1 convolution, BatchNorm of the batch alone, ReLU."""
    depthwise = nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels, bias=False)
    pointwise = nn.Conv2d(channels, out, 1, bias=False)
    return nn.Sequential(depthwise, pointwise, nn.BatchNorm2d(out, track_running_stats=False), nn.ReLU())


class TokenExit(nn.Module):
    """Tokens (N, L, D) to logits (N, C): patches merged, transformer blocks, mean over the patches, a linear layer.

    Four neighbouring patches are merged while the grid is even and has more than 7 a side. A first token beside a
    square of patches, the class token, is left out.

    Args:
        tokens: L, a square or one more.
        channels: D.
        width: channels of the blocks, a multiple of 4 (their attention heads).
        blocks: number of transformer blocks.
        num_classes: C.
    """

    def __init__(self, tokens: int, channels: int, width: int, blocks: int, num_classes: int) -> None:
        super().__init__()
        self.side = math.isqrt(tokens)
        if tokens - self.side**2 not in (0, 1) or tokens < 1:
            raise ValueError(
                f"`shapes` expected tokens (L, D) of a square grid, with or without a class token, got L = {tokens}; "
                "for other sequences pass pooled features (D,)"
            )
        if width % ATTENTION_HEADS:
            raise ValueError(f"`width` expected a multiple of {ATTENTION_HEADS} for features of tokens, got {width}")
        merges: list[nn.Module] = []
        side = self.side
        while side > FINAL_GRID and side % 2 == 0:
            merges.append(nn.Linear(4 * (width if merges else channels), width))
            side //= 2
        self.merges = nn.ModuleList(merges)
        self.embed = nn.Identity() if merges or channels == width else nn.Linear(channels, width)
        self.blocks = nn.Sequential(*(_block(width) for _ in range(blocks)))
        self.head = nn.Linear(width, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (N, L, D); logits (N, C)."""
        patches = tokens[:, tokens.shape[1] - self.side**2 :]
        side = self.side
        for merge in self.merges:
            side //= 2
            squares = patches.reshape(len(patches), side, 2, side, 2, -1).transpose(2, 3)
            patches = nn.functional.gelu(merge(squares.flatten(3).flatten(1, 2)))
        logits: Tensor = self.head(self.blocks(self.embed(patches)).mean(1))
        return logits


def _block(width: int) -> nn.Module:
    return nn.TransformerEncoderLayer(
        width, ATTENTION_HEADS, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )


def exit_head(shape: Sequence[int], width: int, remaining: int, num_classes: int) -> nn.Module:
    """Return the branch from features of this shape, `remaining` stages before the last one.

    Args:
        shape: of one sample's features: a map (D, H, W), tokens (L, D), or a vector (D,).
        width: channels before the branch's linear layer; a vector has a linear layer alone.
        remaining: stages after this one, at least 0.
        num_classes: C.

    Raises:
        ValueError: Another number of axes, tokens of no square grid, or a width that the heads do not divide.
    """
    match tuple(shape):
        case (channels, _, _):
            return SpatialExit(channels, width, remaining, num_classes)
        case (tokens, channels):
            return TokenExit(tokens, channels, width, max(remaining, 1), num_classes)
        case (channels,):
            return nn.Linear(channels, num_classes)
    raise ValueError(f"`shapes` expected maps (D, H, W), tokens (L, D) or vectors (D,), got {tuple(shape)}")


def apply_exit(head: nn.Module, features: Tensor) -> Tensor:
    """Logits of `features` of any dtype, in the head's own or in that of autocast."""
    logits: Tensor = head(features.to(next(head.parameters()).dtype))
    return logits
