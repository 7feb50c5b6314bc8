"""The features that the terms of an objective ask of one network."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from limbeck.config import FeatureTerm
from limbeck.models.stages import layer_paths, unwrapped
from limbeck.models.taps import FeatureTaps, feature_shapes, find_module, module_path

if TYPE_CHECKING:
    from collections.abc import Mapping

    from limbeck.config import Term


class View(NamedTuple):
    """What a network makes of a batch.

    Attributes:
        logits: `(N, C)`.
        features: Name of a term -> its features, in order.
    """

    logits: Tensor
    features: Mapping[str, tuple[Tensor, ...]]


class Layers:
    """A network, and which of its layers each term looks at. Hooks are set only if a term asks for one.

    Args:
        model: The network.
        terms: The objective's, by name.
        teacher: Whether the network is a teacher, whose layers are the terms' `target_features`.

    Raises:
        ValueError: The network has no such layer.
    """

    def __init__(self, model: nn.Module, terms: Mapping[str, Term], *, teacher: bool) -> None:
        self.model = model
        asked = "target_features" if teacher else "features"
        self.paths = {
            name: _found(name, term, model, teacher=teacher)
            for name, term in terms.items()
            if isinstance(term, FeatureTerm) and asked in term.inputs
        }
        names = [path for paths in self.paths.values() for path in paths]
        self._taps = FeatureTaps(model, list(dict.fromkeys(names))) if names else None
        self._head: nn.Linear | None = None

    def __call__(self, images: Tensor) -> View:
        """Let the network look at images."""
        if self._taps is None:
            return View(self.model(images), {})
        logits, features = self._taps(images)
        of_path = dict(zip(self._taps.names, features, strict=True))
        return View(logits, {name: tuple(of_path[path] for path in paths) for name, paths in self.paths.items()})

    def without_graph(self, images: Tensor) -> View:
        """Let a frozen network look at images; what it says is of float32 at least, whatever it computed in.

        Inference mode counts no writes, by which features that are overwritten are noticed, so it is for logits alone.
        """
        if self._taps is None:
            with torch.inference_mode():
                logits = self.model(images)
            return View(_for_losses(logits), {})
        with torch.no_grad():
            view = self(images)
            features = {name: tuple(map(_for_losses, each)) for name, each in view.features.items()}
            return View(_for_losses(view.logits), features)

    def shapes(self, name: str, example: Tensor) -> list[tuple[int, ...]]:
        """Return the shapes of a term's features, of one sample."""
        return feature_shapes(self.model, self.paths[name], example)

    def head(self, num_classes: int) -> nn.Linear:
        """Return the network's classifier, looked for once; see `classifier`."""
        if self._head is None:
            self._head = classifier(self.model, num_classes)
        return self._head

    def close(self) -> None:
        """Take the hooks away."""
        if self._taps is not None:
            self._taps.close()


def _for_losses(said: Tensor) -> Tensor:
    """Return a tensor that a backward pass can save, which none of inference mode is, of float32 at least."""
    wide = said.to(torch.promote_types(said.dtype, torch.float32))
    return wide.clone() if wide.is_inference() else wide


def _found(name: str, term: FeatureTerm, model: nn.Module, *, teacher: bool) -> list[str]:
    """Return the paths of a term's layers in a network, all of which are there."""
    try:
        paths = layer_paths(model, (term.target_features if teacher else None) or term.features)
        for path in paths:
            find_module(model, module_path(path))
    except ValueError as error:
        option = "target_features" if teacher and term.target_features else "features"
        raise ValueError(f"`{name}`, `{option}` of the {'teacher' if teacher else 'student'}: {error}") from error
    return paths


def check_pairs(name: str, student: Layers, teacher: Layers) -> None:
    """Refuse a term that looks at other numbers of layers in two networks, since they are paired in order.

    Raises:
        ValueError: It does.
    """
    ours, theirs = (layers.paths.get(name) for layers in (student, teacher))
    if ours is not None and theirs is not None and len(ours) != len(theirs):
        raise ValueError(
            f"`{name}` expected as many layers of the student as of the teacher, got {len(ours)} ({', '.join(ours)}) "
            f"and {len(theirs)} ({', '.join(theirs)}); name those to be paired in `features` and `target_features`"
        )


def classifier(model: nn.Module, num_classes: int) -> nn.Linear:
    """Return the linear layer that a network ends with: the last one with as many outputs as there are classes.

    Raises:
        ValueError: There is none.
    """
    network = unwrapped(model)
    layers = [part for part in network.modules() if isinstance(part, nn.Linear) and part.out_features == num_classes]
    if not layers:
        raise ValueError(
            f"expected a network that ends with a linear layer of {num_classes} outputs, got {type(network).__name__} "
            "without one; choose a loss that does not read the classifier"
        )
    return layers[-1]
