"""One run, from a recipe to a folder of results."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from limbeck.config import AugmentOptions
from limbeck.config_files import load_recipe
from limbeck.config_tasks import TAUGHT
from limbeck.data import Source, steps_per_epoch
from limbeck.draws import key
from limbeck.engine import ranks, run_folder
from limbeck.engine.checkpoint import load_checkpoint
from limbeck.engine.lock import locked
from limbeck.engine.loop import Trainer
from limbeck.engine.normalised import normalised_sizes, set_batch_norm
from limbeck.engine.objective import refuse_misfits
from limbeck.engine.progress import Reporter
from limbeck.engine.results import finish
from limbeck.engine.signals import StopRequest
from limbeck.engine.teachers import (
    Resources,
    WeightsFile,
    refuse_other_pixels,
    refuse_other_shape,
    refuse_seen_test_images,
    seen_pixels,
)
from limbeck.engine.views import without_memory
from limbeck.errors import Interrupted, UserError
from limbeck.measures import JUDGES
from limbeck.models import build_model
from limbeck.models.growing import FewerClasses, grow
from limbeck.models.weights import start_weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from limbeck.config import ModelOptions, Recipe, TeacherOptions, TrainOptions
    from limbeck.data import DataBundle
    from limbeck.engine.given import Given
    from limbeck.engine.teachers import TeacherSource

# Options of the data that a teacher's recipe takes from its student's, where both name the same images.
OF_THE_SAME_IMAGES = ("split_seed", "folder", "train_list", "test_list", "workers", "image_size", "test_resize")


def fit(recipe: Recipe, run: Path, *, resume: bool = False, reporter: Reporter | None = None) -> dict[str, Any]:
    """Train a recipe, or go on where its run was interrupted.

    Args:
        recipe: What to do. Teachers that it trains from a recipe are kept in the run's folder, as `teacher0` and on.
        run: Folder of the run.
        resume: Go on with the run in the folder; start it if there is none, return its results if it is finished.
        reporter: Whom to tell; nobody by default.

    Returns:
        What `results.json` holds.

    Raises:
        Interrupted: A signal came; the state is saved and the message says how to go on.
        UserError: The folder, the recipe, the data or the teachers do not fit, another process has the folder, or the
            training diverged.
    """
    with StopRequest() as stop, reporter or Reporter() as teller:
        try:
            return train_run(recipe, run, resume=resume, reporter=teller, stop=stop, resources=Resources())
        except Interrupted as error:
            command = f"limbeck train {run / run_folder.CONFIG} --run {run} --resume"
            raise Interrupted(f"{error}; continue with: {command}") from error


def train_run(
    recipe: Recipe,
    run: Path,
    *,
    resume: bool,
    reporter: Reporter,
    stop: StopRequest,
    resources: Resources,
    sources: Sequence[TeacherSource] | None = None,
    title: str | None = None,
    given: Given | None = None,
) -> dict[str, Any]:
    """Do what `fit` does, within a command that may hold many runs.

    Args:
        recipe: See `fit`.
        run: See `fit`.
        resume: See `fit`.
        reporter: Whom to tell.
        stop: Says when to stop early.
        resources: Data and teachers in memory.
        sources: The teachers; by default what the recipe says, trained if need be.
        title: Name of the run for the reporter; the recipe's by default.
        given: Student and data, if they are not what the recipe names.
    """
    place = ranks.here()
    if place.first_tells(lambda: run_folder.is_finished(run, recipe, resume=resume)):
        return run_folder.read_results(run)
    if recipe.incremental is not None and recipe.data.phase is None:
        from limbeck.engine.phases import train_phases  # it imports this file

        return train_phases(recipe, run, reporter=reporter, stop=stop, resources=resources, title=title)
    device = open_device(recipe.train.device)
    _check_precision(recipe.train, device)
    with locked(run):
        path = run / run_folder.CHECKPOINT
        state = load_checkpoint(path) if path.is_file() else None
        with _threads(recipe.train.threads, state["threads"] if state else None, path), _seeded(recipe.seed, device):
            data = given.data if given else _data(recipe, device, resources, reporter)
            student = given.model if given else _build_student(recipe, data, reporter=None if state else reporter)
            model = _prepare(student, recipe, device)
            _refuse_kernels(recipe, device)
            if sources is None:
                _check_teachers(recipe, model, data, resources)
            place.first_tells(lambda: run_folder.prepare(run, recipe))
            if sources is None:
                sources = train_teachers(recipe, run, reporter=reporter, stop=stop, resources=resources)
            layout, task = recipe.train.channels_last, recipe.task
            teachers = [
                resources.teacher(source, data, recipe.data, channels_last=layout, task=task) for source in sources
            ]
            sees_layers = any("target_features" in term.inputs for term in recipe.losses)
            if sees_layers:
                teachers = [replace(teacher, model=without_memory(teacher.model)) for teacher in teachers]
            if recipe.data.phase and recipe.data.phase.old and not state:
                grow(model, cast("FewerClasses", without_memory(teachers[0].model)).network)
            # A mixed source has images beside those in memory.
            plain = not sees_layers and recipe.data.augment == AugmentOptions() and type(data.train) is Source
            recorded = [resources.recorded(teacher, data, recipe.train) for teacher in teachers] if plain else []
            stream = resources.stream(recipe, data)
            try:
                trainer = Trainer(
                    recipe,
                    run,
                    model,
                    data,
                    stream,
                    teachers,
                    recorded=recorded,
                    guide=_build_guide(recipe, data, device, reporter),
                    reporter=reporter,
                    stop=stop,
                )
            except UserError:  # a loss does not fit the networks
                if place.lead:
                    run_folder.take_back(run)
                raise
            if state:
                trainer.restore(state)
            elif resume and (run / run_folder.METRICS).is_file():
                reporter.note(f"{run}: there is no {run_folder.CHECKPOINT}, so the run starts from the beginning")
            reporter.begin_run(title or recipe.title or str(run), steps=trainer.steps, done=trainer.step)
            trainer.train()
            results = finish(trainer)
    reporter.end_run(results)
    return results


def _data(recipe: Recipe, device: torch.device, resources: Resources, reporter: Reporter) -> DataBundle:
    """Return the data; where they are files, the first rank looks for them, and the others then read its index."""
    place = ranks.here()

    def look() -> None:
        resources.data(recipe.data, device, reporter.note)

    if place.world > 1 and recipe.data.stored:
        place.first_tells(look)
    return resources.data(recipe.data, device, reporter.note)


def open_device(name: str) -> torch.device:
    """Return a device, or raise UserError if torch cannot use it here."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"`train.device` expected a device that torch can use here, got {name!r}: {reason}") from error
    return device


