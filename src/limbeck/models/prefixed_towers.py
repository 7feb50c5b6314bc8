"""Networks of two towers of transformers and open_clip: CLIP, SigLIP and what is built like them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from limbeck.errors import UserError
from limbeck.models.image_text import SIGMOID_START, ImageTextNetwork
from limbeck.models.prefixed import PrefixedNetwork, Standardisation

WAY = "choose `data.captions.length` and the `tokenizer` that belongs to it"


class PrefixedTowers(ImageTextNetwork, PrefixedNetwork):  # type: ignore[misc]  # of two tensors, not of one
    """A library's network of two towers, which sees pixels as a `PrefixedNetwork` does.

    Args:
        network: Of transformers, with `get_image_features`, or of open_clip, with `encode_image`.
        own: What its pixels are standardised by.
        data: What the images' are.
        vocabulary: Tokens are below it.
        longest: Tokens that a caption may have.
    """

    no_bias: Tensor

    def __init__(
        self, network: nn.Module, own: Standardisation, data: Standardisation, *, vocabulary: int, longest: int
    ) -> None:
        super().__init__(network, own, data)
        self.vocabulary, self.longest = vocabulary, longest
        self.register_buffer("no_bias", torch.zeros(()), persistent=False)

    @property
    def logit_scale(self) -> Tensor:  # type: ignore[override]  # the network's own parameter
        """Logarithm of the learned scale."""
        network: Any = self.network
        scale: Tensor = network.logit_scale
        return scale

    @property
    def logit_bias(self) -> Tensor:  # type: ignore[override]
        """Learned, as in SigLIP, or 0."""
        bias: Tensor | None = getattr(self.network, "logit_bias", None)
        return self.no_bias if bias is None else bias

    def encode_images(self, images: Tensor) -> Tensor:
        """Return features `(N, D)` of images `(N, C, H, W)`."""
        network: Any = self.network
        pixels = self.rescaled(images)
        if hasattr(network, "encode_image"):
            return normalize(network.encode_image(pixels), dim=-1)
        return normalize(_features(network.get_image_features(pixel_values=pixels)), dim=-1)

    def encode_texts(self, tokens: Tensor) -> Tensor:
        """Return features `(N, D)` of captions `(N, L)`.

        Raises:
            UserError: The tokens are not of this network's tokenizer; on an accelerator only their number is looked at.
        """
        refuse_other_tokens(tokens, self.vocabulary, self.longest)
        network: Any = self.network
        if hasattr(network, "encode_text"):
            return normalize(network.encode_text(tokens), dim=-1)
        return normalize(_features(network.get_text_features(input_ids=tokens)), dim=-1)


def refuse_other_tokens(tokens: Tensor, vocabulary: int, longest: int) -> None:
    """Raise UserError for captions that are too long, or for tokens that a network does not know."""
    if tokens.shape[1] > longest:
        raise UserError(f"the network expected captions of at most {longest} tokens, got {tokens.shape[1]}; {WAY}")
    if tokens.device.type == "cpu" and tokens.numel() and int(tokens.max()) >= vocabulary:
        raise UserError(f"the network expected tokens below {vocabulary}, got {int(tokens.max())}; {WAY}")


def start_as_published(network: Any) -> None:
    """Give a SigLIP that is drawn here the scale and bias that it was trained from; transformers leaves 1 and 0."""
    if getattr(network, "logit_bias", None) is not None:
        scale, bias = SIGMOID_START
        nn.init.constant_(network.logit_scale, math.log(scale))
        nn.init.constant_(network.logit_bias, bias)


def _features(output: Any) -> Tensor:
    """Return what transformers gives as a tensor, or from version 5 on in an output of several."""
    found: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return found
