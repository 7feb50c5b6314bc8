"""Captions as tokens: a number for each word, without a vocabulary that somebody would have to keep."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Tokenizer: TypeAlias = Callable[[Sequence[str]], Tensor]  # captions -> int64 (N, L), padded with 0

VOCABULARY = 16384
_WORD = re.compile(r"[a-z0-9]+")


def word_tokens(captions: Sequence[str], length: int) -> Tensor:
    """Return the tokens of captions: 1 to 16383 by a hash of each word in lower case, 0 behind the last one.

    Of the 1,424 words of the emoji, one in twelve shares its token with another one. Words beyond `length` are left
    out.

    Args:
        captions: N texts.
        length: Tokens of each.

    Returns:
        int64 `(N, length)`.

    Example:
        >>> tokens = word_tokens(["Cat face", "face"], 3)
        >>> bool(tokens[0, 1] == tokens[1, 0]), tokens[1, 1:].tolist()
        (True, [0, 0])
    """
    tokens = torch.zeros(len(captions), length, dtype=torch.int64)
    for row, caption in enumerate(captions):
        found = [_token(word) for word in _WORD.findall(caption.lower())[:length]]
        tokens[row, : len(found)] = torch.tensor(found, dtype=torch.int64)
    return tokens


def _token(word: str) -> int:
    digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
    return 1 + int.from_bytes(digest, "little") % (VOCABULARY - 1)
