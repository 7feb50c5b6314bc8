"""Pure functions: logits or features in, one value per sample or per batch out. Needs torch alone."""

from limbeck.functional.adaptive import akl_divergence
from limbeck.functional.attention import attention_transfer
from limbeck.functional.born_again import confidence_weighted_cross_entropy, permute_other_classes
from limbeck.functional.class_attention import class_attention_transfer
from limbeck.functional.congruence import kernel_congruence, neighbour_congruence
from limbeck.functional.consistency import probability_mse, pseudo_label_cross_entropy
from limbeck.functional.contrastive import contrastive_nce
from limbeck.functional.correlation import dist_loss
from limbeck.functional.decoupled import dkd_divergence
from limbeck.functional.dense import (
    dense_gkl_divergence,
    dense_gkl_normalizer,
    dense_js_divergence,
    dense_kl_divergence,
)
from limbeck.functional.detection import box_imitation, fine_grained_imitation
from limbeck.functional.feature_distributions import (
    exponential_kl,
    gaussian_embedding_distance,
    gaussian_kl,
    laplace_kl,
    moment_distance,
    pmf_transport,
)
from limbeck.functional.gaussian import gaussian_wasserstein
from limbeck.functional.gkl import dkl_divergence, gkl_divergence, gkl_normalizer, ikl_divergence, weighted_mse
from limbeck.functional.hint import hint_mse
from limbeck.functional.image_text import contrastive_divergence
from limbeck.functional.image_text_labels import contrastive_cross_entropy
from limbeck.functional.inter_channel import inter_channel_correlation
from limbeck.functional.interrelations import (
    centroid_cosine,
    classifier_cosine,
    cost_from_interrelations,
    covariance_alignment,
    linear_cka,
    polynomial_cka,
    rbf_cka,
    uniform_interrelations,
)
from limbeck.functional.kl import (
    js_divergence,
    kl_divergence,
    reverse_kl_divergence,
    skew_kl_divergence,
    soft_cross_entropy,
    total_variation,
)
from limbeck.functional.linear import linear_gkl, linear_gkl_normalizer
from limbeck.functional.linear_divergences import linear_js, linear_kl, linear_soft_cross_entropy
from limbeck.functional.logit import logit_mse
from limbeck.functional.mart import mart_loss
from limbeck.functional.multi_js import multi_js_divergence
from limbeck.functional.multilevel import batch_correlation_loss, class_correlation_loss, mlkd_loss
from limbeck.functional.normalized import nkd_loss
from limbeck.functional.one_for_all import ofa_loss
from limbeck.functional.overhaul import partial_l2, relu_margins
from limbeck.functional.proximal_transport import ipot_plan, ipot_transport
from limbeck.functional.relational import relational_angle, relational_distance
from limbeck.functional.review import hierarchical_context_loss
from limbeck.functional.selectivity import neuron_selectivity
from limbeck.functional.similarity import probabilistic_transfer, similarity_preserving
from limbeck.functional.standardized import standardize_logits
from limbeck.functional.teacher_free import tf_kd_loss
from limbeck.functional.transformed import ttm_divergence
from limbeck.functional.universal_self import uskd_loss
from limbeck.functional.variational import variational_information
from limbeck.functional.wasserstein import WKDTerms, sinkhorn, wkd_logit
from limbeck.functional.zipf import dense_votes, zipf_loss

__all__ = [
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
    "multi_js_divergence",
    "neighbour_congruence",
    "neuron_selectivity",
    "nkd_loss",
    "ofa_loss",
    "partial_l2",
    "permute_other_classes",
    "pmf_transport",
    "polynomial_cka",
    "probabilistic_transfer",
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
]
