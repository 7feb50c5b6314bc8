"""Two steps of a recipe on a few small images: the overrides for it, and what has to come out."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import torch

from limbeck.config_files import load_recipe
from limbeck.engine import run_folder
from limbeck.engine.fit import fit
from limbeck.network_names import is_prefixed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from limbeck.config import Term

SHORT = {
    "train.epochs": 2,
    "train.device": "cpu",
    "train.threads": 1,
    "save.every_epochs": 2,
    "save.every_seconds": "null",
    "save.log_every": 1,
    "save.tensorboard": "false",
}
# The last map of 64 pixels has 2 x 2 positions, that of the recipes' 224 has 7 x 7, with room for these.
LARGEST = {"grid": 1, "pool": 2}


def of_another_library(name: str) -> bool:
    """Whether a recipe names a network of timm, torchvision or transformers."""
    recipe = load_recipe(name)
    networks = [recipe.model, *(teacher.model for teacher in recipe.teachers)]
    return any(network is not None and is_prefixed(network.name) for network in networks)


def terms_of(name: str) -> list[Term]:
    """The terms of all rows of a recipe, each once."""
    settings = (contender.settings[0] for contender in load_recipe(name).compare.contenders.values())
    return list({repr(term): term for setting in settings for term in setting}.values())


def changes_of(term: Term, *, coarse: bool = True) -> dict[str, Any]:
    """What a term cannot have on a few small images."""
    changes: dict[str, Any] = {}
    if coarse:
        changes = {option: value for option, value in LARGEST.items() if getattr(term, option, value) > value}
    if getattr(term, "interrelations", None) == "cka":  # an image a class relates no classes
        changes["interrelations"] = "uniform"
    return changes


def changes_of_losses(terms: Sequence[Term], *, coarse: bool = True) -> dict[str, Any]:
    """The same as overrides of a recipe."""
    return {
        f"losses.{place}.{option}": value
        for place, term in enumerate(terms)
        for option, value in changes_of(term, coarse=coarse).items()
    }


def take_two_steps(name: str, changes: dict[str, Any], run: Path) -> dict[str, Any]:
    """Train a recipe with overrides; nothing else may have changed in what the run keeps. Return the results."""
    recipe = load_recipe(name, as_texts(changes))
    results = fit(recipe, run)
    assert_two_finite_steps(run, len(recipe.losses))
    kept = load_recipe(str(run / run_folder.CONFIG))
    assert kept == recipe
    ours, theirs = (flat(each.model_dump(mode="json")) for each in (kept, load_recipe(name)))
    changed = {path for path in ours.keys() | theirs.keys() if ours.get(path) != theirs.get(path)}
    assert changed <= changes.keys()
    return results


def take_two_steps_with_all_losses(name: str, changes: dict[str, Any], run: Path, *, coarse: bool = True) -> None:
    """Train a recipe's student with the losses of all rows at once, at a rate that their sum allows."""
    changes = {path: value for path, value in changes.items() if not path.startswith("losses.")}
    recipe = load_recipe(name, [*as_texts(changes), "optimizer.learning_rate=1e-3"])
    terms = [term.model_copy(update=changes_of(term, coarse=coarse)) for term in terms_of(name)]
    fit(recipe.model_copy(update={"losses": tuple(terms)}), run)
    assert_two_finite_steps(run, len(terms))


def assert_two_finite_steps(run: Path, terms: int) -> None:
    """There is a line for each step, and each term has a finite value in it."""
    lines = [json.loads(line) for line in (run / run_folder.METRICS).read_text("utf-8").splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    assert [line["step"] for line in steps] == [1, 2]
    for line in steps:
        assert math.isfinite(line["loss"])
        assert len(line["parts"]) == terms
        assert all(map(math.isfinite, line["parts"].values()))


def as_texts(changes: dict[str, Any]) -> list[str]:
    """Overrides as the command line has them."""
    return [f"{path}={value}" for path, value in changes.items()]


def flat(data: Any, path: str = "") -> dict[str, Any]:
    """Path -> value of everything in a tree."""
    if not isinstance(data, dict | list):
        return {path: data}
    items = data.items() if isinstance(data, dict) else enumerate(data)
    return {key: value for k, v in items for key, value in flat(v, f"{path}.{k}" if path else str(k)).items()}


def settle(model: torch.nn.Module, side: int) -> torch.nn.Module:
    """Give a network the statistics of smooth images and small logits: untrained, 101 layers grow without bound."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    noise = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        model(torch.nn.functional.interpolate(noise, size=side, mode="bilinear"))
        for module in list(model.modules())[-1:]:
            module.weight *= 0.1
    return model
