"""LAMB: Adam whose step in each tensor is scaled to the tensor's length (You et al. 2019, arXiv 1904.00962)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class LAMB(torch.optim.Optimizer):
    """Algorithm 2 of the paper, with its bias correction.

    r = m / (sqrt(v) + eps) + weight_decay * w of each tensor w, m and v the corrected averages of Adam, and then
    w <- w - lr * (|w| / |r|) * r. The ratio is 1 where |w| or |r| is 0, and in groups without weight decay, as in
    timm's LAMB, which trained the published ImageNet recipes: norms and biases keep Adam's step. The paper's bounds
    of the ratio are left out, as there; a bound on the gradient's norm is `optimizer.clip_norm`.

    All tensors of a group go through the same kernels, and no number is read back from the device.

    Args:
        params: Parameters or groups of them; a group's are on one device.
        lr: Learning rate.
        betas: Decays of the averages of the gradient and of its square.
        eps: Added to the root of the second average.
        weight_decay: Factor of the weights inside the ratio.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "step": 0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # no loss comes back
        """Move all parameters that have a gradient.

        Raises:
            TypeError: There is a closure.
        """
        if closure is not None:
            raise TypeError("`closure` expected None, since a step makes no backward pass, got a function")
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                group["step"] += 1
                self._move(group, parameters)

    def _move(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        means, squares = self._averages(parameters)
        (beta1, beta2), step = group["betas"], group["step"]
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, (1 - beta2**step) ** 0.5)
        torch._foreach_add_(roots, group["eps"])
        updates = torch._foreach_div(means, roots)
        torch._foreach_div_(updates, 1 - beta1**step)
        if group["weight_decay"]:
            torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
            torch._foreach_mul_(updates, _trust_ratios(parameters, updates))
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])

    def _averages(self, parameters: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in parameters]
        return [state["mean"] for state in states], [state["square"] for state in states]


def _trust_ratios(parameters: list[Tensor], updates: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    lengths = torch.stack(torch._foreach_norm(parameters))
    steps = torch.stack(torch._foreach_norm(updates))
    return torch.where((lengths > 0) & (steps > 0), lengths / steps, 1.0).unbind()