def _check_precision(train: TrainOptions, device: torch.device) -> None:
    """Raise UserError if a device does not compute in a precision that is asked for."""
    has_bf16 = torch.amp.is_autocast_available(device.type)
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    for option, precision in (("precision", train.precision), ("teacher_precision", train.teacher_precision)):
        if precision == "bf16" and not has_bf16:
            raise UserError(
                f"`train.{option}` bf16 expected a device that computes in it, got {device}; set it to fp32"
            )


@contextmanager
def _threads(wanted: int | None, saved: int | None, path: Path) -> Iterator[None]:
    """Use the recipe's number of CPU threads, else the checkpoint's, else torch's: sums depend on how they are cut."""
    if wanted and saved and wanted != saved:
        raise UserError(
            f"{path}: was written with {saved} threads, got `train.threads` {wanted}, which would change the results; "
            "resume without it"
        )
    before = torch.get_num_threads()
    torch.set_num_threads(wanted or saved or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators, which dropout draws from, and leave them as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed + ranks.here().rank)
        yield


def _build_student(recipe: Recipe, data: DataBundle, *, reporter: Reporter | None) -> nn.Module:
    """Build the network of a recipe, with the weights that it starts from if there is somebody to tell of them."""
    model = _build(recipe.model, data, seed=recipe.seed, reporter=reporter, task=recipe.task)
    _refuse_bad_batches(recipe, data, model)
    return model


