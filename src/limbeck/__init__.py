"""Divergence losses for knowledge distillation and adversarial training.

Nothing is imported until it is used, so that `limbeck --help` and configuration errors never wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_ROOMS = {
    "adversary": ("awp", "pgd"),
    "api": ("FitResult", "compare", "fit"),
    "functional": (
        "dist_loss",
        "dkd_divergence",
        "dkl_divergence",
        "gaussian_wasserstein",
        "gkl_divergence",
        "gkl_normalizer",
        "ikl_divergence",
        "js_divergence",
        "kl_divergence",
        "logit_mse",
        "mart_loss",
        "nkd_loss",
        "reverse_kl_divergence",
        "sinkhorn",
        "skew_kl_divergence",
        "soft_cross_entropy",
        "standardize_logits",
        "total_variation",
        "ttm_divergence",
        "weighted_mse",
        "wkd_logit",
    ),
    "losses": (
        "ClassPrior",
        "DISTLoss",
        "DKDLoss",
        "DKLLoss",
        "GKLLoss",
        "IKLLoss",
        "JSLoss",
        "KLLoss",
        "LogitMSELoss",
        "MARTLoss",
        "NKDLoss",
        "ReverseKLLoss",
        "StandardizedLoss",
        "TTMLoss",
        "WKDLogitLoss",
        "translate",
    ),
}
_HOMES = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [
    "ClassPrior",
    "DISTLoss",
    "DKDLoss",
    "DKLLoss",
    "FitResult",
    "GKLLoss",
    "IKLLoss",
    "JSLoss",
    "KLLoss",
    "LogitMSELoss",
    "MARTLoss",
    "NKDLoss",
    "ReverseKLLoss",
    "StandardizedLoss",
    "TTMLoss",
    "WKDLogitLoss",
    "adversary",
    "api",
    "awp",
    "compare",
    "dist_loss",
    "dkd_divergence",
    "dkl_divergence",
    "fit",
    "functional",
    "gaussian_wasserstein",
    "gkl_divergence",
    "gkl_normalizer",
    "ikl_divergence",
    "js_divergence",
    "kl_divergence",
    "logit_mse",
    "losses",
    "mart_loss",
    "nkd_loss",
    "pgd",
    "reverse_kl_divergence",
    "sinkhorn",
    "skew_kl_divergence",
    "soft_cross_entropy",
    "standardize_logits",
    "total_variation",
    "translate",
    "ttm_divergence",
    "weighted_mse",
    "wkd_logit",
]


def _room(name: str) -> ModuleType:
    try:
        return import_module(f"limbeck.{name}")
    except ModuleNotFoundError as error:
        if name != "api" or error.name is None:  # the losses need torch alone
            raise
        from limbeck.errors import missing_extra

        raise missing_extra(error.name.split(".")[0], "cli", "limbeck.fit") from error


def __getattr__(name: str) -> object:
    if name in _ROOMS:
        return _room(name)
    if name in _HOMES:
        return getattr(_room(_HOMES[name]), name)
    raise AttributeError(f"module 'limbeck' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]


if TYPE_CHECKING:
    from types import ModuleType

    from limbeck import adversary, api, functional, losses
    from limbeck.adversary.awp import awp
    from limbeck.adversary.pgd import pgd
    from limbeck.api import FitResult, compare, fit
    from limbeck.functional import (
        dist_loss,
        dkd_divergence,
        dkl_divergence,
        gaussian_wasserstein,
        gkl_divergence,
        gkl_normalizer,
        ikl_divergence,
        js_divergence,
        kl_divergence,
        logit_mse,
        mart_loss,
        nkd_loss,
        reverse_kl_divergence,
        sinkhorn,
        skew_kl_divergence,
        soft_cross_entropy,
        standardize_logits,
        total_variation,
        ttm_divergence,
        weighted_mse,
        wkd_logit,
    )
    from limbeck.losses import (
        ClassPrior,
        DISTLoss,
        DKDLoss,
        DKLLoss,
        GKLLoss,
        IKLLoss,
        JSLoss,
        KLLoss,
        LogitMSELoss,
        MARTLoss,
        NKDLoss,
        ReverseKLLoss,
        StandardizedLoss,
        TTMLoss,
        WKDLogitLoss,
        translate,
    )
