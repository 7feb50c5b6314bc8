"""The data set `emoji`: pictures and names, split so that no held-out picture is ever trained on."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

from limbeck.data import emoji
from limbeck.data.pairs import Gallery, PairSource, fill
from limbeck.data.sources import DataBundle, Pixels, Source, fingerprint
from limbeck.data.splits import split
from limbeck.data.tokenizers import open_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from limbeck.config import DataOptions


def open_emoji(options: DataOptions) -> DataBundle:
    """Return the emoji, split class by class; the classes are Unicode's groups.

    Args:
        options: Of the split, the side, and `captions`.

    Raises:
        UserError: A package is missing, or the side, the split or the tokenizer is impossible.
    """
    found = emoji.load(options.image_size or emoji.SIDE)
    wording = options.captions
    tokens_of = open_tokenizer(wording.tokenizer, wording.length)
    pixels = emoji.PIXELS if options.standardise else Pixels(255, (0.0,) * 3, (1.0,) * 3)
    prompts = torch.stack([tokens_of(fill(wording.prompts, group)) for group in found.groups])
    parts = split(found.labels, options)

    def gallery(part: Tensor) -> Gallery:
        names = tuple(found.names[place] for place in part.tolist())
        tokens = tokens_of(names) if names else torch.empty(0, wording.length, dtype=torch.int64)
        return Gallery(source(part), prompts, tokens, names, found.groups)

    def source(part: Tensor) -> Source:
        return Source(found.images[part], found.labels[part], pixels)

    worded = [
        tokens_of(fill(wording.templates, found.names[place], found.groups[int(found.labels[place])]))
        for place in parts.train.tolist()
    ]
    train = PairSource(source(parts.train), torch.stack(worded))
    validation, test = gallery(parts.validation), gallery(parts.test)
    digest = hashlib.sha256(fingerprint(*map(source, parts)).encode())
    for tokens in (train.tokens, prompts, validation.tokens, test.tokens):
        digest.update(tokens.contiguous().numpy().data)
    return DataBundle(
        name=options.name,
        train=train,
        validation=validation,
        test=test,
        num_classes=len(found.groups),
        image_shape=train.image_shape,
        class_counts=train.labels.bincount(minlength=len(found.groups)),
        fingerprint=digest.hexdigest(),
        device=torch.device("cpu"),
    )
