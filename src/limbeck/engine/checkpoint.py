"""The state of a run in one file, whole or absent, that loads without running code."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from limbeck.engine.run_folder import atomic_file
from limbeck.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import nn

FORMAT_NAME = "limbeck checkpoint"
FORMAT = f"{FORMAT_NAME} 1"


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state of tensors, numbers, strings, lists and dicts in the place of the checkpoint before it.

    Raises:
        UserError: The disk is full or read-only; the checkpoint before is intact.
    """
    with atomic_file(path) as file, _checksums():
        try:
            torch.save({"format": FORMAT, **state}, file)
        except RuntimeError as error:
            # torch's writer, closed after a failed write, hides the operating system's error behind its own.
            cause = error.__context__
            raise cause if isinstance(cause, OSError) else error from None


@contextmanager
def _checksums() -> Iterator[None]:
    """Let torch.save write the CRC-32 of each tensor, as it does unless a program has turned that off."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU.

    Raises:
        UserError: The file cannot be read, is cut short or damaged, or is no checkpoint of this version.
    """
    try:
        _check(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: expected a checkpoint, got a truncated, damaged, foreign or unreadable file; "
            "delete it to start the run again"
        ) from error
    found = state.get("format") if isinstance(state, dict) else None
    if not str(found).startswith(FORMAT_NAME):
        raise UserError(f"{path}: not a Limbeck checkpoint; delete it to start the run again")
    if found != FORMAT:
        raise UserError(f"{path}: expected a file of format {FORMAT!r}, got {found!r}; use the version that wrote it")
    return dict(state)


def _check(path: Path) -> None:
    """Raise BadZipFile unless every record of the file has its checksum, which torch.load does not look at."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"wrong checksum of {damaged}")


def refuse_other_fingerprint(saved: Mapping[str, Any], current: Mapping[str, Any], path: Path) -> None:
    """Raise UserError if what a checkpoint was made with (recipe, data, teachers) is not what there is now."""
    for name, value in current.items():
        if saved[name] != value:
            raise UserError(
                f"{path}: was written with other {name} than now (fingerprint {saved[name]!s:.16}, got {value!s:.16}); "
                "restore them, or choose another folder"
            )


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the states of torch's generators that a run on `device` draws from (dropout does)."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Undo what was drawn since `random_state`; on another kind of device, as far as it has such a generator."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def shapes(model: nn.Module) -> str:
    """Return the SHA-256 of the names and shapes of a state, which a user's own module may change unseen."""
    found = [f"{name} {tuple(value.shape)}" for name, value in model.state_dict().items()]
    return hashlib.sha256("\n".join(found).encode()).hexdigest()
