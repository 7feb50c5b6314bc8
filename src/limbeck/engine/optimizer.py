"""SGD, AdamW and LAMB, with weight decay on all parameters or on matrices only; the averaged copy of the weights."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from limbeck.engine.lamb import LAMB
from limbeck.engine.layer_decay import factors

if TYPE_CHECKING:
    from limbeck.config import OptimizerOptions

FUSED_DEVICES = ("cpu", "cuda")  # one kernel for all parameters; on a small network half the time of the loop


def build_optimizer(
    model: nn.Module, options: OptimizerOptions, student: nn.Module | None = None
) -> torch.optim.Optimizer:
    """Return the optimizer of all parameters of a module that is already on its device.

    With `decay_norms_and_biases` off, weight decay reaches parameters of two and more dimensions only. With
    `layer_decay`, a group's learning rate is the run's times its `factor`.

    Args:
        model: All that trains.
        options: Of the optimizer.
        student: The network in it that layers count in; `model` itself by default.

    Raises:
        UserError: Learning rates are to fall by layers, and the network has none that can be told.
    """
    groups = _parameter_groups(model, options, student or model)
    fused = next(model.parameters()).device.type in FUSED_DEVICES
    match options.name:
        case "sgd":
            return torch.optim.SGD(
                groups,
                lr=options.learning_rate,
                momentum=options.momentum,
                nesterov=options.nesterov and options.momentum > 0,
                fused=fused,
            )
        case "adamw":
            betas = (options.momentum, options.beta2)
            return torch.optim.AdamW(groups, lr=options.learning_rate, betas=betas, fused=fused)
        case "lamb":
            return LAMB(groups, lr=options.learning_rate, betas=(options.momentum, options.beta2))


def _parameter_groups(model: nn.Module, options: OptimizerOptions, student: nn.Module) -> list[dict[str, Any]]:
    """Return groups by learning rate and weight decay; what is not the student's has the whole learning rate."""
    parameters: list[Tensor] = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if options.layer_decay == 1:
        return _groups_by_decay(parameters, options)
    factor = factors(student, options.layer_decay)
    of: dict[float, list[Tensor]] = {}
    for parameter in parameters:
        of.setdefault(factor.get(id(parameter), 1.0), []).append(parameter)
    return [{**group, "factor": value} for value in sorted(of) for group in _groups_by_decay(of[value], options)]


def _groups_by_decay(parameters: list[Tensor], options: OptimizerOptions) -> list[dict[str, Any]]:
    if options.decay_norms_and_biases:
        return [{"params": parameters, "weight_decay": options.weight_decay}]
    matrices = [parameter for parameter in parameters if parameter.ndim >= 2]
    others = [parameter for parameter in parameters if parameter.ndim < 2]
    groups = [(matrices, options.weight_decay), (others, 0.0)]
    return [{"params": group, "weight_decay": decay} for group, decay in groups if group]


class WeightAverage:
    """Exponential moving average of a model's parameters and buffers; integer buffers, BatchNorm's counter, are copied.

    Over steps, the s-th after the warm-up has the decay `min(decay, (1 + s) / (10 + s))`: otherwise the untrained
    weights would weigh on short runs. Over epochs' ends, the average begins as the first one's weights and the decay
    is constant: what averaging a file of each epoch comes to, as the GKL authors do, with one copy in their place.

    Args:
        model: What is averaged; its own tensors are never written to.
        decay: Decay, in [0, 1).
        warmup_steps: So many updates the average is the weights themselves.
        constant: Whether the decay is the same at every update after the first.
    """

    def __init__(self, model: nn.Module, decay: float, *, warmup_steps: int = 0, constant: bool = False) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.warmup_steps, self.constant = decay, warmup_steps, constant
        self._pairs = list(zip(_tensors(self.model), _tensors(model), strict=True))

    def _decay(self, update: int) -> float:
        if self.constant:
            return 0.0 if update == 1 else self.decay
        step = update - self.warmup_steps
        return min(self.decay, (1 + step) / (10 + step)) if step > 0 else 0.0

    @torch.no_grad()
    def update(self, number: int) -> None:
        """Move the average towards the model; updates are counted from 1."""
        decay = self._decay(number)
        averages = [average for average, _ in self._pairs if average.is_floating_point()]
        current = [value for _, value in self._pairs if value.is_floating_point()]
        torch._foreach_lerp_(averages, current, 1 - decay)
        for average, value in self._pairs:
            if not average.is_floating_point():
                average.copy_(value)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
