"""`limbeck.fit` and `limbeck.compare`: the engine of the command line for your own networks, loaders and teachers."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from limbeck.analysis.comparison import summarise
from limbeck.analysis.report import write_report
from limbeck.api_inputs import (
    Inputs,
    batch_size,
    device_for,
    modules,
    open_data,
    opened,
    read_terms,
    refuse_other_inputs,
    refuse_unless_resumed,
    with_counterpart,
)
from limbeck.config import SaveOptions, TrainOptions
from limbeck.config_arguments import Settings, comparison_recipe, read_rows, run_recipe
from limbeck.data.user import first_two
from limbeck.engine import run_folder
from limbeck.engine.compare_given import compare_given
from limbeck.engine.fit import train_run
from limbeck.engine.given import Given, load_weights, refuse_what_cannot_train
from limbeck.engine.robustness import read_figures
from limbeck.engine.students import Students
from limbeck.engine.teachers import Resources
from limbeck.errors import Interrupted, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import torch

    from limbeck.analysis.comparison import Comparison
    from limbeck.config import AdversaryOptions, OptimizerOptions, ScheduleOptions
    from limbeck.config_arguments import Loss
    from limbeck.data.user import Unpack

    Teachers = nn.Module | Sequence[nn.Module] | None
    OptimizerName = Literal["sgd", "adamw", "lamb"]
    ScheduleName = Literal["constant", "cosine", "onecycle"]


__all__ = ["FitResult", "compare", "fit"]


@dataclass(frozen=True)
class FitResult:
    """A finished run.

    Attributes:
        folder: Of the run.
        results: What `results.json` holds.
    """

    folder: Path
    results: Mapping[str, Any]

    @property
    def validation(self) -> float | None:
        """Top-1 of the reported weights on the validation loader, from 0 to 1; None without such a loader."""
        return self._top1("validation")

    @property
    def test(self) -> float | None:
        """Top-1 of the reported weights on the test loader, from 0 to 1; None without such a loader."""
        return self._top1("test")

    @property
    def weights(self) -> Path:
        """File of the reported weights, in safetensors' format.

        They are the last epoch's; in adversarial training those that were most robust on the validation loader, or
        without one the averaged ones if there are some.
        """
        return self.folder / run_folder.WEIGHTS[self._reported]

    @property
    def robustness(self) -> dict[str, Any] | None:
        """What robustness.json holds of the attacks on the test loader; None where none was made."""
        return read_figures(self.folder)

    @property
    def _reported(self) -> str:
        return str(self.results.get("reported", "last"))

    def _top1(self, split: str) -> float | None:
        metrics = self.results[self._reported][split]
        return None if metrics is None else float(metrics["top1"])

    def __str__(self) -> str:
        shown = [f"{split} {value:.2%}" for split in ("validation", "test") if (value := self._top1(split)) is not None]
        attacked = [f"{row['attack']} {row['accuracy']:.2%}" for row in (self.robustness or {"rows": ()})["rows"]]
        words = f"top-1 {', '.join(shown)}" if shown else "trained"
        warnings = [f"\nWARNING: {warning}." for warning in (self.robustness or {"warnings": ()})["warnings"]]
        return "".join([f"{', '.join([words, *attacked])} ({self.folder})", *warnings])


def fit(
    model: nn.Module,
    train: Iterable[Any],
    val: Iterable[Any] | None = None,
    test: Iterable[Any] | None = None,
    *,
    teacher: Teachers = None,
    losses: Loss | None = None,
    objective: AdversaryOptions | None = None,
    epochs: int = 30,
    optimizer: OptimizerName | OptimizerOptions = "sgd",
    learning_rate: float | None = None,
    schedule: ScheduleName | ScheduleOptions = "cosine",
    loop: TrainOptions | None = None,
    save: SaveOptions | None = None,
    unpack: Unpack | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    folder: str | Path = "runs/fit",
    resume: bool = False,
    progress: bool = True,
) -> FitResult:
    """Train a network of your own in place, from labels and from frozen teachers of your own if you have some.

    The run's folder is that of `limbeck train`: configuration, metrics, checkpoint, weights, predictions, results.
    A run that was stopped goes on with `resume=True` and ends with the weights of an unbroken one, to the bit, if what
    loader and network draw comes from the global generators of torch, Python and numpy or from a `torch.Generator` of
    the loader; see the page "Your own networks".

    Args:
        model: Returns logits `(N, C)`. It holds the reported weights afterwards, in eval mode on `device`.
        train: Yields batches `(inputs, labels)`, with a length, such as a DataLoader. It decides on batches and views.
            Labels are class numbers `(N,)`, or probabilities `(N, C)`.
        val: What the best epoch is chosen on. Labels are class numbers.
        test: What is reported. Nothing is chosen on it.
        teacher: One or several, which return logits `(N, C)` of the same inputs; a divergence is averaged over them.
            They are frozen in eval mode meanwhile and given back as they were.
        losses: A name of `limbeck losses` ("ce" is short for cross-entropy), or a term of `limbeck.config` with
            options, such as `GKLTerm(weight_power=0.3)`; one divergence means cross-entropy beside it. A list means
            exactly its terms. Cross-entropy by default without a teacher.
        objective: Adversarial training, such as `AdversaryOptions(epsilon=8 / 255)` of `limbeck.config`: divergences
            draw the logits of attacked images to those of the images. Pixels lie in [0, 1]; the model normalises them.
        epochs: Passes over `train`.
        optimizer: "sgd", "adamw", "lamb", or all its options.
        learning_rate: The peak; by default 0.05 ("sgd"), 0.001 ("adamw"), 0.005 ("lamb"), or what the options say.
        schedule: Of the learning rate: "constant", "cosine", "onecycle", or all its options.
        loop: Options of the loop, such as `precision` or `ema_decay`.
        save: When checkpoints and lines of metrics are written.
        unpack: Batch -> `(inputs, labels)`; by default the first two of a tuple or list.
        seed: Of what loader and network draw.
        device: Where to train; by default where the model lies.
        folder: Of the run.
        resume: Go on with the run in the folder; start it if there is none, load its weights if it is finished.
        progress: Show bars in a terminal, lines elsewhere.

    Returns:
        Folder, results, accuracies.

    Raises:
        Interrupted: A signal came, such as Ctrl-C; the state is saved.
        UserError: Something does not fit; one line says what, and the way out.

    Example:
        >>> import limbeck, torch, tempfile
        >>> loader = [(torch.eye(4), torch.arange(4))]
        >>> model = torch.nn.Linear(4, 4)
        >>> folder = tempfile.mkdtemp()
        >>> run = limbeck.fit(model, loader, val=loader, epochs=20, learning_rate=1.0, folder=folder, progress=False)
        >>> run.validation
        1.0
    """
    inputs = Inputs(train, val, test, unpack or first_two, modules(teacher))
    place = device_for(device, model, "model")
    terms = read_terms(losses, inputs.teachers, objective)
    refuse_what_cannot_train(model, inputs.teachers)
    run = Path(folder)
    settings = Settings(
        epochs,
        optimizer,
        learning_rate,
        schedule,
        loop or TrainOptions(),
        save or SaveOptions(),
        str(place),
        batch_size(train),
        objective,
    )
    names = [type(each).__name__ for each in inputs.teachers]
    recipe = run_recipe(settings, terms, teachers=names, seed=seed, title=type(model).__name__)
    refuse_unless_resumed(run, resume)
    with opened(inputs, place, progress, "call limbeck.fit again with resume=True") as (stop, reporter, sources):
        data = open_data(inputs, model, place, attacked=objective is not None)
        finished = (run / run_folder.RESULTS).is_file()
        try:
            results = train_run(
                recipe,
                run,
                resume=resume,
                reporter=reporter,
                stop=stop,
                resources=Resources(),
                sources=sources,
                given=Given(model, data),
            )
        except Interrupted as error:
            raise Interrupted(f"{error}; call limbeck.fit again with resume=True") from error
        if finished:
            refuse_other_inputs(run, results, data, sources)
        result = FitResult(run, results)
        if finished or "reported" in results:
            load_weights(result.weights, model, "model")
    model.eval()
    return result


def compare(
    student: Callable[..., nn.Module],
    teacher: Teachers,
    train: Iterable[Any],
    val: Iterable[Any] | None = None,
    test: Iterable[Any] | None = None,
    *,
    losses: Mapping[str, Loss] | Sequence[Loss],
    objective: AdversaryOptions | None = None,
    seeds: int = 3,
    baseline: str | None = None,
    epochs: int = 30,
    optimizer: OptimizerName | OptimizerOptions = "sgd",
    learning_rate: float | None = None,
    schedule: ScheduleName | ScheduleOptions = "cosine",
    loop: TrainOptions | None = None,
    save: SaveOptions | None = None,
    unpack: Unpack | None = None,
    device: str | torch.device | None = None,
    folder: str | Path = "runs/compare",
    title: str = "",
    progress: bool = True,
) -> Comparison:
    """Train students of your own with several losses on several seeds, and compare them.

    For a seed all losses start from the same weights and see the same batches. The folder is that of
    `limbeck compare`, with a report and pictures where matplotlib is installed. The same call goes on where it was
    stopped: finished runs are kept.

    Args:
        student: Builds a new network each time, called with nothing, or with `seed` if it has such a parameter; torch,
            Python and numpy are seeded before.
        teacher: As in `fit`; None where every loss learns from labels alone.
        train: As in `fit`.
        val: As in `fit`. Reported where there is no `test`.
        test: What is reported.
        losses: Row -> loss, each as in `fit`; or a list of losses, whose rows are called by their names.
        objective: As in `fit`.
        seeds: Runs per row, of the seeds 0 and on.
        baseline: Row that the paired differences are taken to; by default `kl`, or else the first.
        epochs: As in `fit`, as are `optimizer` to `unpack`.
        optimizer: See `fit`.
        learning_rate: See `fit`.
        schedule: See `fit`.
        loop: See `fit`.
        save: See `fit`.
        unpack: See `fit`.
        device: Where to train; by default where the student lies that the function builds.
        folder: Of the comparison.
        title: For table and report; by default the classes of student and teacher.
        progress: See `fit`.

    Returns:
        The rows with their figures; `print` shows the table.

    Raises:
        Interrupted: A signal came; everything is saved, and the same call goes on.
        UserError: Something does not fit; one line says what, and the way out.

    Example:
        >>> import limbeck, torch, tempfile
        >>> loader = [(torch.eye(4), torch.arange(4))]
        >>> build = lambda: torch.nn.Linear(4, 4)
        >>> options = {"seeds": 1, "epochs": 2, "folder": tempfile.mkdtemp(), "progress": False}
        >>> comparison = limbeck.compare(build, build(), loader, val=loader, losses=["ce", "kl"], **options)
        >>> [row.name for row in comparison.rows]
        ['ce', 'kl']
    """
    if val is None and test is None:
        raise UserError("`compare` expected images to compare on in `val` or `test`, got neither")
    if seeds < 1:
        raise UserError(f"`seeds` expected at least 1, got {seeds}")
    inputs = Inputs(train, val, test, unpack or first_two, modules(teacher))
    students = Students(student)
    first = students.new(0)
    place = device_for(device, first, "student")
    refuse_what_cannot_train(first, inputs.teachers)
    rows = {name: with_counterpart(terms, inputs.teachers, objective) for name, terms in read_rows(losses).items()}
    settings = Settings(
        epochs,
        optimizer,
        learning_rate,
        schedule,
        loop or TrainOptions(),
        save or SaveOptions(),
        str(place),
        batch_size(train),
        objective,
    )
    names = [type(each).__name__ for each in inputs.teachers]
    title = title or " from ".join([type(first).__name__, *([" and ".join(names)] if names else [])])
    recipe = comparison_recipe(settings, rows, teachers=names, seed=0, title=title, baseline=baseline)
    with opened(inputs, place, progress, "make the same call of limbeck.compare again") as (stop, reporter, sources):
        data = open_data(inputs, first, place, attacked=objective is not None)
        comparison = Path(folder)
        for results in comparison.glob(f"*/setting*/seed*/{run_folder.RESULTS}"):
            refuse_other_inputs(comparison, run_folder.read_results(results.parent), data, sources)
        del first  # its weights were looked at, no more
        compare_given(
            recipe,
            comparison,
            seeds=seeds,
            students=students,
            data=data,
            teachers=sources,
            reporter=reporter,
            stop=stop,
        )
    if find_spec("matplotlib"):
        write_report(comparison)
    return summarise(comparison)
