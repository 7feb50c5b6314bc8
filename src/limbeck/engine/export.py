"""The weights of a finished run as a file for other programs: under the names of the public code."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from limbeck.config_files import load_recipe
from limbeck.engine import run_folder
from limbeck.engine.run_folder import atomic_file, read_results
from limbeck.errors import UserError, reason
from limbeck.models.names_to_public import public_name
from limbeck.models.public_names import STANDARDISATION
from limbeck.network_names import is_prefixed

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

SAFE, PICKLED = ".safetensors", (".pth", ".pt")


def export(run: Path, out: Path, which: str | None) -> str:
    """Write the weights of a finished run under the names of torchvision, or of its network's public code.

    Args:
        run: Folder of the run.
        out: The file; its ending says whether it is one of safetensors or of `torch.save`.
        which: "last", "best" or "ema"; None is what the run reports.

    Returns:
        What to know about the file, in a sentence.

    Raises:
        UserError: The run is not finished, has no such weights or no named network, or the file cannot be written.
    """
    if out.suffix not in (SAFE, *PICKLED):
        raise UserError(f"{out}: expected a file that ends with {SAFE}, {' or '.join(PICKLED)}; name one of these")
    results = read_results(run)
    recipe = load_recipe(str(run / run_folder.CONFIG))
    name = recipe.model.name
    if name == "custom":
        raise UserError(f"{run}: the network is a user's own module, so its weights have its own names already")
    weights = _read(run / run_folder.WEIGHTS[which or results.get("reported", "last")])
    own = {key: weights.pop(key) for key in STANDARDISATION if is_prefixed(name)}
    public = {public_name(key, name): value for key, value in weights.items()}
    with atomic_file(out) as file:
        file.write(save(public) if out.suffix == SAFE else _pickled(public))
    seen = f"standardised as those of {recipe.data.name}" if recipe.data.standardise else "in [0, 1]"
    if own:
        seen = "standardised by " + " and ".join(f"{key} {_listed(value)}" for key, value in own.items())
    return f"{out}: {len(public)} tensors of {name}, {results['num_classes']} classes; it expects pixels {seen}."


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; `best` needs a validation split, `ema` `train.ema_decay`") from error
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({reason(error)}); mend that, or name another run") from error


def _pickled(weights: dict[str, Tensor]) -> bytes:
    file = io.BytesIO()
    torch.save(weights, file)
    return file.getvalue()


def _listed(values: Tensor) -> str:
    return ", ".join(f"{value:.4g}" for value in values.flatten().tolist())
