"""The catalogue: every loss that a recipe can name, with its options. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeAlias, Union

from pydantic import Field

from limbeck.config_terms import DIVERGENCE_TERMS, FeatureTerm, TermOptions
from limbeck.config_terms_consistency import CONSISTENCY_TERMS
from limbeck.config_terms_detection import DETECTION_TERMS
from limbeck.config_terms_logit import LOGIT_TERMS
from limbeck.config_terms_maps import MAPS_TERMS
from limbeck.config_terms_moments import MOMENTS_TERMS
from limbeck.config_terms_relations import RELATIONS_TERMS
from limbeck.config_terms_segment import SEGMENT_TERMS
from limbeck.config_terms_self import SELF_TERMS
from limbeck.config_terms_transport import TRANSPORT_TERMS

TERMS: dict[str, type[TermOptions]] = {
    **DIVERGENCE_TERMS,
    **CONSISTENCY_TERMS,
    **LOGIT_TERMS,
    **TRANSPORT_TERMS,
    **MOMENTS_TERMS,
    **MAPS_TERMS,
    **RELATIONS_TERMS,
    **SELF_TERMS,
    **DETECTION_TERMS,
    **SEGMENT_TERMS,
}

if TYPE_CHECKING:
    Term: TypeAlias = TermOptions
else:
    Term = Annotated[Union[tuple(TERMS.values())], Field(discriminator="name")]  # noqa: UP007 (made of the table)

# Options of a term that the run reads, not the loss.
OF_THE_RUN = frozenset((*FeatureTerm.model_fields, "standardize", "interrelations", "sharpness"))


def loss_options(term: type[TermOptions]) -> list[str]:
    """Return the options of a term that its loss is built with, in the order of the loss's constructor.

    >>> loss_options(TERMS["kl"])
    ['temperature', 'scale_by_t2', 'impl']
    """
    return [option for option in term.model_fields if option not in OF_THE_RUN]
