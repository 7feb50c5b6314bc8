"""Correlation congruence (CC) as a module, in both forms that bear the name."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from limbeck.functional.congruence import Kernel, check_kernel, kernel_congruence, neighbour_congruence
from limbeck.losses._linear import check_width, of_flat, width
from limbeck.losses.feature import FeatureLoss, Features, Shapes, check_shapes

Form = Literal["neighbour", "kernel"]


class CCLoss(FeatureLoss):
    """Correlation congruence between linear embeddings of both networks' features, usually pooled ones.

    It couples the batch, so it has no `reduction`. Several layers, each with its embeddings, are summed. Both
    embeddings are trained, as published: nothing but the small weight (0.02) and the other terms keeps them from
    becoming constant. Give this module's parameters to the optimizer.

    Args:
        shapes: of the student's features, one per layer, without N.
        target_shapes: of the teacher's.
        form: "neighbour", the public code's loss, or "kernel", the paper's; the options behind `dim` are the latter's.
        dim: width of the embeddings.
        kernel: "gaussian" or "bilinear".
        gamma: of the Gaussian kernel, above 0.
        degree: of its Taylor sum, at least 1.
        normalize: bring embeddings to length one.
        squared: square the Frobenius norm.

    Gradient:
        To `features` and both embeddings; none to `target_features`.

    Example:
        >>> import torch
        >>> CCLoss([(8,)], [(16,)])(torch.randn(4, 8), torch.randn(4, 16)) >= 0
        tensor(True)

    Reference:
        arXiv 1904.01802; see `limbeck.functional.neighbour_congruence` and `kernel_congruence`.
    """

    def __init__(
        self,
        shapes: Shapes,
        target_shapes: Shapes,
        *,
        form: Form = "neighbour",
        dim: int = 128,
        kernel: Kernel = "gaussian",
        gamma: float = 0.4,
        degree: int = 2,
        normalize: bool = True,
        squared: bool = True,
    ) -> None:
        super().__init__()
        check_shapes(shapes, target_shapes)
        if form not in get_args(Form):
            raise ValueError(f"`form` expected 'neighbour' or 'kernel', got {form!r}")
        check_width("dim", dim)
        check_kernel(kernel, gamma, degree)
        self.form, self.kernel, self.gamma, self.degree = form, kernel, gamma, degree
        self.normalize, self.squared = normalize, squared
        self.embeddings = nn.ModuleList(nn.Linear(width(shape), dim) for shape in shapes)
        self.target_embeddings = nn.ModuleList(nn.Linear(width(shape), dim) for shape in target_shapes)

    def forward(self, features: Features, target_features: Features) -> Tensor:
        """(N, D) or (N, D, H, W) of each layer, as many layers as the constructor was told."""
        pairs = self.pairs(features, target_features, len(self.embeddings))
        layers = zip(pairs, self.embeddings, self.target_embeddings, strict=True)
        return torch.stack([self._between(*pair, own, target) for pair, own, target in layers]).sum()

    def _between(self, features: Tensor, target_features: Tensor, own: nn.Module, target: nn.Module) -> Tensor:
        embedded = of_flat(own, features, "features")
        target_embedded = of_flat(target, target_features.detach(), "target_features")
        if self.form == "neighbour":
            return neighbour_congruence(embedded, target_embedded)
        return kernel_congruence(
            embedded,
            target_embedded,
            kernel=self.kernel,
            gamma=self.gamma,
            degree=self.degree,
            normalize=self.normalize,
            squared=self.squared,
        )

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        if self.form == "neighbour":
            return "form='neighbour'"
        return (
            f"form='kernel', kernel={self.kernel!r}, gamma={self.gamma}, degree={self.degree}, "
            f"normalize={self.normalize}, squared={self.squared}"
        )
