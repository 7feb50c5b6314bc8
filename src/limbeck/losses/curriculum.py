"""Distillation whose temperature trains against the student (CTKD)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from limbeck import functional
from limbeck.functional._check import Reduction, check_positive, check_range
from limbeck.functional.curriculum import reversal, scale_gradient
from limbeck.losses.base import DivergenceLoss


class CTKDLoss(DivergenceLoss):
    r"""Curriculum temperature: Hinton's KL at a temperature that learns to make it larger.

    .. math:: \tau^2 \, KL(p_t^\tau \| p_s^\tau), \quad \tau = \tau_0 + \tau_r \, \mathrm{sigmoid}(g)

    g is one number for all samples (the public code's Global-T; the paper's temperature per sample was not released),
    1 at the start, so that tau is 15.6 by default. Its gradient is multiplied by a factor from 0 to -1 that
    `set_epoch` moves: where the optimizer lowers the loss over the student, it raises the loss over g. tau squared is
    inside the graph, as in the public code, so part of that pull is on the bare factor. Give `loss.parameters()` to
    the student's optimizer; the public code lets weight decay act on g too.

    Args:
        min_temperature: tau_0 above 0, which tau does not fall below.
        temperature_range: tau_r above 0; tau stays below the sum of both.
        ramp_epochs: at least 0; epochs in which the reversal reaches its whole strength, along a half cosine. Published
            10 on CIFAR-100, 5 on ImageNet.
        scale_by_t2: multiply by tau squared, as published.
        reduction: "none", "mean" or "sum".

    Gradient:
        To `logits`, and reversed to g; the target is detached.

    Example:
        >>> import torch
        >>> loss = CTKDLoss(temperature_range=4.0)
        >>> loss.set_epoch(10)  # the reversal has its whole strength
        >>> optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
        >>> logits, target = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 9.0]])
        >>> before = loss(logits, target)
        >>> before.backward()
        >>> optimizer.step()
        >>> bool(loss(logits, target) > before)
        True

    Reference:
        Li et al., "Curriculum Temperature for Knowledge Distillation", arXiv 2211.16231; zhengli97/CTKD,
        `models/temp_global.py`.
    """

    strength: Tensor

    def __init__(
        self,
        *,
        min_temperature: float = 1.0,
        temperature_range: float = 20.0,
        ramp_epochs: float = 10.0,
        scale_by_t2: bool = True,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        check_positive("min_temperature", min_temperature)
        check_positive("temperature_range", temperature_range)
        check_range("ramp_epochs", ramp_epochs, 0.0, float("inf"))
        self.min_temperature = min_temperature
        self.temperature_range = temperature_range
        self.ramp_epochs = ramp_epochs
        self.scale_by_t2 = scale_by_t2
        self.raw_temperature = nn.Parameter(torch.ones(()))
        self.register_buffer("strength", torch.zeros(()), persistent=False)  # the epoch's, no memory
        self.set_epoch(1)

    def set_epoch(self, epoch: int) -> None:
        """Set the strength of the reversal to that of the epoch that begins, counted from 1."""
        self.strength.fill_(reversal(epoch, self.ramp_epochs))

    def temperature(self) -> Tensor:
        """Return tau, 0-d, with the gradient that the loss sends through it."""
        raw = scale_gradient(self.raw_temperature, self.strength)
        return self.min_temperature + self.temperature_range * torch.sigmoid(raw)

    def forward(self, logits: Tensor, target_logits: Tensor, labels: Tensor | None = None) -> Tensor:
        """Both logits (*, C); `labels` is ignored."""
        return functional.kl_divergence(
            logits,
            target_logits.detach(),
            temperature=self.temperature(),
            scale_by_t2=self.scale_by_t2,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return (
            f"min_temperature={self.min_temperature}, temperature_range={self.temperature_range}, "
            f"ramp_epochs={self.ramp_epochs}, scale_by_t2={self.scale_by_t2}"
        )
