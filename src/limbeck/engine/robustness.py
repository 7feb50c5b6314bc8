"""What attacks leave of a network's accuracy: figures in robustness.json, flags, logits and features beside it."""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.adversary.autoattack import fingerprint
from limbeck.adversary.evaluate import evaluate, perturb
from limbeck.adversary.inference import inference
from limbeck.adversary.robustness import Robustness, Row
from limbeck.data import Source, StoredSource
from limbeck.engine import ranks
from limbeck.engine.metrics import EVALUATION_BATCH
from limbeck.engine.run_folder import atomic_file, write_json
from limbeck.errors import Interrupted, UserError, reason
from limbeck.measures import JUDGES
from limbeck.models import Network
from limbeck.turns import own

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from limbeck.config import Recipe
    from limbeck.data import Pixels, Samples
    from limbeck.engine.progress import Reporter
    from limbeck.engine.signals import StopRequest

FIGURES = "robustness{}.json"
PREDICTIONS = "robust_predictions{}.npz"
CHUNKS = "autoattack"  # folder of AutoAttack's finished chunks
FORMAT = 1
SEED = 0  # of every evaluation, so that all runs meet the same draws
PICTURED = "pgd20"  # the attack whose images the pictures are of
MOST_BYTES = 8 * 2**30  # of test images, on each rank
MAX_FEATURES = 2000  # test samples whose features are kept, for pictures

Arrays = dict[str, np.ndarray[Any, Any]]


