"""Weights of a network from a file: ours (.safetensors), or a public one of research code (.pth, .pt, .tar)."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from limbeck.errors import UserError, missing_extra, reason
from limbeck.models import MODELS
from limbeck.models.detector import Detector
from limbeck.models.prefixed import PrefixedNetwork
from limbeck.models.prefixed_detector import PrefixedDetector, fitted
from limbeck.models.public_names import STANDARDISATION, our_name
from limbeck.models.torch_files import Unreadable, read_torch_file
from limbeck.network_names import PRETRAINED, is_prefixed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from limbeck.config_models import ModelOptions

CONTAINERS = ("model", "state_dict", "model_state_dict", "net")  # where files keep the weights beside other things
COUNTER = "num_batches_tracked"  # of BatchNorm; torch before 0.4.1 wrote none, and torch of today fills it in
SHOWN = 3
FASTER_RCNN = "faster_rcnn_"  # before the name of the classifier that a detector is built on
STAGE = re.compile(r"features\.(?:stem|stage(\d+))\.(.+)")
ROUNDED = 1e-4  # the constants of data sets have four decimals


class Loaded(NamedTuple):
    """What was read of a file.

    Attributes:
        fingerprint: SHA-256 of the file, in hexadecimal digits; None where there was none.
        other_classes: Number of classes of its head, if that was left out; 0 if it had none.
    """

    fingerprint: str | None
    other_classes: int | None


def start_weights(model: nn.Module, options: ModelOptions, *, any_head: bool) -> Loaded:
    """Give a network the weights that its options name; those of its library it has since it was built.

    Args:
        model: From `build_model`, with `pretrained`.
        options: Of the network.
        any_head: Take weights for another number of classes too, all but their head.

    Raises:
        UserError: As of `load_weights`; or the library's head is for another number of classes.
    """
    if options.weights is None:
        return Loaded(None, None)
    if options.weights != PRETRAINED:
        return load_weights(Path(options.weights), model, options.name, any_head=any_head)
    other = model.new_head if isinstance(model, PrefixedNetwork) else None
    if other is not None and not any_head:
        raise UserError(
            f"`model.name` {options.name}: expected pretrained weights for the classes of this data, got them for "
            f"{f'{other} classes' if other else 'none'}; name a file of weights for this data"
        )
    return Loaded(None, other)


def load_weights(path: Path, model: nn.Module, name: str, *, any_head: bool = False) -> Loaded:
    """Give a network the weights of a file, all of them or none.

    A file of `torch.save` may hold the weights themselves, or a dictionary with them under `model`, `state_dict`,
    `model_state_dict` or `net`. Names of mdistiller, RepDistiller, torchvision and RobustBench, with `module.` before
    them or not, become ours; a network of timm, torchvision or transformers takes its library's. What is no tensor is
    left out, and no code of the file runs.

    Args:
        path: The file; its name ends with .safetensors if it is one.
        model: The network; its weights are replaced.
        name: Its architecture, a key of `MODELS` or a name with a prefix.
        any_head: Leave the network its head where the file's is for another number of classes.

    Raises:
        UserError: The file is missing, damaged or without weights, or they are those of another network or not finite.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: expected a file of weights; {reason(error)}") from error
    tensors = _read_safetensors(content, path) if path.suffix == ".safetensors" else _read_public(content, path)
    expected = model.state_dict()
    constants = {key: value for key, value in model.named_buffers() if key not in expected}
    tensors = _without_constants(tensors, constants, path, name)
    if isinstance(model, PrefixedDetector) or (any_head and isinstance(model, Detector)):
        if isinstance(model, PrefixedDetector):
            tensors, classes = fitted(tensors, expected, name, any_head=any_head)
        else:
            tensors, classes = _with_new_heads(tensors, expected, name)
        if classes is not None:
            _load(model, tensors, expected, path, name)
            return Loaded(hashlib.sha256(content).hexdigest(), classes)
    weights = _renamed(tensors, name)
    if isinstance(model, PrefixedNetwork):  # a library's file does not tell what its pixels are standardised by
        tensors = {**{key: expected[key] for key in STANDARDISATION}, **tensors}
    left_out = other_head(weights, expected) if any_head else {}
    tensors = {key: left_out.get(our_name(key, name) or "", value) for key, value in tensors.items()}
    classes = next((len(weights[key]) for key in left_out), None)
    _load(model, tensors, expected, path, name)
    return Loaded(hashlib.sha256(content).hexdigest(), classes)


def _load(
    model: nn.Module, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path, name: str
) -> None:
    """Give a network a file's weights; raise UserError if they are others or not finite."""
    _refuse_others(tensors, expected, path, name)
    weights = _renamed(tensors, name)
    if broken := [key for key, value in weights.items() if not bool(value.double().isfinite().all())]:
        raise UserError(f"{path}: expected finite weights, got NaN or infinity in {_first(broken)}; take another file")
    model.load_state_dict(weights)


def _with_new_heads(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], name: str
) -> tuple[dict[str, Tensor], int | None]:
    """Return a classifier's weights as a detector's on its stages, the rest its own, and how many classes it had.

    Weights that are no classifier's are returned as they are, with None.
    """
    stages = {}
    named = _renamed(tensors, name.removeprefix(FASTER_RCNN))
    for key, value in named.items():
        if found := STAGE.match(key):
            stages[f"backbone.{found[1] or 0}.{found[2]}"] = value
    if not stages:
        return dict(tensors), None
    new = {key: value for key, value in own.items() if not key.startswith("backbone.")}
    return {**new, **stages}, len(named.get("head.bias", ()))


