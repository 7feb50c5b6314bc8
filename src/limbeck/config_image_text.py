"""How similarities of images and texts are compared in the task `image_text`. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from limbeck.config_terms import CrossEntropyTerm, GKLTerm, JSTerm, LogitTerm, Options, TermOptions

if TYPE_CHECKING:
    from collections.abc import Iterable


class ImageTextOptions(Options):
    """What the losses of the task share."""

    form: Literal["softmax", "sigmoid"] = Field(
        "softmax",
        description="softmax: cross_entropy and kl are between rows of similarities, as in CLIP; sigmoid: between the "
        "yes or no of each pair, as in SigLIP.",
    )
    tile: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Rows and columns of similarities that are made at a time: memory linear in the batch, for more "
        "arithmetic; null makes whole matrices.",
    )


def check_image_text_terms(terms: Iterable[TermOptions]) -> None:
    """Raise ValueError for an option that has no meaning between similarities."""
    for term in terms:
        if isinstance(term, GKLTerm) and (term.prior, term.normalizer) != ("sample", "row"):
            raise ValueError(
                "`gkl` of task `image_text` has no classes to average over: it expected `prior: sample` and "
                f"`normalizer: row`, got {term.prior} and {term.normalizer}"
            )
        if isinstance(term, GKLTerm) and term.ramp_epochs:
            raise ValueError("`gkl` of task `image_text` expected 0 for `ramp_epochs`; set `warmup_epochs`")
        if isinstance(term, JSTerm) and term.beta != 0.5:
            raise ValueError(f"`js` of task `image_text` expected `beta` 0.5, got {term.beta:g}")
        if isinstance(term, LogitTerm) and term.standardize:
            raise ValueError(f"`{term.name}` of task `image_text` expected `standardize: false`, got true")
        if isinstance(term, CrossEntropyTerm) and (term.label_smoothing or term.binary):
            raise ValueError(
                "`cross_entropy` of task `image_text` has no smoothing and no binary form; SigLIP's is "
                "`image_text.form: sigmoid`"
            )


def check_tokenizer(tokenizer: str, networks: Iterable[str]) -> None:
    """Raise ValueError for words by their hash beside a library's network, which knows its own tokens."""
    for name in networks:
        if ":" in name and tokenizer == "words":
            raise ValueError(
                f"`data.captions.tokenizer` expected that of `{name}`, as hf:NAME or open_clip:NAME, got words"
            )
