"""The terms between the samples of a batch, and the contrastive one. Imports no torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from limbeck.config_terms import FeatureTerm, Fraction, Input, NonNegative, Positive, TermOptions, feature_names

Count = Annotated[int, Field(ge=1)]


class RKDTerm(FeatureTerm):
    """Relational distillation, RKD (CVPR 2019): distances and angles between the samples of a batch."""

    formula: ClassVar[str] = "distance_weight · 1/N² Σ ℓ(d_s, d_t) + angle_weight · 1/N³ Σ ℓ(cos∠_s, cos∠_t)"
    paper: ClassVar[str] = "arXiv 1904.05068, CVPR 2019"
    cost: ClassVar[str] = "N²·D + N³; 4 million cosines at a time"
    relates_samples: ClassVar[bool] = True
    name: Literal["rkd"] = "rkd"
    features: tuple[str, ...] = feature_names("pooled")
    distance_weight: NonNegative = Field(25.0, description="Factor of the distances' difference.")
    angle_weight: NonNegative = Field(50.0, description="Factor of the angles' difference.")


class CCTerm(FeatureTerm):
    """Correlation congruence, CC (ICCV 2019): errors of neighbours in the batch, or kernel matrices of the samples."""

    formula: ClassVar[str] = "1/(N−1) Σ ⟨|e_s − e_t|_n, |e_s − e_t|_n+1⟩, or 1/N² ‖K_s − K_t‖²"
    paper: ClassVar[str] = "arXiv 1904.01802, ICCV 2019"
    cost: ClassVar[str] = "N·D·dim; two linear embeddings"
    relates_samples: ClassVar[bool] = True
    name: Literal["cc"] = "cc"
    features: tuple[str, ...] = feature_names("pooled")
    form: Literal["neighbour", "kernel"] = Field(
        "neighbour", description="neighbour: the public code's, of the tables; kernel: the paper's."
    )
    dim: Count = Field(128, description="Width of the embeddings.")
    kernel: Literal["gaussian", "bilinear"] = Field("gaussian", description="Form kernel: what relates two samples.")
    gamma: Positive = Field(0.4, description="Of the Gaussian kernel.")
    degree: Count = Field(2, description="Last power in the Gaussian kernel's Taylor sum.")
    normalize: bool = Field(True, description="Form kernel: bring embeddings to length one.")
    squared: bool = Field(True, description="Form kernel: square the Frobenius norm.")


class PKTTerm(FeatureTerm):
    """Probabilistic knowledge transfer, PKT (ECCV 2018): the probabilities of each sample's neighbours."""

    formula: ClassVar[str] = "1/N² Σ P_t log(P_t / P_s),  P_ij ∝ 1 + cos(f_i, f_j)"
    paper: ClassVar[str] = "arXiv 1803.10837, ECCV 2018"
    cost: ClassVar[str] = "N²·D"
    relates_samples: ClassVar[bool] = True
    name: Literal["pkt"] = "pkt"
    features: tuple[str, ...] = feature_names("pooled")


class SPTerm(FeatureTerm):
    """Similarity-preserving distillation, SP (ICCV 2019): the Gram matrix of a batch's samples."""

    formula: ClassVar[str] = "1/N² ‖G_s − G_t‖²,  G = F Fᵀ with rows of length 1"
    paper: ClassVar[str] = "arXiv 1907.09682, ICCV 2019"
    cost: ClassVar[str] = "N²·D·H·W"
    relates_samples: ClassVar[bool] = True
    name: Literal["sp"] = "sp"
    features: tuple[str, ...] = feature_names("last")


class CRDTerm(FeatureTerm):
    """Contrastive representation distillation, CRD (ICLR 2020): each sample's teacher found among other samples'."""

    formula: ClassVar[str] = "−log P_0/(P_0 + c) − Σ log c/(P_k + c),  P = exp(⟨u_s, u_t⟩ / T) / Z, both ways"
    paper: ClassVar[str] = "arXiv 1910.10699, ICLR 2020"
    cost: ClassVar[str] = "N·negatives·dim; two linear heads, two banks of dim numbers per training sample"
    memory: ClassVar[str] = "embeddings of all training samples, both sides"
    inputs: ClassVar[tuple[Input, ...]] = ("features", "target_features", "indices")
    name: Literal["crd"] = "crd"
    features: tuple[str, ...] = feature_names("pooled")
    dim: Count = Field(128, description="Width of the embeddings.")
    negatives: Count = Field(16384, description="Samples of other classes that each sample is told from.")
    temperature: Positive = Field(0.07, description="Divides the products of embeddings.")
    momentum: Fraction = Field(0.5, description="What a row of a bank keeps at an update.")
    positive: Literal["exact", "relax"] = Field(
        "exact", description="exact: the same image; relax: a random one of its class."
    )


class EMDTerm(FeatureTerm):
    """Transport between a batch's features of both networks, by proximal steps (EMD + IPOT, WACV 2022)."""

    formula: ClassVar[str] = "⟨sg(Π), C⟩,  C_ij between projected f_s,i and f_t,j"
    paper: ClassVar[str] = "arXiv 2012.03907, WACV 2022; solver: arXiv 1802.04307"
    cost: ClassVar[str] = "N²·(D + iterations); one linear projection"
    relates_samples: ClassVar[bool] = True
    name: Literal["emd"] = "emd"
    features: tuple[str, ...] = feature_names("pooled")
    metric: Literal["cosine", "squared_euclidean"] = Field(
        "cosine", description="C: one less the cosine, or the mean squared difference."
    )
    beta: Positive = Field(1.0, description="A step's length is 1 / beta; in the cost's unit.")
    iterations: Count = Field(50, description="Number of steps.")


RELATIONS_TERMS: dict[str, type[TermOptions]] = {
    "rkd": RKDTerm,
    "cc": CCTerm,
    "pkt": PKTTerm,
    "sp": SPTerm,
    "crd": CRDTerm,
    "emd": EMDTerm,
}
