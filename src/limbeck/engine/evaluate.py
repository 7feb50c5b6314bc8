"""The metrics of a finished run, computed again from its weights."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, cast

import numpy as np
import torch

from limbeck.adversary.robustness import robustbench
from limbeck.config_files import load_recipe
from limbeck.engine import ranks, run_folder
from limbeck.engine.corrupted import with_corrupted
from limbeck.engine.fit import open_device
from limbeck.engine.judged import judge
from limbeck.engine.lock import locked
from limbeck.engine.metrics import measure, predict
from limbeck.engine.robustness import evaluate_robustness
from limbeck.engine.run_folder import disk_errors, read_results, write_json
from limbeck.engine.shifted import measure_shifted
from limbeck.engine.teachers import Resources, load_file, load_trained
from limbeck.errors import Interrupted, UserError, reason
from limbeck.measures import JUDGES

if TYPE_CHECKING:
    from torch import Tensor, nn

    from limbeck.config import Recipe, ShiftedTests
    from limbeck.config_adversary import AttackRequest
    from limbeck.data import DataBundle
    from limbeck.engine.progress import Reporter
    from limbeck.engine.signals import StopRequest

Which: TypeAlias = Literal["last", "best", "ema"]


class OpenRun(NamedTuple):
    """A finished run whose data are what they were.

    Attributes:
        which: The weights that were asked for, or those that the run reports.
        results: Content of results.json.
        recipe: Of the run.
        data: On the run's device.
        model: The network with the weights, on that device.
    """

    which: Which
    results: dict[str, Any]
    recipe: Recipe
    data: DataBundle
    model: nn.Module

    @property
    def reported(self) -> Which:
        """The weights that the run stands for."""
        return cast("Which", self.results.get("reported", "last"))


def open_run(run: Path, which: Which | None, shifted: ShiftedTests | None = None) -> OpenRun:
    """Open a finished run.

    Args:
        run: Its folder.
        which: Weights after the last epoch, those with the best validation accuracy, or the averaged ones; None is
            what the run reports.
        shifted: Further test images, in place of those that the run's recipe names.

    Raises:
        UserError: The run is not finished, has no such weights, its data are not what they were, or a file of it is
            damaged.
    """
    results = read_results(run)
    recipe = load_recipe(str(run / run_folder.CONFIG))
    device = open_device(recipe.train.device)
    options = recipe.data
    if shifted is not None:
        if not options.stored:
            raise UserError(f"{run}: --shifted expected a run on images in files, got one on `{options.name}`")
        options = options.model_copy(update={"shifted_tests": shifted})
    data = Resources().data(options, device)
    if data.fingerprint != results["data_fingerprint"]:
        raise UserError(
            f"{run}: the data `{data.name}` expected those of the run, got others; install its version of them"
        )
    chosen = which or results.get("reported", "last")
    model = load_trained(run, run_folder.WEIGHTS[chosen], data)[0].to(device)
    return OpenRun(chosen, results, recipe, data, model)


def evaluate(run: Path, *, which: Which | None = None, shifted: ShiftedTests | None = None) -> dict[str, Any]:
    """Return the metrics of a finished run's weights, on its validation and test splits.

    Nothing is written. The agreement with the teacher is with what the run's predictions.npz says of it, so the
    teacher's own run may be gone; without that file the agreement is None.

    Args:
        run: Folder of the run.
        which: See `open_run`.
        shifted: See `open_run`.

    Returns:
        `{"weights": which, "epoch": ..., "validation": metrics or None, "test": metrics}`, and `shifted` with the
        metrics on each further test set if there are some.

    Raises:
        UserError: See `open_run`.
    """
    opened = open_run(run, which, shifted)
    metrics: dict[str, Any] = {
        "weights": opened.which,
        "epoch": opened.results[opened.which]["epoch"],
        "validation": None,
    }
    for split, source in (("validation", opened.data.validation), ("test", opened.data.test)):
        if len(source) and opened.recipe.task in JUDGES:
            metrics[split] = judge(opened.recipe.task, opened.model, source, opened.data, ranks.here()).metrics
        elif len(source):
            targets = _teacher_logits(run, split)
            logits = predict(opened.model, source, ranks.here())
            metrics[split] = measure(logits, source.labels, targets, opened.data.groups)
            if opened.results["teachers"] and targets is None:
                metrics[split]["agreement"] = None
    metrics |= measure_shifted(opened.model, opened.data, ranks.here())
    return with_corrupted(metrics, opened.model, opened.data, ranks.here())


def evaluate_file(recipe: Recipe, weights: Path) -> dict[str, Any]:
    """Return the metrics of a file of weights.

    Args:
        recipe: Its `model`, `data` and `train.device` are read.
        weights: Our .safetensors or a public file, see `limbeck.models.weights`.

    Returns:
        `{"validation": metrics or None, "test": metrics}`, and `shifted` as of `evaluate`.

    Raises:
        UserError: The file or the data are missing or damaged, or do not fit the network.
    """
    data = Resources().data(recipe.data, open_device(recipe.train.device))
    model = load_file(recipe.model, str(weights), data, recipe.task)[0].to(data.device)
    parts = {"validation": data.validation, "test": data.test}
    place = ranks.here()
    if recipe.task in JUDGES:
        found = {name: part for name, part in parts.items() if len(part)}
        judged = {name: judge(recipe.task, model, part, data, place).metrics for name, part in found.items()}
        return {"validation": None, "test": None} | judged
    metrics = {
        name: measure(predict(model, part, place), part.labels, groups=data.groups) if len(part) else None
        for name, part in parts.items()
    }
    return with_corrupted(metrics | measure_shifted(model, data, place), model, data, place)


# --- under attack -----------------------------------------------------------------------------------------


def attack_run(
    run: Path,
    request: AttackRequest,
    *,
    which: Which | None,
    reporter: Reporter,
    stop: StopRequest | None = None,
) -> dict[str, Any]:
    """Return what attacks leave of a finished run's accuracy on its test images; its folder keeps that.

    Args:
        run: Folder of the run.
        request: Attacks, radii, norm; a file for RobustBench's entry at the first radius.
        which: See `open_run`. The files of weights that the run does not report have names of their own.
        reporter: Whom to tell.
        stop: Says when to stop early.

    Returns:
        What robustness.json holds.

    Raises:
        Interrupted: Ctrl-C or another signal; the message says how to go on.
        UserError: See `open_run` and `evaluate_robustness`; or another process has the folder.
    """
    opened = open_run(run, which)
    with locked(run, "RUN"):
        return _attack(opened, request, run, reporter, stop)


def attack_file(recipe: Recipe, weights: Path, request: AttackRequest, *, reporter: Reporter) -> dict[str, Any]:
    """Return what attacks leave of the accuracy of a file of weights; `attack_folder` keeps that.

    Args:
        recipe: Its `model`, `data`, `adversary` and `train.device` are read.
        weights: Our .safetensors or a public file, see `limbeck.models.weights`.
        request: See `attack_run`.
        reporter: Whom to tell.
    """
    data = Resources().data(recipe.data, open_device(recipe.train.device))
    model = load_file(recipe.model, str(weights), data, recipe.task)[0].to(data.device)
    folder = attack_folder(weights)
    with locked(folder, "--weights"):
        return _attack(OpenRun("last", {}, recipe, data, model), request, folder, reporter)


def attack_folder(weights: Path) -> Path:
    """Return the folder that keeps what attacks leave of the accuracy of a file of weights."""
    return Path("runs") / f"evaluate-{weights.stem}"


def _attack(
    opened: OpenRun, request: AttackRequest, folder: Path, reporter: Reporter, stop: StopRequest | None = None
) -> dict[str, Any]:
    recipe = opened.recipe
    norm = request.norm or recipe.adversary.norm
    epsilons = request.epsilons or (recipe.adversary.epsilon,)
    others: list[str] = [opened.which] if opened.which != opened.reported else []
    others += [norm] if norm != recipe.adversary.norm else []
    try:
        content = evaluate_robustness(
            opened.model,
            opened.data.test,
            recipe.model_copy(update={"adversary": recipe.adversary.model_copy(update={"norm": norm})}),
            attacks=request.attacks or recipe.adversary.attacks,
            epsilons=epsilons,
            folder=folder,
            reporter=reporter,
            stop=stop,
            weights=opened.which,
            suffix="".join(f"-{other}" for other in others),
        )
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"{folder}: stopped; what AutoAttack has finished is kept, so go on with the same command"
        ) from error
    if request.robustbench and ranks.here().lead:
        footnote = "It uses additional generated images in training." if recipe.data.generated else ""
        entry = robustbench(
            content, epsilons[0], dataset=opened.data.name, architecture=recipe.model.name, footnote=footnote
        )
        with disk_errors(request.robustbench, "--robustbench"):
            write_json(request.robustbench, entry)
    return content


# --- files of the run -------------------------------------------------------------------------------------


def _teacher_logits(run: Path, split: str) -> Tensor | None:
    path, name = run / run_folder.PREDICTIONS, f"teacher_{split}_logits"
    if not path.is_file():
        return None
    try:
        with np.load(path) as predictions:
            return torch.from_numpy(predictions[name]) if name in predictions else None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{path} cannot be read ({reason(error)}); delete it to evaluate without the agreement with the teacher"
        ) from error
