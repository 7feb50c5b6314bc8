"""The terms between distributions of features over positions: WKD-F and its rivals. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from limbeck.config_terms import FeatureTerm, NonNegative, TermOptions, feature_names

PROJECTOR: Any = Field(
    "conv1x1",
    description="What brings the student's features to the teacher's shape: conv1x1, conv3x3 and bottleneck match "
    "sizes, linear the channels alone (tokens), none nothing.",
)
ACTIVATION: Any = Field(
    True,
    description="End the projector in a ReLU; false where the teacher's layer is taken before its activation.",
)


class WKDFeatureTerm(FeatureTerm):
    """WKD-F: Wasserstein distance between Gaussians of the feature maps, over positions."""

    formula: ClassVar[str] = "mean_weight · Σ (μ_t − μ_s)² + Σ (σ_t − σ_s)²,  per channel of the projected map"
    paper: ClassVar[str] = "arXiv 2412.08139, NeurIPS 2024"
    cost: ClassVar[str] = "N·H·W·D; projector"
    name: Literal["wkd_feature"] = "wkd_feature"
    features: tuple[str, ...] = feature_names("last")
    mean_weight: NonNegative = Field(2.0, description="Factor of the means' part; published 2 to 8.")
    covariance: Literal["diagonal", "full"] = Field(
        "diagonal", description="Variances per channel, or whole covariance matrices: a decomposition per sample."
    )
    grid: Annotated[int, Field(ge=1)] = Field(
        1, description="Distances of k x k cells of the map are averaged; each cell needs two positions."
    )
    unbiased: bool = Field(
        True, description="Divide variances by the number of positions less 1, as the public code; the paper does not."
    )
    projector: Literal["conv1x1", "conv3x3", "bottleneck", "linear", "none"] = PROJECTOR
    activation: bool = ACTIVATION


class FeatureDistributionTerm(FeatureTerm):
    """WKD-F's rivals: other distances between distributions of features over positions (2412.08139, A.2)."""

    formula: ClassVar[str] = "d(P_t, P_s),  P: Gaussian, Laplace, exponential, atoms or moments of the projected map"
    paper: ClassVar[str] = "arXiv 2412.08139, appendix A.2; G2DeNet, CVPR 2017"
    cost: ClassVar[str] = "N·H·W·D; projector; pmf_transport: 100 N·(H·W)²"
    name: Literal["feature_distribution"] = "feature_distribution"
    features: tuple[str, ...] = feature_names("last")
    kind: Literal[
        "gaussian_kl",
        "gaussian_symmetric_kl",
        "gaussian_embedding",
        "laplace_kl",
        "exponential_kl",
        "pmf_transport",
        "channel_first",
        "channel_second",
        "spatial_first",
        "spatial_second",
    ] = Field(
        "gaussian_kl",
        description="Distribution and distance. gaussian_embedding is G2DeNet's, pmf_transport moves positions as "
        "atoms, channel_first to spatial_second are moments; exponential_kl is for features that are not negative.",
    )
    projector: Literal["conv1x1", "conv3x3", "bottleneck", "linear", "none"] = PROJECTOR
    activation: bool = ACTIVATION


MOMENTS_TERMS: dict[str, type[TermOptions]] = {
    "wkd_feature": WKDFeatureTerm,
    "feature_distribution": FeatureDistributionTerm,
}
