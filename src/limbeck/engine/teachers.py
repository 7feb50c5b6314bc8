"""Data and trained teachers, read once however many runs of a process use them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from limbeck.config import OWN_TEST, AugmentOptions
from limbeck.config_files import load_recipe
from limbeck.data import DataBundle, PairSource, Source, StoredSource, build_data
from limbeck.data.user import UserTraining
from limbeck.engine import ranks, run_folder
from limbeck.engine.given import fingerprint
from limbeck.engine.judged import judge
from limbeck.engine.metrics import measure, predict
from limbeck.engine.run_folder import read_results
from limbeck.engine.views import RememberingTeacher, open_run_stream
from limbeck.errors import UserError, reason
from limbeck.measures import JUDGES
from limbeck.models import Standardisation, build_model
from limbeck.models.growing import FewerClasses
from limbeck.models.running import arithmetic
from limbeck.models.weights import start_weights
from limbeck.network_names import PRETRAINED

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from torch import Tensor, nn

    from limbeck.config import DataOptions, ModelOptions, Recipe, TrainOptions
    from limbeck.data import Stream
    from limbeck.engine.views import ViewStore


class WeightsFile(NamedTuple):
    """A teacher that was trained elsewhere.

    Attributes:
        model: Its network.
        weights: File of its weights, or `pretrained` for its library's own.
    """

    model: ModelOptions
    weights: str


class GivenModule(NamedTuple):
    """A teacher that `limbeck.fit` was given.

    Attributes:
        module: The network.
        fingerprint: SHA-256 of its state.
    """

    module: nn.Module
    fingerprint: str


TeacherSource: TypeAlias = "Path | WeightsFile | GivenModule"  # a path is the folder of a finished run


@dataclass(frozen=True, eq=False)
class Teacher:
    """A teacher and what it says of the data of a run.

    Attributes:
        model: The network, frozen, in eval mode.
        fingerprint: SHA-256 of its weights.
        test_logits: `(N, C)` on the test split, on the CPU.
        validation_logits: `(N, C)` on the validation split; N may be 0.
        metrics: `{"test": metrics, "validation": metrics or None}`.
        arrays: Of a task that has a judge: split -> what pictures need of it.
        interrelations: Kind -> how alike classes are to it by the training images, `(C, C)`, as far as a run asked.
    """

    model: nn.Module
    fingerprint: str
    test_logits: Tensor
    validation_logits: Tensor
    metrics: dict[str, Any]
    arrays: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    interrelations: dict[str, Tensor] = field(default_factory=dict)


class Resources:
    """What the runs of a process share. Everything in it is read-only.

    Args:
        views: Keeps the batches of a seed and the teachers' logits on them, where several runs are to see the same.
    """

    def __init__(self, views: ViewStore | None = None) -> None:
        self._views = views
        self._data: dict[tuple[DataOptions, torch.device], DataBundle] = {}
        self._teachers: dict[tuple[Hashable, str, torch.device, bool], Teacher] = {}
        self._recorded: dict[tuple[str, str, torch.device, bool, str], Tensor] = {}

    def data(
        self, options: DataOptions, device: torch.device, told: Callable[[str], None] = lambda line: None
    ) -> DataBundle:
        """Return a data set on a device; `told` is called with a line before what takes long."""
        views = {"augment": AugmentOptions(), "second_view": None}  # of no concern to the images
        key = (options.model_copy(update=views), device)
        if key not in self._data:
            self._data[key] = _to_device(build_data(options, told), device)
        return self._data[key]

    def teacher(
        self,
        source: TeacherSource,
        data: DataBundle,
        options: DataOptions,
        *,
        channels_last: bool = False,
        task: str = "distill",
    ) -> Teacher:
        """Return a teacher with its logits on `data`, on the data's device.

        Args:
            source: Folder of the teacher's run, file of its weights, or a module.
            data: Data of the student's run.
            options: Options of that data.
            channels_last: Whether its weights lie in that memory format, for the training.
            task: Of the student's run, by which the teacher is measured.

        Raises:
            UserError: There is no finished run or no such file, or it is no teacher for this data.
        """
        key = (_identity(source), data.fingerprint, data.device, channels_last)
        if key not in self._teachers:
            model, fingerprint = _open(source, data, options, task)
            model = model.to(data.device).eval().requires_grad_(False)
            known = options.phase.old if options.phase else data.num_classes
            teacher = _with_logits(model, fingerprint, data, task, known)
            if channels_last:
                model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's annotations lack it
            if self._views and isinstance(
                data.train, Source | PairSource
            ):  # a user's loader may write new images to one tensor
                teacher = replace(teacher, model=RememberingTeacher(model))
            self._teachers[key] = teacher
        return self._teachers[key]

    def stream(self, recipe: Recipe, data: DataBundle) -> Stream:
        """Return the training batches of a run."""
        return self._views.stream(recipe, data) if self._views else open_run_stream(recipe, data)

    def recorded(self, teacher: Teacher, data: DataBundle, train: TrainOptions) -> Tensor:
        """Return a teacher's logits on the training images, which are in memory, as they are: `(N, C)`."""
        precision = train.precision if train.teacher_precision == "same" else train.teacher_precision
        key = (teacher.fingerprint, data.fingerprint, data.device, train.channels_last, precision)
        if key not in self._recorded:
            with arithmetic(data.device.type, precision):
                self._recorded[key] = predict(teacher.model, cast("Source", data.train), ranks.here()).to(data.device)
        return self._recorded[key]


