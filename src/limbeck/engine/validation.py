"""What is measured after each epoch, and of the finished weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from limbeck.engine.judged import judge
from limbeck.engine.metrics import accuracy_by_teacher_score, measure
from limbeck.engine.robust_accuracy import robust_accuracy
from limbeck.errors import UserError
from limbeck.headlines import headline_of
from limbeck.measures import JUDGES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from limbeck.config import Recipe
    from limbeck.data import DataBundle
    from limbeck.engine.optimizer import WeightAverage
    from limbeck.engine.ranks import Ranks
    from limbeck.engine.teachers import Teacher

Split = Literal["validation", "test"]


def best_by(recipe: Recipe) -> str:
    """Return the metric of the validation split that the best epoch is chosen by; the first of equals."""
    return "robust" if recipe.task == "adversarial" else headline_of(recipe.task).main.key


class Validator:
    """Metrics on the validation and test splits of a run.

    Args:
        recipe: Of the run.
        data: Its data.
        teachers: Its teachers; the agreement is with the first.
        predict: Returns the logits of a network on a split, or raises.
        place: Which of the ranks that share the images this is.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: DataBundle,
        teachers: Sequence[Teacher],
        predict: Callable[[Split, nn.Module], Tensor],
        place: Ranks,
    ) -> None:
        self.recipe, self.data, self.predict, self.place = recipe, data, predict, place
        self.teacher = teachers[0] if teachers else None

    def measure_epoch(self, model: nn.Module, average: WeightAverage | None) -> dict[str, Any]:
        """Return the metrics of the epoch's line, by key.

        Args:
            model: What the run would be known for if it ended now.
            average: Averaged weights, which have a line of their own outside of adversarial training.
        """
        adversarial = self.recipe.task == "adversarial"
        if self.recipe.protocol == "paper":
            # Not attacked: nothing may be chosen by it, and an attack on all test images costs a share of an epoch.
            return {"validation": None, "test": self.measure("test", model, attacked=False)}
        if not len(self.data.validation):
            return {"validation": None} | ({} if average is None or adversarial else {"ema_validation": None})
        if self.recipe.task in JUDGES:
            averaged = {} if average is None else {"ema_validation": self.measure("validation", average.model)}
            return {"validation": self.measure("validation", model)} | averaged
        logits = self.predict("validation", model)
        lines: dict[str, Any] = {"validation": self.measure("validation", model, logits)}
        if average is not None and not adversarial:
            lines["ema_validation"] = self.measure("validation", average.model)
        if self.teacher is not None:
            labels = self.data.validation.labels.cpu()
            lines["accuracy_by_teacher_score"] = accuracy_by_teacher_score(
                logits, labels, self.teacher.validation_logits
            )
        return lines

    def measure(
        self, split: Split, model: nn.Module, logits: Tensor | None = None, *, attacked: bool = True
    ) -> dict[str, Any]:
        """Return the metrics of a network on a split that is not empty, robust accuracy too in adversarial training.

        Args:
            split: Which images.
            model: The network.
            logits: What it says of them, if that is known.
            attacked: Whether robust accuracy is measured where the task is adversarial training.

        Raises:
            UserError: The images cannot be attacked.
        """
        source = self.data.validation if split == "validation" else self.data.test
        if self.recipe.task in JUDGES:
            return judge(self.recipe.task, model, source, self.data, self.place).metrics
        targets = None
        if self.teacher is not None:
            targets = self.teacher.validation_logits if split == "validation" else self.teacher.test_logits
        logits = self.predict(split, model) if logits is None else logits
        metrics = measure(logits, source.labels.cpu(), targets, self.data.groups)
        if attacked and self.recipe.task == "adversarial":
            try:
                metrics["robust"] = robust_accuracy(model, source, self.recipe.adversary, self.place)
            except ValueError as error:  # such as pixels outside of [0, 1], or a gradient that is not finite
                raise UserError(f"the {split} split under attack: {error}") from error
        return metrics
