"""Tokenizers by name: our own words, or those of transformers and open_clip, which are imported when one is named."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from limbeck.data.words import Tokenizer, word_tokens
from limbeck.errors import UserError, missing_extra, reason

OWN = "words"


def open_tokenizer(name: str, length: int) -> Tokenizer:
    """Return what makes tokens of captions, int64 `(N, length)`.

    Args:
        name: "words", `hf:NAME` or `open_clip:NAME`.
        length: Tokens of a caption.

    Raises:
        UserError: There is no such tokenizer, or its library is not installed.
    """
    prefix, colon, rest = name.partition(":")
    if name == OWN:
        return partial(word_tokens, length=length)
    if not colon or not rest or prefix not in ("hf", "open_clip"):
        raise UserError(
            f"`data.captions.tokenizer` expected {OWN}, hf:NAME or open_clip:NAME, got {name!r}; {OWN} needs no file"
        )
    try:
        return _of_transformers(rest, length) if prefix == "hf" else _of_open_clip(rest, length)
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or prefix, prefix, f"`data.captions.tokenizer` {name}") from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        said = reason(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"`data.captions.tokenizer` {name}: no such tokenizer ({said}); copy its folder to this machine and name "
            f"that, {prefix}:FOLDER"
        ) from error


def _of_transformers(name: str, length: int) -> Tokenizer:
    from transformers import AutoTokenizer

    return partial(_by_transformers, AutoTokenizer.from_pretrained(name), length)


def _by_transformers(tokenizer: Any, length: int, captions: Sequence[str]) -> Tensor:
    found = tokenizer(list(captions), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    return torch.as_tensor(found["input_ids"], dtype=torch.int64)


def _of_open_clip(name: str, length: int) -> Tokenizer:
    import open_clip

    return partial(_by_open_clip, open_clip.get_tokenizer(name, context_length=length))


def _by_open_clip(tokenizer: Any, captions: Sequence[str]) -> Tensor:
    return torch.as_tensor(tokenizer(list(captions)), dtype=torch.int64)
