"""The divergence between two models' image-text similarities as a module."""

from __future__ import annotations

from torch import Tensor

from limbeck.functional._check import Reduction
from limbeck.functional._similarity_tiles import RowDivergence
from limbeck.functional.image_text import Negatives, contrastive_divergence, row_options
from limbeck.losses.base import DivergenceLoss


class ContrastiveDivergenceLoss(DivergenceLoss):
    """KL, JS or GKL between a teacher's and a student's similarities of images and texts: CLIP distillation.

    Args:
        divergence: "kl", "js", "gkl" (sample-wise weights), or "sigmoid_kl" for models of SigLIP's kind.
        temperature: T > 0; divides both similarities, but for "gkl", where it acts on the soft cross-entropy only.
        scale_by_t2: multiply by T squared; not for "gkl".
        weight_power: gamma >= 0 of GKL's weights.
        mse_weight: factor of GKL's weighted MSE, the quarter inside.
        ce_weight: factor of GKL's soft cross-entropy.
        normalize: give all features unit length first.
        tile: side of the square tiles that the similarity matrices are computed in; `None` makes them whole.
        reduction: "none", "mean" or "sum".

    Raises:
        ValueError: an option out of range, or an unknown word.

    Gradient:
        To features, negatives, scale and bias of the student; to the teacher's too where they require it. First
        derivatives only with `tile`.

    Example:
        >>> import torch
        >>> loss = ContrastiveDivergenceLoss(divergence="gkl", temperature=8.0, tile=1024)
        >>> image, text = torch.zeros(3, 4), torch.zeros(3, 4)
        >>> loss(image, text, image, text, logit_scale=100.0, target_logit_scale=100.0)  # ln 3
        tensor(1.0986)

    Reference:
        arXiv 2503.08038, Tables VII-VIII; see `limbeck.functional.contrastive_divergence`.
    """

    def __init__(
        self,
        *,
        divergence: RowDivergence = "kl",
        temperature: float = 1.0,
        scale_by_t2: bool = False,
        weight_power: float = 1.0,
        mse_weight: float = 1.0,
        ce_weight: float = 1.0,
        normalize: bool = False,
        tile: int | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        row_options(divergence, temperature, scale_by_t2, weight_power, mse_weight, ce_weight, tile)
        self.divergence = divergence
        self.temperature = temperature
        self.scale_by_t2 = scale_by_t2
        self.weight_power = weight_power
        self.mse_weight = mse_weight
        self.ce_weight = ce_weight
        self.normalize = normalize
        self.tile = tile

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        target_image_features: Tensor,
        target_text_features: Tensor,
        *,
        logit_scale: float | Tensor,
        target_logit_scale: float | Tensor,
        logit_bias: float | Tensor = 0.0,
        target_logit_bias: float | Tensor = 0.0,
        negatives: Negatives | None = None,
        target_negatives: Negatives | None = None,
    ) -> Tensor:
        """(N, D) of the student's images and texts, (N, D') of the teacher's; `negatives` are of other ranks."""
        return contrastive_divergence(
            image_features,
            text_features,
            target_image_features,
            target_text_features,
            logit_scale=logit_scale,
            target_logit_scale=target_logit_scale,
            logit_bias=logit_bias,
            target_logit_bias=target_logit_bias,
            divergence=self.divergence,
            temperature=self.temperature,
            scale_by_t2=self.scale_by_t2,
            weight_power=self.weight_power,
            mse_weight=self.mse_weight,
            ce_weight=self.ce_weight,
            normalize=self.normalize,
            tile=self.tile,
            negatives=negatives,
            target_negatives=target_negatives,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return (
            f"divergence={self.divergence!r}, temperature={self.temperature}, scale_by_t2={self.scale_by_t2}, "
            f"weight_power={self.weight_power}, mse_weight={self.mse_weight}, ce_weight={self.ce_weight}, "
            f"normalize={self.normalize}, tile={self.tile}"
        )
