"""Claims about the terms of the logit and self-distillation rivals: each is its module, option for option."""

from __future__ import annotations

import inspect

import pytest
from pydantic import ValidationError

from limbeck import DISTLoss, DKDLoss, NKDLoss, TTMLoss
from limbeck.config_terms import FeatureTerm, LogitTerm
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
    shared = LogitTerm.model_fields.keys() | FeatureTerm.model_fields.keys()
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


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("dkd", "rest_weight", -1.0),
        ("nkd", "temperature", 0.0),
        ("ttm", "power", 0.0),
        ("dist", "intra_weight", -1.0),
        ("ofa", "power", 0.0),
        ("ofa", "width", 0),
        ("ctkd", "temperature_range", 0.0),
        ("ctkd", "ramp_epochs", -1.0),
        ("mlkd", "temperatures", ()),
        ("mlkd", "temperatures", (4.0, 0.0)),
        ("mlkd", "mask", "half"),
        ("akl", "head_mass", 1.5),
        ("tf_kd", "correct", 1.0),
        ("zipf", "upsample", 0),
        ("uskd", "mode", "log"),
    ],
)
def test_term_refuses_what_its_module_refuses(name: str, option: str, value: object) -> None:
    with pytest.raises(ValidationError, match=option):
        TERMS[name](**{option: value})
    known = {"num_classes": 5, "shapes": [(8, 4, 4)]}
    given = {what: known[what] for what in inspect.signature(CONSTRUCTORS[name]).parameters if what in known}
    with pytest.raises(ValueError, match=option):
        CONSTRUCTORS[name](**given, **{option: value})


@every_term
def test_a_loss_with_labels_says_that_it_has_no_form_for_mixtures(name: str) -> None:
    assert TERMS[name].hard_labels == ("labels" in TERMS[name].inputs)


def test_losses_between_two_networks_logits_alone_can_see_them_standardised() -> None:
    standardised = {name for name, term in TERMS.items() if issubclass(term, LogitTerm)}
    assert standardised == {"dkd", "nkd", "ttm", "dist", "ctkd", "mlkd", "akl"}
    assert all(TERMS[name].inputs[:2] == ("logits", "target_logits") for name in standardised)
