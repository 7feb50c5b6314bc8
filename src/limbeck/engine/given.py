"""Modules that a user hands over: what they return, where they lie, and how teachers are given back as they were."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from limbeck.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from limbeck.data import DataBundle


class Given(NamedTuple):
    """What a run is made of instead of what its recipe names.

    Attributes:
        model: The student.
        data: The data, on the run's device.
    """

    model: nn.Module
    data: DataBundle


def device_of(module: nn.Module, who: str) -> torch.device:
    """Return the device of a module; the CPU if it holds no tensor.

    Raises:
        UserError: It lies on several devices, or on the meta device.
    """
    devices = {tensor.device for tensor in chain(module.parameters(), module.buffers())}
    if len(devices) > 1:
        raise UserError(f"`{who}` expected to lie on one device, got {', '.join(sorted(map(str, devices)))}")
    device = devices.pop() if devices else torch.device("cpu")
    if device.type == "meta":
        raise UserError(f"`{who}` expected weights, got a module on the meta device; call its to_empty and load them")
    return device


def refuse_what_cannot_train(model: nn.Module, teachers: Sequence[nn.Module]) -> None:
    """Raise UserError for a student without trainable parameters of its own, or whose state is not of tensors alone."""
    frozen = {id(parameter) for teacher in teachers for parameter in teacher.parameters()}
    if any(id(parameter) in frozen for parameter in model.parameters()):
        raise UserError("`model` expected parameters of its own, got some of the teacher's; copy it with copy.deepcopy")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("`model` expected parameters that train, got none; see requires_grad_")
    fingerprint(model, "model")


def count_outputs(module: nn.Module, inputs: Tensor, who: str) -> int:
    """Return C, the number of logits that a module makes of each input, in eval mode; its modes are as before.

    Args:
        module: The network.
        inputs: `(N, ...)`, a batch.
        who: What the module is called in messages.

    Raises:
        UserError: It cannot read the inputs, or returns anything but `(N, C)`.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            logits = module(inputs)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"`{who}` cannot read inputs of {inputs.dtype} {tuple(inputs.shape)}: {reason}") from error
    finally:
        for part, training in modes:
            part.training = training
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(inputs):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(
            f"`{who}` expected to return logits of shape (N, C) for a batch of N = {len(inputs)}, got {got}; "
            "wrap it in a module that does"
        )
    return logits.shape[1]


def fingerprint(module: nn.Module, who: str) -> str:
    """Return the SHA-256 of a module's state, with names, types and shapes, in hexadecimal.

    Raises:
        UserError: The state holds something else than tensors.
    """
    digest = hashlib.sha256(type(module).__qualname__.encode())
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            raise UserError(f"`{who}` expected a state of tensors alone, got {type(value).__name__} at `{name}`")
        digest.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_weights(path: Path, module: nn.Module, who: str) -> None:
    """Put the weights of a file into a module.

    Raises:
        UserError: There is no such file, it is damaged, or its weights are those of another network.
    """
    try:
        module.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(
            f"{path}: expected weights of `{who}`, got another network's, a damaged file or none; choose another "
            "`folder`, or delete it"
        ) from error


@contextmanager
def restored(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Give modules back with the modes, the `requires_grad` and the device that they had."""
    parts = [(part, part.training) for module in modules for part in module.modules()]
    parameters = [(each, each.requires_grad) for module in modules for each in module.parameters()]
    devices = [(module, device_of(module, "teacher")) for module in modules]
    try:
        yield
    finally:
        for part, training in parts:
            part.training = training
        for parameter, requires_grad in parameters:
            parameter.requires_grad_(requires_grad)
        for module, device in devices:
            module.to(device)