def _to_device(data: DataBundle, device: torch.device) -> DataBundle:
    parts = (data.train, data.validation, data.test)
    train, validation, test = (cast("Source | StoredSource", part).to(device) for part in parts)
    shifted = {name: test._replace(samples=test.samples.to(device)) for name, test in data.shifted.items()}
    corrupted = data.corrupted.to(device) if data.corrupted else None
    return replace(
        data, train=train, validation=validation, test=test, device=device, shifted=shifted, corrupted=corrupted
    )


def _identity(source: TeacherSource) -> Hashable:
    match source:
        case WeightsFile(model, weights):
            return model, weights if weights == PRETRAINED else Path(weights).resolve()
        case GivenModule(_, fingerprint):
            return fingerprint
        case _:
            return source.resolve()


def _open(source: TeacherSource, data: DataBundle, options: DataOptions, task: str) -> tuple[nn.Module, str]:
    """Return a teacher's network and the SHA-256 of its weights."""
    match source:
        case WeightsFile(model, weights):
            return load_file(model, weights, data, task)
        case GivenModule(module, fingerprint):
            return module, fingerprint
        case _:
            known = replace(data, num_classes=options.phase.old) if options.phase else data
            network, recipe, fingerprint = load_trained(source, run_folder.WEIGHTS["last"], known)
            if options.phase:
                network = FewerClasses(network, data.num_classes)
            refuse_seen_test_images(recipe.data, options, str(source))
            refuse_other_pixels(recipe.data, options, str(source))
            refuse_other_words(recipe, options, str(source))
            return network, fingerprint


def load_file(options: ModelOptions, weights: str, data: DataBundle, task: str = "supervised") -> tuple[nn.Module, str]:
    """Return a network with weights that were trained elsewhere, and their SHA-256.

    Args:
        options: The network.
        weights: File of weights, ours or a public one, or `pretrained` for those of the network's library.
        data: What the network will see; one of another library sees it standardised as its `pixels` say.
        task: Of the run that it teaches.

    Raises:
        UserError: There is no such file, or its weights are not those of this network for this data.
    """
    options = options.model_copy(update={"weights": weights})
    model = build_model(
        options,
        image_shape=cast("tuple[int, int, int]", data.image_shape),
        num_classes=data.num_classes,
        seed=0,
        data=seen_pixels(data),
        pretrained=True,
        task=task,
    )
    loaded = start_weights(model, options, any_head=False)
    # One file is two functions, by what it sees; the state holds that beside the weights.
    named = loaded.fingerprint if options.pixels == "own" else None
    return model, named or fingerprint(model, options.name)


def seen_pixels(data: DataBundle) -> Standardisation | None:
    """Return what a data set's pixels are standardised by; None where a user's own loaders do it."""
    pixels = None if isinstance(data.train, UserTraining) else data.train.pixels
    return None if pixels is None else Standardisation(pixels.mean, pixels.std)


