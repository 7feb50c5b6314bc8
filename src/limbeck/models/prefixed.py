"""A network of timm, torchvision or transformers as one that maps pixels of the data's units to logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Standardisation(NamedTuple):
    """What pixels in [0, 1] are standardised by.

    Attributes:
        mean: Per channel; subtracted.
        std: Per channel; divided by afterwards.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


class PrefixedNetwork(nn.Module):
    """A network of another library: forward(x) = network((x · std_d + mean_d - mean) / std).

    The images come standardised as the data are, by mean_d and std_d; the network sees those that it was made for,
    standardised by its own mean and std, by one multiplication and addition, or as they come where the two are equal.
    Its own are buffers and saved with the weights, so that a file tells what its network sees.

    Args:
        network: Maps images to logits, or to something with `logits` as transformers' do.
        own: What its pixels are standardised by.
        data: What the images' are.
        new_head: Number of classes of the pretrained head that a new one has replaced, if it has.
    """

    mean: Tensor
    std: Tensor
    data_mean: Tensor
    data_std: Tensor

    def __init__(
        self, network: nn.Module, own: Standardisation, data: Standardisation, *, new_head: int | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.new_head = new_head
        for name, values in zip(("mean", "std"), own, strict=True):
            self.register_buffer(name, _per_channel(values))
        for name, values in zip(("data_mean", "data_std"), data, strict=True):
            self.register_buffer(name, _per_channel(values), persistent=False)
        self.rescales = True
        self.register_load_state_dict_post_hook(_compare)  # type: ignore[no-untyped-call]  # torch's annotations
        _compare(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `(N, K)` of images `(N, C, H, W)`, standardised as the data are."""
        output: Any = self.network(self.rescaled(images))
        logits: Tensor = output if isinstance(output, Tensor) else output.logits
        return logits

    def rescaled(self, images: Tensor) -> Tensor:
        """Return images as the network sees them."""
        if not self.rescales:
            return images
        return torch.addcmul((self.data_mean - self.mean) / self.std, images, self.data_std / self.std)


def _per_channel(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)


def _compare(module: nn.Module, *_: object) -> None:
    """Note whether a network's pixels are other than the data's; here once, or an accelerator would wait for it."""
    if isinstance(module, PrefixedNetwork):
        same = torch.equal(module.mean, module.data_mean) and torch.equal(module.std, module.data_std)
        module.rescales = not same
