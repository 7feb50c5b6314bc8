"""`limbeck.fit` and `limbeck.compare`: the engine of the command line for your own networks, loaders and teachers."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from torch import nn

from limbeck.analysis.comparison import summarise
from limbeck.analysis.report import write_report
from limbeck.config import SaveOptions, TrainOptions
from limbeck.config_arguments import Settings, comparison_recipe, read_losses, read_rows, run_recipe
from limbeck.data.user import first_inputs, first_two, user_data
from limbeck.engine import run_folder
from limbeck.engine.compare_given import compare_given
from limbeck.engine.fit import open_device, train_run
from limbeck.engine.given import (
    Given,
    count_outputs,
    device_of,
    fingerprint,
    load_weights,
    refuse_what_cannot_train,
    restored,
)
from limbeck.engine.progress import Reporter, open_reporter
from limbeck.engine.signals import StopRequest
from limbeck.engine.students import Students
from limbeck.engine.teachers import GivenModule, Resources
from limbeck.errors import Interrupted, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import torch
    from torch import Tensor

    from limbeck.analysis.comparison import Comparison
    from limbeck.config import OptimizerOptions, ScheduleOptions, Term
    from limbeck.config_arguments import Loss
    from limbeck.data import DataBundle
    from limbeck.data.user import Unpack

    Teachers = nn.Module | Sequence[nn.Module] | None
    OptimizerName = Literal["sgd", "adamw"]
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
        """Top-1 on the validation loader after the last epoch, from 0 to 1; None without such a loader."""
        return self._top1("validation")

    @property
    def test(self) -> float | None:
        """Top-1 on the test loader after the last epoch, from 0 to 1; None without such a loader."""
        return self._top1("test")

    @property
    def weights(self) -> Path:
        """File of the last epoch's weights, in safetensors' format."""
        return self.folder / run_folder.WEIGHTS["last"]

    def _top1(self, split: str) -> float | None:
        metrics = self.results["last"][split]
        return None if metrics is None else float(metrics["top1"])

    def __str__(self) -> str:
        shown = [f"{split} {value:.2%}" for split in ("validation", "test") if (value := self._top1(split)) is not None]
        return f"{', '.join(['top-1', *shown]) if shown else 'trained'} ({self.folder})".replace("top-1, ", "top-1 ")


class _Inputs(NamedTuple):
    """What both calls are given beside the student: loaders, teachers, device."""

    train: Iterable[Any]
    val: Iterable[Any] | None
    test: Iterable[Any] | None
    unpack: Unpack
    teachers: list[nn.Module]


def fit(
    model: nn.Module,
    train: Iterable[Any],
    val: Iterable[Any] | None = None,
    test: Iterable[Any] | None = None,
    *,
    teacher: Teachers = None,
    losses: Loss | None = None,
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
        model: Returns logits `(N, C)`. It holds the last weights afterwards, in eval mode on `device`.
        train: Yields batches `(inputs, labels)`, with a length, such as a DataLoader. It decides on batches and views.
            Labels are class numbers `(N,)`, or probabilities `(N, C)`.
        val: What the best epoch is chosen on. Labels are class numbers.
        test: What is reported. Nothing is chosen on it.
        teacher: One or several, which return logits `(N, C)` of the same inputs; a divergence is averaged over them.
            They are frozen in eval mode meanwhile and given back as they were.
        losses: A name of `limbeck losses` ("ce" is short for cross-entropy), or a term of `limbeck.config` with
            options, such as `GKLTerm(weight_power=0.3)`; one divergence means cross-entropy beside it. A list means
            exactly its terms. Cross-entropy by default without a teacher.
        epochs: Passes over `train`.
        optimizer: "sgd", "adamw", or all its options.
        learning_rate: The peak; by default 0.05 for "sgd", 0.001 for "adamw", or what the options say.
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
    inputs = _Inputs(train, val, test, unpack or first_two, _modules(teacher))
    place = _device(device, model, "model")
    terms = _losses(losses, inputs.teachers)
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
        _size(train),
    )
    names = [type(each).__name__ for each in inputs.teachers]
    recipe = run_recipe(settings, terms, teachers=names, seed=seed, title=type(model).__name__)
    _refuse_unless_resumed(run, resume)
    with _opened(inputs, place, progress) as (stop, reporter, sources):
        data = _open_data(inputs, model, place)
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
            _refuse_other_inputs(run, results, data, sources)
            load_weights(run / run_folder.WEIGHTS["last"], model, "model")
    model.eval()
    return FitResult(run, results)


def compare(
    student: Callable[..., nn.Module],
    teacher: Teachers,
    train: Iterable[Any],
    val: Iterable[Any] | None = None,
    test: Iterable[Any] | None = None,
    *,
    losses: Mapping[str, Loss] | Sequence[Loss],
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
    inputs = _Inputs(train, val, test, unpack or first_two, _modules(teacher))
    students = Students(student)
    first = students.new(0)
    place = _device(device, first, "student")
    refuse_what_cannot_train(first, inputs.teachers)
    rows = {name: _with_teachers(terms, inputs.teachers) for name, terms in read_rows(losses).items()}
    settings = Settings(
        epochs,
        optimizer,
        learning_rate,
        schedule,
        loop or TrainOptions(),
        save or SaveOptions(),
        str(place),
        _size(train),
    )
    names = [type(each).__name__ for each in inputs.teachers]
    title = title or " from ".join([type(first).__name__, *([" and ".join(names)] if names else [])])
    recipe = comparison_recipe(settings, rows, teachers=names, seed=0, title=title, baseline=baseline)
    with _opened(inputs, place, progress) as (stop, reporter, sources):
        data = _open_data(inputs, first, place)
        comparison = Path(folder)
        for results in comparison.glob(f"*/setting*/seed*/{run_folder.RESULTS}"):
            _refuse_other_inputs(comparison, run_folder.read_results(results.parent), data, sources)
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


# --- what both calls begin with ---------------------------------------------------------------------------


def _modules(teacher: Teachers) -> list[nn.Module]:
    modules = [] if teacher is None else [teacher] if isinstance(teacher, nn.Module) else list(teacher)
    for module in modules:
        if not isinstance(module, nn.Module):
            raise UserError(f"`teacher` expected a torch.nn.Module, or several, got {type(module).__name__}")
    return modules


def _losses(losses: Loss | None, teachers: Sequence[nn.Module]) -> tuple[Term, ...]:
    if losses is None and teachers:
        raise UserError('`teacher` was given, but no loss to learn from it with; pass `losses`, such as losses="gkl"')
    return _with_teachers(read_losses("ce" if losses is None else losses), teachers)


def _with_teachers(terms: tuple[Term, ...], teachers: Sequence[nn.Module]) -> tuple[Term, ...]:
    """Return the terms, or raise UserError if one of them has nobody to learn from."""
    divergences = [term.name for term in terms if term.name != "cross_entropy"]
    if divergences and not teachers:
        raise UserError(f"the loss `{divergences[0]}` expected a network to learn from in `teacher`, got none")
    return terms


def _device(device: str | torch.device | None, module: nn.Module, who: str) -> torch.device:
    if not isinstance(module, nn.Module):
        raise UserError(f"`{who}` expected a torch.nn.Module, got {type(module).__name__}")
    own = device_of(module, who)
    return own if device is None else open_device(str(device))


def _size(train: Iterable[Any]) -> int:
    """Return the loader's batch size, for config.yaml; 1 where it does not tell."""
    size = getattr(train, "batch_size", None)
    return size if isinstance(size, int) and size > 0 else 1


