"""The image tower of a finished run as a folder of transformers, for programs that take encoders from there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load

from limbeck.config_files import load_recipe
from limbeck.engine import run_folder
from limbeck.engine.run_folder import atomic_file, read_results
from limbeck.errors import UserError, reason
from limbeck.models import build_model
from limbeck.models.prefixed_towers import PrefixedTowers

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

# The image tower's class in transformers, by the kind of the whole network.
TOWERS = {"clip": "CLIPVisionModel", "siglip": "SiglipVisionModel"}
BICUBIC = 3  # Pillow's number of it


def export_tower(run: Path, out: Path, which: str | None) -> str:
    """Write the image tower of a run as `from_pretrained` of transformers reads it, with what its pixels expect.

    Args:
        run: Folder of the run, of the task image_text with a network `hf:`.
        out: Folder; made where it is missing.
        which: "last", "best" or "ema"; None is what the run reports.

    Returns:
        What to know about the folder, in a sentence.

    Raises:
        UserError: The run is not finished, its network is none of transformers, or the folder cannot be written.
    """
    results, recipe = read_results(run), load_recipe(str(run / run_folder.CONFIG))
    name = recipe.model.name
    if recipe.task != "image_text" or not name.startswith("hf:"):
        raise UserError(
            f"{run}: `--format hf` expected a run of task image_text with a network hf:NAME, got task {recipe.task} "
            f"with {name}; leave `--format` out for a file of its weights"
        )
    model = build_model(
        recipe.model,
        image_shape=tuple(results["image_shape"]),
        num_classes=results["num_classes"],
        seed=0,
        task=recipe.task,
    )
    if not isinstance(model, PrefixedTowers):
        raise TypeError(f"expected a network of two towers, got {type(model).__name__}")
    path = run / run_folder.WEIGHTS[which or results.get("reported", "last")]
    try:
        model.load_state_dict(load(path.read_bytes()))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read ({reason(error)}); name another run, or other weights") from error
    tower = _tower(model)
    side = results["image_shape"][-1]
    try:
        tower.save_pretrained(out)
        with atomic_file(out / "preprocessor_config.json") as file:
            file.write(json.dumps(_processor(model, side, tower.config.model_type), indent=2).encode())
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({reason(error)})") from error
    kind = type(tower).__name__
    return f"{out}: {kind} of {name}, images of {side} pixels; {kind}.from_pretrained({str(out)!r}) opens it."


def _tower(model: PrefixedTowers) -> Any:
    """Return the image tower as a network of its own, in eval mode."""
    import transformers

    whole: Any = model.network
    made = getattr(transformers, TOWERS[whole.config.model_type])(whole.config.vision_config)
    inner: nn.Module = getattr(made, "vision_model", made)  # from transformers 5 on the tower itself
    inner.load_state_dict(whole.vision_model.state_dict())
    return made.eval()


def _processor(model: PrefixedTowers, side: int, kind: str) -> dict[str, Any]:
    """Return what an image processor of transformers has to know."""
    return {
        "image_processor_type": "SiglipImageProcessor" if kind.startswith("siglip") else "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": BICUBIC,
        "size": {"height": side, "width": side} if kind.startswith("siglip") else {"shortest_edge": side},
        "do_center_crop": not kind.startswith("siglip"),
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": model.mean.flatten().tolist(),
        "image_std": model.std.flatten().tolist(),
    }