class OnPixels(nn.Module):
    """A network of standardised images as one of pixels in [0, 1], which is what attacks move.

    Args:
        network: Of images as `limbeck.data.normalise` returns them.
        pixels: Their mean and deviation.
        device: Where the network lies.
    """

    def __init__(self, network: nn.Module, pixels: Pixels, device: torch.device) -> None:
        super().__init__()
        self.network = network
        self.mean = nn.Buffer(torch.tensor(pixels.mean, device=device).view(-1, 1, 1))
        self.std = nn.Buffer(torch.tensor(pixels.std, device=device).view(-1, 1, 1))

    def standardise(self, images: Tensor) -> Tensor:
        """Return pixels `(N, C, H, W)` in [0, 1] as the network sees them, to the bit."""
        return (images - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `(N, K)` of pixels `(N, C, H, W)` in [0, 1]."""
        return cast("Tensor", self.network(self.standardise(images)))


def evaluate_robustness(
    model: nn.Module,
    source: Samples,
    recipe: Recipe,
    *,
    attacks: Sequence[str],
    epsilons: Sequence[float],
    folder: Path,
    reporter: Reporter,
    stop: StopRequest | None = None,
    weights: str = "last",
    suffix: str = "",
) -> dict[str, Any]:
    """Attack a network's test images, and add what that leaves to the folder's robustness.json.

    Rows of the same weights and images that the file has already are kept, and the worst case of each radius is over
    all of them. AutoAttack goes on with the chunks that an earlier session finished in the folder. Several ranks share
    the images, and the first one writes the figures.

    Args:
        model: The network, as it stands; it is left as it was.
        source: Test images. Where they are standardised, the attack moves the pixels before that.
        recipe: `adversary.norm` is read.
        attacks: "clean", "pgdN", "cwN", "aa".
        epsilons: Radii, in units of the pixels.
        folder: Of the run.
        reporter: Whom to tell.
        stop: Says when to stop early; what AutoAttack has finished is kept.
        weights: What they are called in the file: "last", "best", "ema".
        suffix: Of the names of the files, where the run reports other weights than these.

    Returns:
        What robustness.json holds.

    Raises:
        Interrupted: A signal came.
        UserError: There are no test images, their pixels are not in [0, 1], an attack is unknown or its package
            missing, or the folder cannot be written.
    """
    if recipe.task in JUDGES:
        raise UserError(f"attacks expected a network that classifies images, got one of task `{recipe.task}`")
    if not len(source):
        raise UserError("robustness is measured on test images, got none; train with a test split")
    victim, images = _on_pixels(model, source)
    identity = _identity(victim, images, source.labels)
    place = ranks.here()
    earlier = place.first_tells(lambda: _read(folder, suffix, identity, recipe.adversary.norm))
    try:
        measured = evaluate(
            victim,
            images,
            source.labels,
            attacks=attacks,
            epsilons=epsilons,
            norm=recipe.adversary.norm,
            batch_size=EVALUATION_BATCH,
            seed=SEED,
            folder=folder / CHUNKS,
            progress=_progress(reporter, stop, folder),
            turns=place,
        )
        arrays = earlier.arrays if earlier else _predictions(victim, images, source.labels, recipe, epsilons[0])
    except (ValueError, ImportError) as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({reason(error)}); mend this and evaluate again") from error
    if earlier:
        measured = measured.merged(earlier.robustness)
    content = {"format": FORMAT, "weights": weights, "fingerprint": identity, "split": "test", **measured.to_dict()}

    def write() -> None:
        with atomic_file(folder / PREDICTIONS.format(suffix)) as file:
            np.savez(file, allow_pickle=False, **arrays, **_flags(measured))
        write_json(folder / FIGURES.format(suffix), content)

    place.first_tells(write)
    return content


def _on_pixels(model: nn.Module, source: Samples) -> tuple[nn.Module, Tensor]:
    """Return a network of pixels in [0, 1], and all pixels of a source, float32."""
    if isinstance(source, StoredSource):
        size = 4 * len(source) * math.prod(source.image_shape)
        if size > MOST_BYTES:
            raise UserError(
                f"attacks keep the test images in memory, at most {MOST_BYTES / 2**30:.0f} GiB, got {len(source)} "
                f"images of {size / 2**30:.1f} GiB; name fewer of them (`data.test_list`, or a folder), or a smaller "
                "`data.image_size`"
            )
    if isinstance(source, Source | StoredSource):
        channels = len(source.pixels.mean)
        plain = source.pixels._replace(mean=(0.0,) * channels, std=(1.0,) * channels)
        images = torch.cat(list(replace(source, pixels=plain).batches(EVALUATION_BATCH)))
        return OnPixels(model, source.pixels, images.device), images
    return model, torch.cat(list(source.batches(EVALUATION_BATCH)))


def _identity(model: nn.Module, images: Tensor, labels: Tensor) -> str:
    """Return the SHA-256 of all that the rows of one file have in common."""
    digest = hashlib.sha256(fingerprint(model).encode())
    for part in (images, labels):
        digest.update(part.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _progress(reporter: Reporter, stop: StopRequest | None, folder: Path) -> Callable[[str, float, int, int], None]:
    def tell(attack: str, epsilon: float, done: int, total: int) -> None:
        reporter.attack(f"{attack}, epsilon {epsilon:g}", done=done, images=total)
        if stop is not None and stop.signal_name and done < total:
            raise Interrupted(f"stopped by {stop.signal_name}: {folder} keeps the finished parts of {attack}")

    return tell


def read_figures(folder: Path) -> dict[str, Any] | None:
    """Return what robustness.json of a run's folder holds of the reported weights; None where there is none."""
    try:
        content = json.loads((folder / FIGURES.format("")).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("format") == FORMAT else None


def missing_attacks(folder: Path, attacks: Sequence[str], epsilon: float) -> bool:
    """Say whether robustness.json of a run's folder lacks one of some attacks at a radius."""
    content = read_figures(folder) or {"rows": ()}
    return not set(attacks) <= {row["attack"] for row in content["rows"] if row["epsilon"] == epsilon}


# --- arrays -----------------------------------------------------------------------------------------------


def _predictions(model: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe, epsilon: float) -> Arrays:
    """Return clean and PGD-20 logits, and of a network of ours the features of the first images, clean and attacked."""
    place = ranks.here()
    parts: list[dict[str, Tensor]] = []
    with inference(model, EVALUATION_BATCH) as network:
        for _, indices in own(torch.split(torch.arange(len(images)), EVALUATION_BATCH), place):
            clean, truth = images[indices].to(network.device), labels[indices].to(network.device)
            attacked = perturb(
                network,
                clean,
                truth,
                attack=PICTURED,
                epsilon=epsilon,
                norm=recipe.adversary.norm,
                seed=SEED,
                indices=indices.to(network.device),
            )
            part = {}
            for name, seen in (("clean", clean), ("adversarial", attacked)):
                part[f"{name}_logits"] = network.predict(seen)
                if int(indices[0]) < MAX_FEATURES and (features := _features(model, seen)) is not None:
                    part[f"{name}_features"] = features
            parts.append(part)
    together = place.in_turns(parts)
    arrays = {name: torch.cat([part[name] for part in together if name in part]) for name in together[0]}
    cut = {name: array[:MAX_FEATURES] if name.endswith("features") else array for name, array in arrays.items()}
    found: Arrays = {name: array.numpy() for name, array in cut.items()}
    return {"labels": labels.cpu().numpy(), "adversarial_epsilon": np.array(epsilon), **found}


@torch.no_grad()
def _features(model: nn.Module, images: Tensor) -> Tensor | None:
    """Return the penultimate features of pixels, on the CPU; None for a network that is a user's own."""
    if isinstance(model, OnPixels) and isinstance(model.network, Network):
        return model.network.forward_features(model.standardise(images)).float().cpu()
    return model.forward_features(images).float().cpu() if isinstance(model, Network) else None


def _flags(measured: Robustness) -> Arrays:
    """Return the flags of all attacks under their names in the file; the radius is written in full."""
    return {f"robust__{attack}__{epsilon!r}": flags.numpy() for (attack, epsilon), flags in measured.flags.items()}


# --- what the folder holds already ------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Earlier:
    """An earlier evaluation of the same weights and images, and the arrays beside it but for the flags."""

    robustness: Robustness
    arrays: Arrays


def _read(folder: Path, suffix: str, identity: str, norm: str) -> _Earlier | None:
    """Return what the folder's files hold; None if they are not there, of other weights, images or norm, or damaged."""
    try:
        content = json.loads((folder / FIGURES.format(suffix)).read_text(encoding="utf-8"))
        if (content["format"], content["fingerprint"], content["norm"]) != (FORMAT, identity, norm):
            return None
        with np.load(folder / PREDICTIONS.format(suffix), allow_pickle=False) as file:
            arrays = dict(file)
        rows = tuple(Row(**row) for row in content["rows"])
        flags = {
            (row.attack, row.epsilon): torch.from_numpy(arrays.pop(f"robust__{row.attack}__{row.epsilon!r}"))
            for row in rows
        }
        # Flags without a row are of a session that ended between the two files.
        arrays = {name: array for name, array in arrays.items() if not name.startswith("robust__")}
        clean = torch.from_numpy(arrays["clean_logits"].argmax(-1) == arrays["labels"])
        warnings = tuple(content["warnings"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    return _Earlier(Robustness(clean, rows, flags, warnings, content["norm"], content["seed"]), arrays)
