"""Interrelations of a teacher's classes on some data, into a file."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, cast

from limbeck.engine import run_folder
from limbeck.engine.fit import open_device
from limbeck.engine.interrelations import measure
from limbeck.engine.run_folder import atomic_file, disk_errors, read_results
from limbeck.engine.teachers import Resources, load_file, load_trained, refuse_other_pixels
from limbeck.errors import UserError
from limbeck.functional.interrelations import cost_from_interrelations
from limbeck.interrelation_files import InterrelationFile, InterrelationRequest, encode

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from limbeck.config import Recipe
    from limbeck.data import DataBundle
    from limbeck.engine.progress import Reporter


def build_interrelations(
    teacher: Path,
    recipe: Recipe,
    out: Path,
    request: InterrelationRequest,
    *,
    sharpness: float,
    data_name: str,
    reporter: Reporter,
) -> InterrelationFile:
    """Compute how alike classes are to a teacher on the training split of some data, and write it to a file.

    Args:
        teacher: Folder of a finished run, or a file of weights.
        recipe: Its `data` and `train.device` are read; for a file of weights its `model`.
        out: The file, written whole or not at all.
        request: What is to be computed.
        sharpness: kappa of the cost.
        data_name: What the data are called in the file.
        reporter: Whom to tell.

    Returns:
        What the file holds.

    Raises:
        UserError: Teacher or data are missing or do not fit, see `compute_interrelations`, or nothing can be written.
    """
    with disk_errors(out, "--out"):
        out.parent.mkdir(parents=True, exist_ok=True)
    if out.is_dir():
        raise UserError(f"{out} is a folder; choose another --out")
    data = Resources().data(recipe.data, open_device(recipe.train.device))
    model, fingerprint = _open(teacher, recipe, data)
    measured = measure(model.to(data.device), data.train, request, data.num_classes, reporter)
    cost = cost_from_interrelations(measured.interrelations, sharpness=sharpness)
    content = InterrelationFile(
        interrelations=measured.interrelations.numpy(),
        cost=cost.numpy(),
        kind=request.kind,
        options=request.options(),
        sharpness=sharpness,
        teacher=teacher.resolve().name,
        teacher_fingerprint=fingerprint,
        data=data_name,
        data_fingerprint=data.fingerprint,
        split="training",
        samples=measured.samples,
        limbeck=version("limbeck"),
    )
    _write(out, content)
    return content


def _open(teacher: Path, recipe: Recipe, data: DataBundle) -> tuple[nn.Module, str]:
    """Return a teacher's network and the SHA-256 of its weights."""
    if not teacher.is_dir():
        return load_file(recipe.model, str(teacher), data)
    reported = cast("str", read_results(teacher).get("reported", "last"))
    model, trained, fingerprint = load_trained(teacher, run_folder.WEIGHTS[reported], data)
    refuse_other_pixels(trained.data, recipe.data, str(teacher))
    return model, fingerprint


def _write(path: Path, content: InterrelationFile) -> None:
    try:
        with atomic_file(path) as file:
            file.write(encode(content))
    except UserError as error:  # of a full disk; there is no --run here
        raise UserError(str(error).replace("another --run", "another --out")) from error
