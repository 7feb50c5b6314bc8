"""Multi-level logit distillation as a module. It ignores `labels`: all losses are called alike."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from limbeck.functional.multilevel import Mask, check_mlkd, mlkd_loss
from limbeck.losses.base import DivergenceLoss


class MLKDLoss(DivergenceLoss):
    """Multi-level distillation of one view: KL, class and batch correlations, summed over several temperatures.

    The published training has two views of each image, the second of KL alone and unmasked: a second
    `MLKDLoss(class_weight=0.0, batch_weight=0.0, mask="none")` on the logits of that view. It couples the batch, so
    there is no `reduction`.

    Args:
        temperatures: each above 0; published 4 (CIFAR-100) or 1 (ImageNet), and 2, 3, 5, 6.
        instance_weight: at least 0; factor of the KL.
        class_weight: at least 0; factor of the classes' correlations, which grow with the squared batch size.
        batch_weight: at least 0; factor of the samples' correlations, which grow with the batch size.
        mask: "code" (the parts times the kept share, what ran), "paper" (sure samples and frequent classes left out) or
            "none".
        scale_by_t2: multiply the KL by T squared, as published.

    Gradient:
        To `logits`; the target and the masks are detached.

    Example:
        >>> import torch
        >>> loss = MLKDLoss(temperatures=(1.0, 2.0))
        >>> bool(loss(torch.zeros(4, 3), torch.zeros(4, 3)).abs() < 1e-6)
        True

    Reference:
        Jin, Wang, Lin, "Multi-Level Logit Distillation", CVPR 2023; see `limbeck.functional.multilevel.mlkd_loss`.
    """

    def __init__(
        self,
        *,
        temperatures: Sequence[float] = (4.0, 2.0, 3.0, 5.0, 6.0),
        instance_weight: float = 1.0,
        class_weight: float = 1.0,
        batch_weight: float = 1.0,
        mask: Mask = "code",
        scale_by_t2: bool = True,
    ) -> None:
        super().__init__()
        check_mlkd(temperatures, instance_weight, class_weight, batch_weight, mask)
        self.temperatures = tuple(temperatures)
        self.instance_weight = instance_weight
        self.class_weight = class_weight
        self.batch_weight = batch_weight
        self.mask: Mask = mask
        self.scale_by_t2 = scale_by_t2

    def forward(self, logits: Tensor, target_logits: Tensor, labels: Tensor | None = None) -> Tensor:
        """Both logits (*, C); `labels` is ignored."""
        return mlkd_loss(
            logits,
            target_logits,
            temperatures=self.temperatures,
            instance_weight=self.instance_weight,
            class_weight=self.class_weight,
            batch_weight=self.batch_weight,
            mask=self.mask,
            scale_by_t2=self.scale_by_t2,
        )

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return (
            f"temperatures={self.temperatures}, instance_weight={self.instance_weight}, "
            f"class_weight={self.class_weight}, batch_weight={self.batch_weight}, mask={self.mask!r}, "
            f"scale_by_t2={self.scale_by_t2}"
        )