def other_head(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a network's own last layer, where a file has it for other classes: what differs in its rows alone.

    Several layers that differ so are no heads, unless all of them have the same numbers of rows.
    """
    other = {
        key: value
        for key, value in own.items()
        if key in weights and value.shape != weights[key].shape and value.shape[1:] == weights[key].shape[1:]
    }
    rows = {(len(value), len(weights[key])) for key, value in other.items() if value.dim() and weights[key].dim()}
    return other if len(rows) == 1 else {}


def _read_safetensors(content: bytes, path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load
    except ImportError as error:
        raise missing_extra("safetensors", "cli", f"reading {path}") from error
    try:
        return load(content)
    except SafetensorError as error:
        raise UserError(f"{path}: expected a .safetensors file, got a truncated, damaged or foreign one") from error


def _read_public(content: bytes, path: Path) -> dict[str, Tensor]:
    try:
        saved = read_torch_file(content)
    except Unreadable as error:
        raise UserError(
            f"{path}: expected a file of torch.save or .safetensors, got a truncated, damaged or foreign one"
        ) from error
    parts = (saved.get(key) for key in CONTAINERS) if isinstance(saved, dict) else ()
    tensors = next(filter(None, map(_tensors, parts)), None) or _tensors(saved)
    if not tensors:
        places = ", ".join(f"`{key}`" for key in CONTAINERS)
        raise UserError(f"{path}: expected a dictionary of tensors, alone or under one of {places}; got no tensors")
    return tensors


def _tensors(saved: Any) -> dict[str, Tensor]:
    """Return the tensors of a dictionary; of anything else, none."""
    entries = saved.items() if isinstance(saved, dict) else ()
    return {key: value for key, value in entries if isinstance(key, str) and isinstance(value, Tensor)}


def _renamed(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    names = {key: our_name(key, name) for key in tensors}
    return {ours: tensors[key] for key, ours in names.items() if ours is not None}


def _without_constants(
    tensors: Mapping[str, Tensor], constants: Mapping[str, Tensor], path: Path, name: str
) -> dict[str, Tensor]:
    """Return a file's tensors less those that the architecture knows; raise UserError if it knows them otherwise."""
    weights = dict(tensors)
    for key in tensors:
        known = constants.get(our_name(key, name) or "")
        if known is None:
            continue
        got = weights.pop(key)
        if got.numel() != known.numel() or not torch.allclose(got.view_as(known).float(), known, rtol=0, atol=ROUNDED):
            raise UserError(
                f"{path}: expected pixels standardised by `{key}` {_listed(known)}, as `{name}` of this data does, "
                f"got {_listed(got)}; these are weights for other images"
            )
    return weights


def _listed(values: Tensor) -> str:
    return "(" + ", ".join(f"{value:.4f}" for value in values.flatten().tolist()) + ")"


def _refuse_others(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path, name: str) -> None:
    """Raise UserError unless a file's tensors have the names and shapes of the expected weights."""
    weights = _renamed(tensors, name)
    _refuse_two_of_one(tensors, path, name)
    other_shapes = [key for key in expected if key in weights and weights[key].shape != expected[key].shape]
    differences = {
        "missing": [key for key in expected if key not in weights and not key.endswith(COUNTER)],
        "unexpected": [key for key in tensors if our_name(key, name) not in {None, *expected}],
        "of another shape": [f"{key} {(*weights[key].shape,)} for {(*expected[key].shape,)}" for key in other_shapes],
    }
    listed = "; ".join(f"{len(names)} {what} ({_first(names)})" for what, names in differences.items() if names)
    if not listed:
        return
    head = other_head(weights, expected)
    if head and set(other_shapes) == head.keys() and not differences["missing"] and not differences["unexpected"]:
        key = other_shapes[0]
        raise UserError(
            f"{path}: expected weights of `{name}` for {len(expected[key])} classes, "
            f"got them for {len(weights[key])}; take the file of this data set, or its data"
        )
    raise UserError(f"{path}: expected weights of `{name}`, got {listed}; {_whose(tensors, name)}")


def _refuse_two_of_one(tensors: Mapping[str, Tensor], path: Path, name: str) -> None:
    """Raise UserError if two tensors of a file mean one weight, such as those of two heads: which, nobody knows."""
    seen: dict[str, str] = {}
    for key in tensors:
        ours = our_name(key, name)
        if ours is not None and (first := seen.setdefault(ours, key)) != key:
            raise UserError(
                f"{path}: expected each weight of `{name}` once, got both {first} and {key} for {ours}; "
                "save the file again without one of them"
            )


def _first(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _whose(tensors: Mapping[str, Tensor], name: str) -> str:
    """Say of which network of the zoo the tensors are, whatever its images and classes."""
    for other, constructor in MODELS.items():
        with torch.device("meta"):
            expected = constructor((3, 32, 32), 10).state_dict()
        if _signature(_renamed(tensors, other)) == _signature(expected):
            return f"these look like weights of `{other}`" + (" for other images" if other == name else "")
    if is_prefixed(name):
        return "those of its library are meant, for images of this side: see `data.image_size`"
    return "no network here has such weights"


def _signature(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return names and shapes, without what depends on classes (the head) or the image's channels (the second side)."""
    return {
        key: (*value.shape[:1], *value.shape[2:])
        for key, value in weights.items()
        if not key.startswith(("head.", "features.stem.standardise.")) and not key.endswith(COUNTER)
    }