def _build(
    options: ModelOptions, data: DataBundle, *, seed: int, reporter: Reporter | None, task: str = "supervised"
) -> nn.Module:
    model = build_model(
        options,
        image_shape=cast("tuple[int, int, int]", data.image_shape),
        num_classes=data.num_classes,
        seed=seed,
        data=seen_pixels(data),
        pretrained=reporter is not None,
        task=task,
    )
    if reporter is not None and (other := start_weights(model, options, any_head=True).other_classes) is not None:
        came = f"for {other} classes" if other else "without a head"
        reporter.note(f"{options.name}: a new head for {data.num_classes} classes; {options.weights} came {came}")
    return model


def _build_guide(recipe: Recipe, data: DataBundle, device: torch.device, reporter: Reporter) -> nn.Module | None:
    """Return the second network of adversarial training, if a term refers to it, from a seed of its own."""
    options = recipe.adversary.guide
    if recipe.task != "adversarial" or options is None or all(term.on != "guide" for term in recipe.losses):
        return None
    seed = key(recipe.seed, 0, "guide") & 2**63 - 1
    return _prepare(_build(options, data, seed=seed, reporter=reporter), recipe, device)


def _prepare(model: nn.Module, recipe: Recipe, device: torch.device) -> nn.Module:
    if recipe.train.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's annotations lack it
    return set_batch_norm(model.to(device), recipe.train).train()


def _refuse_bad_batches(recipe: Recipe, data: DataBundle, model: nn.Module) -> None:
    """Raise UserError where arithmetic tells, before the training, of no batch or of one sample under BatchNorm."""
    train, samples = recipe.train, len(data.train)
    if steps_per_epoch(samples, train.batch_size, train.drop_last) == 0:
        raise UserError(
            f"`train.batch_size` expected at most the {samples} training images, as `train.drop_last` is on, "
            f"got {train.batch_size}"
        )
    _refuse_small_parts(recipe, samples)
    others = recipe.task in JUDGES and recipe.task != "segment"  # not called with images, or with many of each
    if others or 1 not in normalised_sizes(recipe, samples, ranks.here().world):
        return
    try:
        # A copy, so that the running statistics of the student stay new.
        copy.deepcopy(model).train()(torch.zeros(1, *data.image_shape))
    except ValueError as error:
        raise UserError(
            f"`train.batch_size` {train.batch_size} (in {train.accumulate} micro-batches) leaves a batch of one of the "
            f"{samples} training images, of which BatchNorm has no variance; choose another, or `train.drop_last: true`"
        ) from error


def _refuse_small_parts(recipe: Recipe, samples: int) -> None:
    """Raise UserError for batches of which some rank gets no image, since all of them take every step."""
    train, world = recipe.train, ranks.here().world
    last = 0 if train.drop_last or recipe.data.full_batches else samples % train.batch_size
    for size in (train.batch_size, last):
        if size and size // world < train.accumulate:
            raise UserError(
                f"`train.batch_size` {train.batch_size} leaves a batch of {size} of the {samples} training images for "
                f"{world} ranks with {train.accumulate} micro-batches each; choose another, or `train.drop_last: true`"
            )


def _refuse_kernels(recipe: Recipe, device: torch.device) -> None:
    for term in recipe.losses:
        if getattr(term, "impl", "auto") == "triton" and device.type != "cuda":
            raise UserError(f"`{term.name}`: `impl: triton` expected a GPU, got the device {device}; take `impl: auto`")


