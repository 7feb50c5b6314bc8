"""Tiny networks and a tokenizer in the form of transformers, written into folders."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = {"vocab_size": 60, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def write_network(path: Path, kind: str = "clip", width: int = 16, **vision: Any) -> Path:
    """Write the configuration of a CLIP, whose towers have different widths, or of a SigLIP, where they have one."""
    sizes = {**SIZES, "hidden_size": width}
    seen = {**sizes, "image_size": 16, "patch_size": 8, **vision}
    text = {**sizes, **TEXT, "hidden_size": 12 if kind == "clip" else width, "projection_size": width}
    config = {"model_type": kind, "vision_config": seen, "text_config": text, "projection_dim": width}
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    return path


def write_tokenizer(path: Path, words: list[str]) -> Path:
    """Write a tokenizer of single words, 0 for padding and 2 behind the last word, as CLIP expects it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: place for place, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    path.mkdir(parents=True, exist_ok=True)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    made.save_pretrained(path)
    return path