def load_trained(run: Path, weights: str, data: DataBundle) -> tuple[nn.Module, Recipe, str]:
    """Return the network of a finished run, on the CPU, its recipe and the SHA-256 of its weights' file.

    Args:
        run: Folder of the run.
        weights: Name of the file in it.
        data: What the network will see; its classes and image shape have to be the network's.

    Raises:
        UserError: There is no finished run or no such file, or classes or image shape differ.
    """
    results = read_results(run)
    refuse_other_shape(results["num_classes"], results["image_shape"], data, str(run))
    path = run / weights
    if not path.is_file():
        raise UserError(f"{path}: no such file; `best` needs a validation split, `ema` needs `train.ema_decay`")
    recipe = load_recipe(str(run / run_folder.CONFIG))
    if recipe.model.name == "custom":
        raise UserError(f"{run}: the network of this run is a user's own module: call limbeck.fit with it again")
    shape = cast("tuple[int, int, int]", data.image_shape)
    pixels = seen_pixels(data)
    model = build_model(
        recipe.model, image_shape=shape, num_classes=data.num_classes, seed=0, data=pixels, task=recipe.task
    )
    try:
        content = path.read_bytes()
        model.load_state_dict(load_safetensors(content))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({reason(error)}); mend that, or name another run") from error
    except (SafetensorError, RuntimeError) as error:
        raise UserError(
            f"{path}: expected weights of the network in {run_folder.CONFIG}, got others or a damaged file"
        ) from error
    return model, recipe, hashlib.sha256(content).hexdigest()


def refuse_other_shape(num_classes: int, image_shape: Sequence[int], data: DataBundle, who: str) -> None:
    """Raise UserError if a network for `num_classes` and `image_shape` cannot look at `data`."""
    expected, got = (data.num_classes, data.image_shape), (num_classes, tuple(image_shape))
    if got != expected:
        raise UserError(
            f"{who}: expected a network for {expected[0]} classes of {expected[1]} images, as `{data.name}` has, "
            f"got one for {got[0]} classes of {got[1]}"
        )


def refuse_seen_test_images(teacher: DataOptions, student: DataOptions, who: str) -> None:
    """Raise UserError if a teacher has learned from the student's test images.

    The test split is made first, from `test` and `split_seed`, so with the same two the teacher's is the same. A file
    of weights does not tell what it was trained on.
    """
    if student.name in OWN_TEST and student.name != "scenes":  # `split_seed` draws which emoji test scenes are made of
        return
    for key, theirs, ours in (
        ("test", teacher.test_share, student.test_share),
        ("split_seed", teacher.split_seed, student.split_seed),
    ):
        if teacher.name == student.name and theirs != ours:
            raise UserError(
                f"{who}: expected `data.{key}` {ours}, as the student's, got {theirs}; "
                "otherwise the teacher has learned from the student's test images"
            )


def refuse_other_pixels(teacher: DataOptions, student: DataOptions, who: str) -> None:
    """Raise UserError if a teacher has learned from standardised pixels and the student has not, or the other way."""
    if teacher.standardise != student.standardise:
        raise UserError(
            f"{who}: expected `data.standardise` {str(student.standardise).lower()}, as the student's, "
            f"got {str(teacher.standardise).lower()}; the teacher sees the student's pixels"
        )


def refuse_other_words(teacher: Recipe, student: DataOptions, who: str) -> None:
    """Raise UserError if a teacher of images and texts reads captions by another tokenizer than the student."""
    theirs, ours = teacher.data.captions.tokenizer, student.captions.tokenizer
    if teacher.task == "image_text" and theirs != ours:
        raise UserError(
            f"{who}: expected `data.captions.tokenizer` {ours}, as the student's, got {theirs}; the teacher reads the "
            "student's tokens"
        )


def _with_logits(model: nn.Module, fingerprint: str, data: DataBundle, task: str, known: int) -> Teacher:
    """Return a teacher with what it says of the held-out parts: logits, but in tasks that have a judge.

    It is measured on the images of the classes that it knows, the first so many.
    """
    logits: dict[str, Tensor] = {}
    metrics: dict[str, Any] = {}
    arrays: dict[str, dict[str, Tensor]] = {}
    for split, part in (("test", data.test), ("validation", data.validation)):
        logits[split], metrics[split] = torch.empty(0, data.num_classes), None
        if not len(part):
            continue
        if task in JUDGES:
            metrics[split], arrays[split] = judge(task, model, part, data, ranks.here())
            continue
        logits[split] = predict(model, part, ranks.here())
        labels = part.labels.cpu()
        its = labels < known
        metrics[split] = measure(logits[split][its], labels[its], groups=data.groups)
    return Teacher(model, fingerprint, logits["test"], logits["validation"], metrics, arrays)
