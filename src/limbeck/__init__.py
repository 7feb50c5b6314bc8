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
        "WKDTerms",
        "akl_divergence",
        "attention_transfer",
        "batch_correlation_loss",
        "box_imitation",
        "centroid_cosine",
        "class_attention_transfer",
        "class_correlation_loss",
        "classifier_cosine",
        "confidence_weighted_cross_entropy",
        "contrastive_cross_entropy",
        "contrastive_divergence",
        "contrastive_nce",
        "cost_from_interrelations",
        "covariance_alignment",
        "dense_gkl_divergence",
        "dense_gkl_normalizer",
        "dense_js_divergence",
        "dense_kl_divergence",
        "dense_votes",
        "dist_loss",
        "dkd_divergence",
        "dkl_divergence",
        "exponential_kl",
        "fine_grained_imitation",
        "gaussian_embedding_distance",
        "gaussian_kl",
        "gaussian_wasserstein",
        "gkl_divergence",
        "gkl_normalizer",
        "hierarchical_context_loss",
        "hint_mse",
        "ikl_divergence",
        "inter_channel_correlation",
        "ipot_plan",
        "ipot_transport",
        "js_divergence",
        "kernel_congruence",
        "kl_divergence",
        "laplace_kl",
        "linear_cka",
        "linear_gkl",
        "linear_gkl_normalizer",
        "linear_js",
        "linear_kl",
        "linear_soft_cross_entropy",
        "logit_mse",
        "mart_loss",
        "mlkd_loss",
        "moment_distance",
        "neighbour_congruence",
        "neuron_selectivity",
        "nkd_loss",
        "ofa_loss",
        "partial_l2",
        "permute_other_classes",
        "pmf_transport",
        "polynomial_cka",
        "probabilistic_transfer",
        "multi_js_divergence",
        "probability_mse",
        "pseudo_label_cross_entropy",
        "rbf_cka",
        "relational_angle",
        "relational_distance",
        "relu_margins",
        "reverse_kl_divergence",
        "similarity_preserving",
        "sinkhorn",
        "skew_kl_divergence",
        "soft_cross_entropy",
        "standardize_logits",
        "tf_kd_loss",
        "total_variation",
        "ttm_divergence",
        "uniform_interrelations",
        "uskd_loss",
        "variational_information",
        "weighted_mse",
        "wkd_logit",
        "zipf_loss",
    ),
    "losses": (
        "AKLLoss",
        "APDLoss",
        "ATLoss",
        "BoxRegressionLoss",
        "CATLoss",
        "CCLoss",
        "CRDLoss",
        "CWDLoss",
        "CTKDLoss",
        "ClassPrior",
        "ContrastiveDivergenceLoss",
        "DISTLoss",
        "DKDLoss",
        "DKLLoss",
        "DenseGKLLoss",
        "DenseIKLLoss",
        "DenseJSLoss",
        "DenseKLLoss",
        "DetectionLoss",
        "EMDLoss",
        "FGFILoss",
        "FeatureDistributionLoss",
        "FitNetLoss",
        "GKLLoss",
        "ICKDLoss",
        "IKLLoss",
        "JSLoss",
        "KLLoss",
        "LinearGKLLoss",
        "LinearJSLoss",
        "LinearKLLoss",
        "LinearSoftCrossEntropyLoss",
        "LogitMSELoss",
        "MARTLoss",
        "MLKDLoss",
        "NKDLoss",
        "NSTLoss",
        "OFALoss",
        "OFDLoss",
        "PKTLoss",
        "MultiJSLoss",
        "ProbabilityMSELoss",
        "PseudoLabelLoss",
        "RKDLoss",
        "ReverseKLLoss",
        "ReviewKDLoss",
        "SPLoss",
        "StandardizedLoss",
        "TTMLoss",
        "TfKDLoss",
        "USKDLoss",
        "VIDLoss",
        "WKDFeatureLoss",
        "WKDLogitLoss",
        "ZipfLoss",
        "build_projector",
        "cosine_decay",
        "translate",
    ),
    "models.taps": ("FeatureTaps", "feature_shapes"),
}
_HOMES = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = sorted({*_HOMES, "adversary", "api", "functional", "losses"})


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

    from limbeck import adversary, api, functional, losses  # noqa: F401
    from limbeck.adversary.awp import awp  # noqa: F401
    from limbeck.adversary.pgd import pgd  # noqa: F401
    from limbeck.api import FitResult, compare, fit  # noqa: F401
    from limbeck.functional import *  # noqa: F403
    from limbeck.losses import *  # noqa: F403
    from limbeck.models.taps import FeatureTaps, feature_shapes  # noqa: F401