def _check_teachers(recipe: Recipe, model: nn.Module, data: DataBundle, resources: Resources) -> None:
    """Raise UserError for a teacher or a loss that does not fit, before anything is written or trained."""
    networks: list[nn.Module] = []
    for options in _teachers(recipe):
        if (source := _ready(options, recipe)) is not None:
            layout, task = recipe.train.channels_last, recipe.task
            found = resources.teacher(source, data, recipe.data, channels_last=layout, task=task)
            networks.append(without_memory(found.model))
        else:
            teacher = _teacher_recipe(str(options.recipe), recipe)
            theirs = resources.data(teacher.data, data.device)
            refuse_other_shape(theirs.num_classes, theirs.image_shape, data, f"teacher {options.recipe}")
            refuse_seen_test_images(teacher.data, recipe.data, f"teacher {options.recipe}")
            refuse_other_pixels(teacher.data, recipe.data, f"teacher {options.recipe}")
            networks.append(_build_student(teacher, theirs, reporter=None))
    to_train = any(_ready(options, recipe) is None for options in _teachers(recipe))
    if to_train and any("features" in term.inputs for term in recipe.losses):
        refuse_misfits(recipe, model, data, networks)


def _teachers(recipe: Recipe) -> tuple[TeacherOptions, ...]:
    return recipe.teachers if recipe.task in TAUGHT else ()


def _teacher_recipe(name: str, student: Recipe) -> Recipe:
    """A teacher's recipe; on the same images it splits them as the student does, or it would see its test images."""
    teacher = load_recipe(name)
    if teacher.data.name != student.data.name:
        return teacher
    same = {name: getattr(student.data, name) for name in OF_THE_SAME_IMAGES}
    return teacher.model_copy(update={"data": teacher.data.model_copy(update=same)})


def _ready(options: TeacherOptions, student: Recipe) -> TeacherSource | None:
    """Return a teacher that need not be trained here; None for one that its recipe trains."""
    if options.module is not None:
        raise UserError(f"the teacher is a user's own {options.module}: call limbeck.fit with it again")
    if options.run is not None:
        return Path(options.run)
    if options.weights is None:
        return None
    model = options.model or _teacher_recipe(str(options.recipe), student).model
    return WeightsFile(model, options.weights)


def plan_teachers(recipe: Recipe) -> list[tuple[TeacherSource, None] | tuple[None, Recipe]]:
    """Return the teachers, in order: each is there already, or has a recipe to train it by, on the student's device."""
    plan: list[tuple[TeacherSource, None] | tuple[None, Recipe]] = []
    for options in _teachers(recipe):
        if (ready := _ready(options, recipe)) is not None:
            plan.append((ready, None))
            continue
        teacher = _teacher_recipe(str(options.recipe), recipe)
        threads = teacher.train.threads or recipe.train.threads
        train = teacher.train.model_copy(update={"device": recipe.train.device, "threads": threads})
        plan.append((None, teacher.model_copy(update={"train": train})))
    return plan


def teacher_folder(folder: Path, number: int) -> Path:
    """Return where the teacher at a position of the recipe is kept, if it is trained for the runs in `folder`."""
    return folder / f"teacher{number}"


def train_teachers(
    recipe: Recipe, folder: Path, *, reporter: Reporter, stop: StopRequest, resources: Resources
) -> list[TeacherSource]:
    """Return the teachers, in order; those that are trained and not in `folder` yet are trained to it."""
    sources: list[TeacherSource] = []
    for number, (source, teacher) in enumerate(plan_teachers(recipe)):
        run = teacher_folder(folder, number)
        if teacher is not None:
            title = teacher_title(number, recipe)
            train_run(teacher, run, resume=True, reporter=reporter, stop=stop, resources=resources, title=title)
        sources.append(source or run)
    return sources


def teacher_title(number: int, student: Recipe) -> str:
    """Return the name of a teacher's run for the reporter."""
    return f"teacher {number}, split {student.data.split_seed}"
