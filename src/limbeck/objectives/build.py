"""The loss module of a term: its options from the configuration, the rest from what the run knows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch

from limbeck import losses
from limbeck.config import LogitTerm, loss_options
from limbeck.draws import key
from limbeck.functional.overhaul import relu_margins
from limbeck.losses import DivergenceLoss, StandardizedLoss
from limbeck.models.stages import layer_norms

if TYPE_CHECKING:
    from torch import Tensor

    from limbeck.config import FeatureTerm, Term, WKDLogitTerm
    from limbeck.objectives.layers import Layers

# The (C, C) cost between classes that a teacher, by its position, gives a term.
Costs = Callable[[int, "WKDLogitTerm"], "Tensor"]

LOSSES: Mapping[str, type[DivergenceLoss]] = {
    "kl": losses.KLLoss,
    "reverse_kl": losses.ReverseKLLoss,
    "js": losses.JSLoss,
    "dkl": losses.DKLLoss,
    "ikl": losses.IKLLoss,
    "gkl": losses.GKLLoss,
    "mart": losses.MARTLoss,
    "logit_mse": losses.LogitMSELoss,
    "pseudo_label": losses.PseudoLabelLoss,
    "probability_mse": losses.ProbabilityMSELoss,
    "multi_js": losses.MultiJSLoss,
    "dkd": losses.DKDLoss,
    "nkd": losses.NKDLoss,
    "ttm": losses.TTMLoss,
    "dist": losses.DISTLoss,
    "ofa": losses.OFALoss,
    "ctkd": losses.CTKDLoss,
    "mlkd": losses.MLKDLoss,
    "akl": losses.AKLLoss,
    "wkd_logit": losses.WKDLogitLoss,
    "fitnet": losses.FitNetLoss,
    "at": losses.ATLoss,
    "nst": losses.NSTLoss,
    "ickd": losses.ICKDLoss,
    "cat": losses.CATLoss,
    "vid": losses.VIDLoss,
    "review_kd": losses.ReviewKDLoss,
    "ofd": losses.OFDLoss,
    "wkd_feature": losses.WKDFeatureLoss,
    "feature_distribution": losses.FeatureDistributionLoss,
    "rkd": losses.RKDLoss,
    "cc": losses.CCLoss,
    "pkt": losses.PKTLoss,
    "sp": losses.SPLoss,
    "crd": losses.CRDLoss,
    "emd": losses.EMDLoss,
    "tf_kd": losses.TfKDLoss,
    "zipf": losses.ZipfLoss,
    "uskd": losses.USKDLoss,
    "cwd": losses.CWDLoss,
    "apd": losses.APDLoss,
    "detection": losses.DetectionLoss,
    "fgfi": losses.FGFILoss,
    "box_regression": losses.BoxRegressionLoss,
}

# What the run gives to a constructor that has a parameter of the name; everything else is an option of the term.
KNOWN = ("num_classes", "shapes", "target_shapes", "train_labels", "cost", "margins", "seed")


@dataclass(frozen=True, eq=False)
class Facts:
    """What a run knows that losses are built from, beside their options.

    Attributes:
        num_classes: C.
        example: `(1, ...)`: what the networks take; its numbers are of no concern. For losses of features.
        train_labels: Integers `(samples,)`, for losses that remember samples.
        costs: For transport between classes.
        seed: Of the losses' own weights and draws.
        sum_over_ranks: Sums a tensor in place over the ranks that share a batch; None if there is one.
        gather: Given the number of this rank's samples, returns what puts the ranks' parts of a tensor together; None
            where losses see their rank's samples only.
    """

    num_classes: int
    example: Tensor | None = None
    train_labels: Tensor | None = None
    costs: Costs | None = None
    seed: int = 0
    sum_over_ranks: Callable[[Tensor], Tensor] | None = None
    gather: Callable[[int], Callable[[Tensor], Tensor]] | None = None


def build_loss(
    name: str,
    term: Term,
    facts: Facts,
    student: Layers | None = None,
    teacher: Layers | None = None,
    position: int = 0,
    table: Mapping[str, type[DivergenceLoss]] = LOSSES,
) -> DivergenceLoss:
    """Return the loss module of a term. Its weights are a function of the seed and the term's name.

    Args:
        name: Of the term in its objective.
        term: Options.
        facts: What the run knows.
        student: The student's layers, for a term that looks at one.
        teacher: The teacher's, for a term that looks at one.
        position: The teacher's place among several.
        table: The losses of a task that has others by the same names.

    Raises:
        ValueError: The run does not know what the loss needs, or an option does not fit the networks.
    """
    loss = table[term.name]
    takes = inspect.signature(loss).parameters
    known = _known(name, term, facts, student, teacher, position)
    given = {what: find() for what, find in known.items() if what in takes}
    options = {
        option: value
        for option, value in term.model_dump(include=set(loss_options(type(term)))).items()
        if option in takes or option != "impl" or value != "auto"  # dense losses have no kernel
    }
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key(facts.seed, position, f"loss {name}") & 2**63 - 1)
        try:
            built = loss(**given, **options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"`{name}`: {error}") from error
    return StandardizedLoss(built) if isinstance(term, LogitTerm) and term.standardize else built


def _known(
    name: str, term: Term, facts: Facts, student: Layers | None, teacher: Layers | None, position: int
) -> dict[str, Callable[[], Any]]:
    """What constructors may ask for, by the names of their parameters; found only if one does."""

    def need(what: str, value: Any, where: str) -> Any:
        if value is None:
            raise ValueError(f"`{name}` needs {what}, which {where}")
        return value

    def shapes(layers: Layers | None) -> list[tuple[int, ...]]:
        known: Layers = need("a teacher", layers, "this task has none of")
        return known.shapes(name, need("an example of the images", facts.example, "this run has none of"))

    def margins() -> list[Tensor]:
        options = cast("FeatureTerm", term)
        network = need("a teacher", teacher, "this task has none of").model
        return [relu_margins(norm) for norm in layer_norms(network, options.target_features or options.features)]

    hidden = "a user's loader hides; call the loss in a loop of your own"
    return {
        "margins": margins,
        "num_classes": lambda: facts.num_classes,
        "shapes": lambda: shapes(student),
        "target_shapes": lambda: shapes(teacher),
        "train_labels": lambda: need("the labels of all training images", facts.train_labels, hidden),
        "cost": lambda: need("costs between classes", facts.costs, "this task has none of")(position, term),
        "seed": lambda: facts.seed,
    }
