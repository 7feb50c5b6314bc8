"""Networks of two towers by name, `hf:` of transformers and `open_clip:`. A library is imported when a name asks."""

from __future__ import annotations

import difflib
from typing import Any

import torch

from limbeck.errors import UserError
from limbeck.models.libraries import Wanted, imported, of_channels, processor, said, sees_its_own
from limbeck.models.prefixed import Standardisation
from limbeck.models.prefixed_towers import PrefixedTowers, start_as_published

# What CLIP and open_clip standardise pixels by.
CLIP_PIXELS = Standardisation((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
KINDS = {"clip": "CLIPModel", "siglip": "SiglipModel"}  # of transformers' configurations


def open_towers(wanted: Wanted, data: Standardisation | None) -> PrefixedTowers:
    """Open a library's network of two towers; its random weights are drawn from torch's generator.

    Args:
        wanted: Its name, and the images' shape.
        data: What the images' pixels are standardised by; None if that is unknown, and they are taken as they come.

    Raises:
        UserError: The library is not here or knows no such network, or it cannot look at the images.
    """
    prefix = wanted.options.name.partition(":")[0]
    if wanted.options.dropout or wanted.options.stochastic_depth:
        raise UserError(f"`model.dropout` and `stochastic_depth` expected 0 for {wanted.options.name}")
    network, own, vocabulary, longest = _open_clip(wanted) if prefix == "open_clip" else _transformers(wanted)
    channels = wanted.image_shape[0]
    data = data or Standardisation((0.0,) * channels, (1.0,) * channels)
    own = of_channels(own, channels, wanted.options.name) if sees_its_own(wanted.options) else data
    towers = PrefixedTowers(network, own, data, vocabulary=vocabulary, longest=longest)
    _look_once(towers, wanted)
    return towers


def _transformers(wanted: Wanted) -> tuple[Any, Standardisation, int, int]:
    with imported(wanted):
        import transformers
    with said(wanted, {}):
        if wanted.name in transformers.CONFIG_MAPPING:
            config = transformers.AutoConfig.for_model(wanted.name)
        else:
            config = transformers.AutoConfig.from_pretrained(wanted.name)
        if config.model_type not in KINDS:
            raise ValueError(f"expected a network among {', '.join(KINDS)}, got {config.model_type}")
        kind = getattr(transformers, KINDS[config.model_type])
        own = processor(wanted.name) if sees_its_own(wanted.options) else CLIP_PIXELS
        if wanted.pretrained:
            network = kind.from_pretrained(wanted.name)
        else:
            config.vision_config.num_channels = wanted.image_shape[0]
            if wanted.options.weights is None:
                config.vision_config.image_size = wanted.image_shape[-1]
            network = kind(config)
            start_as_published(network)
    words = config.text_config
    return network, own, words.vocab_size, words.max_position_embeddings


def _open_clip(wanted: Wanted) -> tuple[Any, Standardisation, int, int]:
    with imported(wanted):
        import open_clip
    name, _, tag = wanted.name.partition("/")
    config = open_clip.get_model_config(name)
    if config is None:
        near = difflib.get_close_matches(name, open_clip.list_models(), n=3, cutoff=0.4)
        listed = ", ".join(f"`open_clip:{each}`" for each in near) or "open_clip.list_models() has its names"
        raise UserError(f"`model.name`: open_clip has no network `{name}`; did you mean {listed}?")
    if wanted.pretrained and not tag:
        raise UserError(
            f"`model.name` open_clip:{name} expected the name of its weights behind it, open_clip:{name}/WEIGHTS, or a "
            "file in `weights`"
        )
    size = None if wanted.options.weights else wanted.image_shape[-1]
    with said(wanted, {}):
        network = open_clip.create_model(
            name, pretrained=tag if wanted.pretrained else None, force_image_size=size, output_dict=False
        )
    words = config["text_cfg"]
    seen = getattr(network.visual, "image_mean", None) or CLIP_PIXELS.mean
    deviation = getattr(network.visual, "image_std", None) or CLIP_PIXELS.std
    own = Standardisation(tuple(seen), tuple(deviation))
    return network, own, words.get("vocab_size", 49408), words.get("context_length", 77)


@torch.no_grad()
def _look_once(towers: PrefixedTowers, wanted: Wanted) -> None:
    """Raise UserError unless the network can look at such an image and returns one vector of it."""
    towers.eval()
    try:
        towers.encode_images(torch.zeros(1, *wanted.image_shape))
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        height, width = wanted.image_shape[1:]
        words = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(
            f"`model.name` {wanted.options.name} cannot look at images of {height}x{width} ({words}); set "
            "`data.image_size` to the side that it was made for"
        ) from error
    towers.train()
