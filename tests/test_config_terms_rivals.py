"""Claims about the terms of the logit and self-distillation rivals: each is its module, option for option."""

from __future__ import annotations

import inspect

import pytest
from pydantic import ValidationError

from limbeck import DISTLoss, DKDLoss, NKDLoss, TTMLoss
from limbeck.config_terms import FeatureTerm, TermOptions
from limbeck.config_terms_logit import LOGIT_TERMS
from limbeck.config_terms_self import SELF_TERMS
from limbeck.losses.adaptive import AKLLoss
from limbeck.losses.curriculum import CTKDLoss
from limbeck.losses.multilevel import MLKDLoss
from limbeck.losses.one_for_all import OFALoss
from limbeck.losses.teacher_free import TfKDLoss
from limbeck.losses.universal_self import USKDLoss
from limbeck.losses.zipf import ZipfLoss

TERMS = {**LOGIT_TERMS, **SELF_TERMS}
CONSTRUCTORS = {
    "dkd": DKDLoss,
    "nkd": NKDLoss,
    "ttm": TTMLoss,
    "dist": DISTLoss,
    "ofa": OFALoss,
    "ctkd": CTKDLoss,
    "mlkd": MLKDLoss,
    "akl": AKLLoss,
    "tf_kd": TfKDLoss,
    "zipf": ZipfLoss,
    "uskd": USKDLoss,
}
RUN = ("num_classes", "shapes")  # what the run knows

every_term = pytest.mark.parametrize("name", TERMS)


def test_every_term_has_a_module() -> None:
    assert TERMS.keys() == CONSTRUCTORS.keys()


@every_term
def test_module_has_the_options_of_its_term_in_order_with_their_defaults(name: str) -> None:
    shared = TermOptions.model_fields.keys() | FeatureTerm.model_fields.keys()
    fields = TERMS[name].model_fields
    declared = [(option, field.default) for option, field in fields.items() if option not in shared]
    parameters = inspect.signature(CONSTRUCTORS[name]).parameters.values()
    options = [p for p in parameters if p.name not in (*RUN, "reduction")]
    assert [(p.name, p.default) for p in options] == declared
    assert all(p.kind is p.KEYWORD_ONLY for p in options)


@every_term
def test_module_is_called_with_the_inputs_of_its_term(name: str) -> None:
    positional = list(inspect.signature(CONSTRUCTORS[name].forward).parameters)[1:]
    inputs = list(TERMS[name].inputs)
    assert positional[: len(inputs)] == inputs


@every_term
def test_term_says_what_it_is(name: str) -> None:
    term = TERMS[name]
    assert term().name == name
    assert all((term.__doc__, term.formula, term.paper, term.cost))
    assert all(field.description for option, field in term.model_fields.items() if option != "name")


@pytest.mark.parametrize(("name", "option", "value"), [("dkd", "rest_weight", -1.0), ("ttm", "power", 0.0)])
def test_term_refuses_what_its_module_refuses(name: str, option: str, value: float) -> None:
    with pytest.raises(ValidationError, match=option):
        TERMS[name](**{option: value})
    with pytest.raises(ValueError, match=option):
        CONSTRUCTORS[name](**{option: value})
