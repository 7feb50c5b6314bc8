"""Pure functions: logits in, one value per sample, then reduced. Needs torch alone."""

from limbeck.functional.correlation import dist_loss
from limbeck.functional.decoupled import dkd_divergence
from limbeck.functional.gaussian import gaussian_wasserstein
from limbeck.functional.gkl import (
    dkl_divergence,
    gkl_divergence,
    gkl_normalizer,
    ikl_divergence,
    weighted_mse,
)
from limbeck.functional.kl import (
    js_divergence,
    kl_divergence,
    reverse_kl_divergence,
    skew_kl_divergence,
    soft_cross_entropy,
    total_variation,
)
from limbeck.functional.logit import logit_mse
from limbeck.functional.mart import mart_loss
from limbeck.functional.normalized import nkd_loss
from limbeck.functional.standardized import standardize_logits
from limbeck.functional.transformed import ttm_divergence
from limbeck.functional.wasserstein import WKDTerms, sinkhorn, wkd_logit

__all__ = [
    "WKDTerms",
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
]