def _refuse_unless_resumed(run: Path, resume: bool) -> None:
    if not resume and (run / run_folder.CONFIG).is_file():
        state = "a finished run" if (run / run_folder.RESULTS).is_file() else "an unfinished run"
        raise UserError(f"{run}: holds {state}; pass resume=True to go on with it, or choose another `folder`")


@contextmanager
def _opened(
    inputs: _Inputs, device: torch.device, progress: bool
) -> Iterator[tuple[StopRequest, Reporter, list[GivenModule]]]:
    """Freeze the teachers, listen for signals and show progress; undo all of it at the end."""
    reporter = open_reporter() if progress else Reporter()
    with restored(inputs.teachers), StopRequest() as stop, reporter:
        for teacher in inputs.teachers:
            teacher.to(device).eval().requires_grad_(False)
        yield stop, reporter, [GivenModule(teacher, fingerprint(teacher, "teacher")) for teacher in inputs.teachers]


def _open_data(inputs: _Inputs, model: nn.Module, device: torch.device) -> DataBundle:
    """Return the loaders as a data set of as many classes as the model has outputs, which every teacher must have."""
    first: Tensor = first_inputs(inputs.train, inputs.unpack).to(device)
    classes = count_outputs(model.to(device), first, "model")
    for teacher in inputs.teachers:
        if (got := count_outputs(teacher, first, "teacher")) != classes:
            raise UserError(f"`teacher` expected {classes} outputs, as the student has, got {got}")
    return user_data(inputs.train, inputs.val, inputs.test, unpack=inputs.unpack, num_classes=classes, device=device)


def _refuse_other_inputs(
    run: Path, results: Mapping[str, Any], data: DataBundle, sources: Sequence[GivenModule]
) -> None:
    """Raise UserError if a finished run of a folder was made from other loaders or teachers."""
    teachers = [source.fingerprint for source in sources]
    if results["data_fingerprint"] != data.fingerprint:
        raise UserError(f"{run}: holds finished runs of other data; choose another `folder`, or delete it")
    if results["teacher_fingerprints"] != teachers:
        raise UserError(f"{run}: holds finished runs of another teacher; choose another `folder`, or delete it")
