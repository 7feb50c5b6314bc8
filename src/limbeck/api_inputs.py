"""What `limbeck.fit` and `limbeck.compare` begin with: their arguments checked, teachers frozen, loaders opened."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from limbeck.config_arguments import read_losses
from limbeck.data.user import first_inputs, user_data
from limbeck.engine import run_folder
from limbeck.engine.fit import open_device
from limbeck.engine.given import count_outputs, device_of, fingerprint, restored
from limbeck.engine.progress import Reporter, open_reporter
from limbeck.engine.signals import StopRequest
from limbeck.engine.teachers import GivenModule
from limbeck.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import torch
    from torch import Tensor

    from limbeck.config import AdversaryOptions, Term
    from limbeck.config_arguments import Loss
    from limbeck.data import DataBundle
    from limbeck.data.user import Unpack


OUR_WORDS = {  # the engine's messages name options of the command line; {again} is how this call goes on
    r"run: limbeck train .* --resume": "{again}",
    r"continue (it )?with --resume": "{again}",
    r"another --run\b": "another `folder`",
}


class Inputs(NamedTuple):
    """What both calls are given beside the student: loaders, how to read them, teachers."""

    train: Iterable[Any]
    val: Iterable[Any] | None
    test: Iterable[Any] | None
    unpack: Unpack
    teachers: list[nn.Module]


def modules(teacher: nn.Module | Sequence[nn.Module] | None) -> list[nn.Module]:
    """Return the teachers as a list."""
    if teacher is None:
        return []
    if isinstance(teacher, nn.Module) or not isinstance(teacher, Iterable):  # callers may pass anything
        teacher = [teacher]
    modules = list(teacher)
    for module in modules:
        if not isinstance(module, nn.Module):
            raise UserError(f"`teacher` expected a torch.nn.Module, or several, got {type(module).__name__}")
    return modules


def read_terms(
    losses: Loss | None, teachers: Sequence[nn.Module], objective: AdversaryOptions | None
) -> tuple[Term, ...]:
    """Return the terms of a run's loss, see `read_losses`.

    Raises:
        UserError: A term has nobody to learn from, or a teacher nobody who learns from it.
    """
    if losses is None and (teachers or objective):
        who = "`teacher` was given, but no loss to learn from it with" if teachers else "`objective` has no loss"
        raise UserError(f'{who}; pass `losses`, such as losses="gkl"')
    return with_counterpart(read_losses("ce" if losses is None else losses), teachers, objective)


def with_counterpart(
    terms: tuple[Term, ...], teachers: Sequence[nn.Module], objective: AdversaryOptions | None
) -> tuple[Term, ...]:
    """Return the terms, or raise UserError if one of them compares with nobody's logits."""
    divergences = [term.name for term in terms if term.name != "cross_entropy"]
    if divergences and not teachers and objective is None:
        raise UserError(
            f"the loss `{divergences[0]}` expected a network to learn from in `teacher`, got none; for adversarial "
            "training pass `objective`, a limbeck.config.AdversaryOptions"
        )
    return terms


def device_for(device: str | torch.device | None, module: nn.Module, who: str) -> torch.device:
    """Return where to train: by default where the module lies."""
    if not isinstance(module, nn.Module):
        raise UserError(f"`{who}` expected a torch.nn.Module, got {type(module).__name__}")
    own = device_of(module, who)
    return own if device is None else open_device(str(device))


def batch_size(train: Iterable[Any]) -> int:
    """Return the loader's batch size, for config.yaml; 1 where it does not tell."""
    size = getattr(train, "batch_size", None)
    return size if isinstance(size, int) and size > 0 else 1


def refuse_unless_resumed(run: Path, resume: bool) -> None:
    """Raise UserError if the folder holds a run that nobody asked to go on with."""
    if not resume and (run / run_folder.CONFIG).is_file():
        state = "a finished run" if (run / run_folder.RESULTS).is_file() else "an unfinished run"
        raise UserError(f"{run}: holds {state}; pass resume=True to go on with it, or choose another `folder`")


@contextmanager
def opened(
    inputs: Inputs, device: torch.device, progress: bool, again: str
) -> Iterator[tuple[StopRequest, Reporter, list[GivenModule]]]:
    """Freeze the teachers, listen for signals and show progress; undo all of it at the end.

    Messages of the engine speak of arguments meanwhile; `again` says how the call goes on.
    """
    reporter = open_reporter() if progress else Reporter()
    with _in_our_words(again), restored(inputs.teachers), StopRequest() as stop, reporter:
        for teacher in inputs.teachers:
            teacher.to(device).eval().requires_grad_(False)
        yield stop, reporter, [GivenModule(teacher, fingerprint(teacher, "teacher")) for teacher in inputs.teachers]


@contextmanager
def _in_our_words(again: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        message = str(error)
        for theirs, ours in OUR_WORDS.items():
            message = re.sub(theirs, lambda _, ours=ours: ours.format(again=again), message)  # type: ignore[misc]
        raise type(error)(message) from error


def open_data(inputs: Inputs, model: nn.Module, device: torch.device, *, attacked: bool) -> DataBundle:
    """Return the loaders as a data set of as many classes as the model has outputs, which every teacher must have."""
    first: Tensor = first_inputs(inputs.train, inputs.unpack).to(device)
    classes = count_outputs(model.to(device), first, "model")
    for teacher in inputs.teachers:
        if (got := count_outputs(teacher, first, "teacher")) != classes:
            raise UserError(f"`teacher` expected {classes} outputs, as the student has, got {got}")
    return user_data(
        inputs.train,
        inputs.val,
        inputs.test,
        unpack=inputs.unpack,
        num_classes=classes,
        device=device,
        attacked=attacked,
    )


def refuse_other_inputs(
    run: Path, results: Mapping[str, Any], data: DataBundle, sources: Sequence[GivenModule]
) -> None:
    """Raise UserError if a finished run of a folder was made from other loaders or teachers."""
    teachers = [source.fingerprint for source in sources]
    if results["data_fingerprint"] != data.fingerprint:
        raise UserError(f"{run}: holds finished runs of other data; choose another `folder`, or delete it")
    if results["teacher_fingerprints"] != teachers:
        raise UserError(f"{run}: holds finished runs of another teacher; choose another `folder`, or delete it")
