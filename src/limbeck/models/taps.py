"""Features by name: what chosen modules of any network return, or are given, beside the network's own output."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["FeatureError", "FeatureTaps", "feature_shapes"]

INPUT = ":input"  # behind a module's path: what goes into it
MAP, TOKENS = ":map", ":tokens"  # behind that: tokens, or a map with channels last, as (N, D, H, W) or (N, L, D)
EXTRA_TOKENS = 5  # before the patches, at most: class, distillation, registers
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "network")


class FeatureError(RuntimeError):
    """A named module passed no feature in a call of the network, or not one."""


class _Seen(NamedTuple):
    """A feature, and how often it had been written to when it was captured."""

    feature: Tensor
    version: int


def _version(value: Tensor) -> int:
    """How often a tensor was written to, where torch counts it."""
    return 0 if torch.compiler.is_compiling() or value.is_inference() else value._version


class FeatureTaps:
    """A network together with some of its features: `taps(images)` returns `(output, features)`.

    The hooks sit on the named modules themselves, so that they see what passes when the network is called through
    DistributedDataParallel or `torch.compile`, whose prefixes in names may be left out. They listen during such a call
    only: evaluation in between costs nothing and keeps nothing. Build the taps before the first call of a compiled
    network, which does not notice later hooks.

    Features carry the gradients that the network's call carries. A module that returns a tuple is taken to return its
    features first. What goes into a module that works in place, as `ReLU(inplace=True)` may, is copied before it does;
    a feature that another operation overwrites is an error (which a compiled network cannot notice).

    Args:
        model: Any module.
        names: Dotted paths of its modules, such as `layer4` or `features.stage3.0.relu`; with `:input` behind it, the
            module's first argument in place of its result. Last of all, `:map` makes a map (N, D, H, W) of a
            transformer's tokens (N, L, D), those before a square of patches left out, or of a map (N, H, W, D);
            `:tokens` makes tokens of either.

    Raises:
        ValueError: There is no such module, or no name.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> logits, (before, after) = FeatureTaps(model, ["1:input", "1"])(torch.ones(5, 4))
        >>> logits.shape, torch.equal(after, before.relu())
        (torch.Size([5, 2]), True)
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        if isinstance(names, str) or not names:
            raise ValueError(f"`names` expected a list of module paths, such as ['layer4'], got {names!r}")
        self.model, self.names = model, tuple(names)
        self._listening = False
        self._seen: dict[str, list[_Seen]] = {name: [] for name in self.names}
        modules = {name: find_module(model, module_path(name)) for name in self.names}  # all, or no hook
        self._handles = [self._register(name, module) for name, module in modules.items()]

    def _register(self, name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        if _bare(name).endswith(INPUT):
            return module.register_forward_pre_hook(self._hear_input(name))
        return module.register_forward_hook(self._hear_output(name))

    def _hear_output(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...], output: object) -> None:
            self._keep(name, output[0] if isinstance(output, (tuple, list)) and output else output)

        return hook

    def _hear_input(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            value = arguments[0] if arguments else None
            if self._listening and isinstance(value, Tensor) and getattr(module, "inplace", False):
                value = value.clone()
            self._keep(name, value)

        return hook

    def _keep(self, name: str, value: object) -> None:
        if not self._listening:
            return
        if not isinstance(value, Tensor):
            raise TypeError(f"`{name}` expected to pass a tensor, got {type(value).__name__}; name a module that does")
        self._seen[name].append(_Seen(value, _version(value)))

    def __call__(self, *inputs: Any, **options: Any) -> tuple[Any, tuple[Tensor, ...]]:
        """Call the network.

        Returns:
            What the network returns, and the features in the order of the names.

        Raises:
            FeatureError: A named module did not run, or ran several times, or its feature was overwritten, or it is no
                map or tokens where it was to be made one.
            TypeError: It passed something else than a tensor.
        """
        self._listening = True
        try:
            output = self.model(*inputs, **options)
        finally:
            self._listening = False
            seen, self._seen = self._seen, {name: [] for name in self.names}
        for name, values in seen.items():
            if len(values) != 1:
                raise FeatureError(_not_once(name, len(values)))
            if _version(values[0].feature) != values[0].version:
                raise FeatureError(
                    f"`{name}` was overwritten after it was captured, by an operation in place such as a "
                    "`ReLU(inplace=True)`; name the module that does it, with `:input` behind it, or another layer"
                )
        return output, tuple(_formed(name, seen[name][0].feature) for name in self.names)

    def close(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()


def _not_once(name: str, times: int) -> str:
    if times:
        return f"`{name}` expected to run once in a call of the network, ran {times} times; name one that is not shared"
    return (
        f"`{name}` captured nothing: the module did not run in this call of the network; name one that does. A "
        "compiled network does not notice hooks that came after its first call, or after that of another of its class: "
        "build the taps before, or call torch._dynamo.reset() after building them"
    )


def module_path(name: str) -> str:
    """Return the module's path in a name that may end with `:input`, `:map` or `:tokens`.

    >>> module_path("blocks.3:input:map")
    'blocks.3'
    """
    return _bare(name).removesuffix(INPUT)


def _bare(name: str) -> str:
    return name.removesuffix(MAP).removesuffix(TOKENS)


def _formed(name: str, feature: Tensor) -> Tensor:
    if name.endswith(MAP):
        return as_map(name, feature)
    return as_map(name, feature).flatten(2).mT if name.endswith(TOKENS) else feature


def as_map(name: str, feature: Tensor) -> Tensor:
    """Return tokens (N, L, D), less those before a square of patches, or a map (N, H, W, D), as (N, D, H, W).

    Raises:
        FeatureError: It is neither, or the patches are no square.
    """
    if feature.dim() == 4:
        return feature.permute(0, 3, 1, 2)
    if feature.dim() == 3:
        tokens = feature.shape[1]
        side = math.isqrt(tokens)
        if side and tokens - side**2 <= EXTRA_TOKENS:
            return feature[:, tokens - side**2 :].mT.reshape(len(feature), -1, side, side)
    raise FeatureError(
        f"`{name}` expected tokens (N, L, D) of a square of patches, after {EXTRA_TOKENS} others at most, or a map "
        f"(N, H, W, D), got {tuple(feature.shape)}; name the module alone"
    )


def find_module(model: nn.Module, name: str) -> nn.Module:
    """Return a module by its dotted path, whatever the network is wrapped in.

    Raises:
        ValueError: There is no such module.
    """
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if name in modules:
        return modules[name]
    bare = {_without_wrappers(path): module for path, module in modules.items()}
    short = _without_wrappers(name)
    if short and short in bare:
        return bare[short]
    near = difflib.get_close_matches(name, [path for path in bare if path], n=3, cutoff=0.4)
    known = near or [path for path, _ in model.named_children()]
    raise ValueError(f"the network has no module `{name}`; expected a path such as {', '.join(known)}")


def _without_wrappers(path: str) -> str:
    return ".".join(part for part in path.split(".") if part not in WRAPPERS)


def feature_shapes(model: nn.Module, names: Sequence[str], example: Tensor) -> list[tuple[int, ...]]:
    """Say which shapes a network's features have.

    The network looks at the example in eval mode and without gradients, so that no BatchNorm takes it in; every module
    is left in the mode that it had.

    Args:
        model: Any module.
        names: See `FeatureTaps`.
        example: `(N, ...)`, what the network takes; one sample is enough.

    Returns:
        One shape per name, without the batch axis.

    Raises:
        ValueError: There is no such module.
        FeatureError: A named module did not run, or ran several times, or its feature was overwritten.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.BatchNorm2d(8))
        >>> feature_shapes(model, ["0"], torch.zeros(1, 3, 9, 9))
        [(8, 4, 4)]
    """
    modes = [(module, module.training) for module in model.modules()]
    taps = FeatureTaps(model, names)
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            _, features = taps(example)
    finally:
        taps.close()
        for module, training in modes:
            module.training = training
    return [tuple(feature.shape[1:]) for feature in features]
