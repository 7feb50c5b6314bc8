"""AutoAttack (Croce & Hein 2020) through the optional package `pyautoattack`, in chunks that can be resumed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from limbeck import draws
from limbeck.adversary.balls import Norm
from limbeck.adversary.checks import check_inputs, check_logits
from limbeck.adversary.inference import Inference, inference
from limbeck.turns import Alone, Turns, own

CHUNK = 250  # images; AutoAttack's own default batch, and minutes of work for a large network
STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
TARGETS = 9  # classes that the targeted attacks of the standard version aim at
LEAST_CLASSES_OF_DLR = 4  # the targeted difference-of-logits ratio divides by a difference to the fourth logit

Progress = Callable[[int, int], None]  # images done, of how many


@dataclass(frozen=True, eq=False)
class AutoAttackResult:
    """What AutoAttack left standing.

    Attributes:
        flags: "clean" and then each attack -> which samples are classified right after it and all before, bool `(N,)`
            on the CPU.
        standard: Whether this was the standard version; with fewer than 10 classes there is none.
        library: Package and its version.
        seconds: Wall time of the attacks, that of resumed chunks too.
    """

    flags: dict[str, Tensor]
    standard: bool
    library: str
    seconds: float

    @property
    def robust(self) -> Tensor:
        """Samples that no attack broke, bool `(N,)`."""
        return list(self.flags.values())[-1]


def autoattack(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    norm: Norm = "linf",
    seed: int = 0,
    batch_size: int = CHUNK,
    folder: Path | None = None,
    progress: Progress | None = None,
    turns: Turns | None = None,
) -> AutoAttackResult:
    """Attack a network with AutoAttack's `standard` version: APGD-CE, APGD-T, FAB-T, Square, one after another.

    Samples are attacked in chunks of 250 by their index, and chunk c draws from a seed that is a function of
    (`seed`, c). So neither the batch size nor an interruption changes a draw. With fewer than 10 classes the targeted
    attacks aim at all others, and with fewer than 4, where its loss is undefined, APGD-T is left out; such a result is
    not `standard`. The network is attacked in evaluation mode, in float32, and left as it was, random state included.

    Args:
        model: From images in [0, 1] to logits; it normalises inside.
        images: `(N, C, H, W)` in [0, 1], on any device.
        labels: int64 `(N,)`.
        epsilon: Radius of the ball, in units of the pixels.
        norm: "linf" or "l2".
        seed: Of all draws.
        batch_size: Most images of one forward pass. Below 250 memory falls and time grows, by a second forward pass;
            figures stay, up to rounding.
        folder: Where each finished chunk leaves a file. A chunk that finds its file there is not attacked again; files
            of other weights, images or options are left alone.
        progress: Called with how many images are done, of how many: at the start, and after each attack of a chunk.
        turns: Processes that share the chunks; all call this with the same arguments and get the same result. Each
            tells of its own chunks.

    Returns:
        Flags after each attack.

    Raises:
        ImportError: The package is missing; the message names the extra.
        TypeError: A dtype is wrong, or `model` is no module.
        ValueError: A shape or value is out of range, or the logits are none.

    Gradient:
        None.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> result = autoattack(network, torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 2, 0]), epsilon=1.0)
        >>> result.standard, list(result.flags)
        (False, ['clean', 'apgd-ce', 'fab-t', 'square'])

    Reference:
        Croce, Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks",
        arXiv 2003.01690.
    """
    package, library = open_package()
    check_inputs(images, labels, [epsilon], norm)
    tell = progress or (lambda done, total: None)
    with inference(model, batch_size) as network, torch.no_grad(), _quiet():
        logits = network.predict(images)
        check_logits(logits, labels)
        options = _options(logits.shape[1], library, epsilon=epsilon, norm=norm, seed=seed)
        place = turns or Alone()
        chunks = [chunk for _, chunk in own(_chunks(images, labels, options, network.model, folder), place)]
        parts = [_read(chunk, options) for chunk in chunks]
        total = sum(len(chunk.labels) for chunk in chunks)
        done = sum(len(chunk.labels) for chunk, part in zip(chunks, parts, strict=True) if part)
        tell(done, total)
        for number, chunk in enumerate(chunks):
            if parts[number] is not None:
                continue
            start, flags = time.monotonic(), {}
            for attack, robust in _attack(package, network, chunk, options):
                flags[attack] = robust
                tell(done + len(chunk.labels) * (len(flags) - 1) // len(options.attacks), total)
            done += len(chunk.labels)
            parts[number] = part = _Part(flags, time.monotonic() - start)
            _write(chunk, part)
    return _joined(place.in_turns([part for part in parts if part]), options)


def open_package() -> tuple[Callable[..., Any], str]:
    """Return AutoAttack's constructor, and the name and version of the package that it comes from.

    `pyautoattack` is what the extra installs; the original, `autoattack`, has the same code and other keywords.

    Returns:
        A constructor with the keywords `norm`, `eps`, `seed`, `version` and `device`, and for example
        "pyautoattack 0.2.0".

    Raises:
        ImportError: Neither package is installed.

    Example:
        >>> open_package()[1].split()[0]
        'pyautoattack'
    """
    try:
        from pyautoattack import AutoAttack

        return AutoAttack, f"pyautoattack {version('pyautoattack')}"
    except ImportError:
        pass
    try:
        from autoattack import AutoAttack as Original

        return partial(Original, verbose=False), f"autoattack {version('autoattack')}"
    except ImportError as error:
        raise ImportError(
            'AutoAttack needs `pyautoattack`: pip install "limbeck[autoattack]", or in a clone pip install '
            '".[autoattack]"'
        ) from error


def fingerprint(model: nn.Module) -> str:
    """Return the SHA-256 of a network's structure, weights and buffers, in hexadecimal.

    Args:
        model: Any module.

    Returns:
        64 digits.

    Raises:
        Nothing.

    Example:
        >>> network = nn.Linear(2, 2)
        >>> before = fingerprint(network)
        >>> _ = network.weight.data.add_(1)
        >>> fingerprint(network) == before
        False
    """
    # Without addresses in memory, which the next process would not find again.
    digest = hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", repr(model)).encode())
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(_bytes(value))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    """Return the numbers of a tensor; by way of uint8, as numpy has no bfloat16."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


@dataclass(frozen=True)
class _Options:
    """All that the flags depend on beside network and images."""

    library: str
    epsilon: float
    norm: str
    seed: int
    attacks: tuple[str, ...]
    targets: int

    @property
    def standard(self) -> bool:
        return self.attacks == STANDARD and self.targets == TARGETS


def _options(num_classes: int, library: str, *, epsilon: float, norm: Norm, seed: int) -> _Options:
    attacks = STANDARD if num_classes >= LEAST_CLASSES_OF_DLR else tuple(name for name in STANDARD if name != "apgd-t")
    return _Options(library, epsilon, norm, seed, attacks, targets=min(TARGETS, num_classes - 1))


# --- one chunk --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Chunk:
    images: Tensor
    labels: Tensor
    seed: int
    path: Path | None


@dataclass(frozen=True, eq=False)
class _Part:
    """What became of one chunk."""

    flags: dict[str, Tensor]
    seconds: float


def _chunks(images: Tensor, labels: Tensor, options: _Options, model: nn.Module, folder: Path | None) -> list[_Chunk]:
    """Cut the samples by their index. The name of a chunk's file is a hash of all that its flags depend on."""
    common = f"{options} {fingerprint(model)}" if folder else ""
    chunks = []
    for index, (part, truth) in enumerate(zip(torch.split(images, CHUNK), torch.split(labels, CHUNK), strict=True)):
        path = None
        if folder:
            digest = hashlib.sha256(f"{common} {index} {part.dtype} {tuple(part.shape)}\n".encode())
            digest.update(_bytes(part) + _bytes(truth))
            path = folder / f"aa-{index:04}-{digest.hexdigest()[:32]}.json"
        chunks.append(_Chunk(part, truth, draws.key(options.seed, index, "autoattack") % 2**63, path))
    return chunks


def _attack(
    package: Callable[..., Any], network: Inference, chunk: _Chunk, options: _Options
) -> Iterator[tuple[str, Tensor]]:
    """Yield "clean" and each attack with what is classified right after it, bool on the CPU.

    Like the package's own loop, each attack gets what those before left, and starts from the seed.
    """
    attacker = package(
        network,
        norm={"linf": "Linf", "l2": "L2"}[options.norm],
        eps=options.epsilon,
        seed=chunk.seed,
        version="standard",
        device=network.device,
    )
    attacker.apgd_targeted.n_target_classes = attacker.fab.n_target_classes = options.targets
    images = chunk.images.to(network.device, torch.float32).contiguous()  # the package takes `view`s
    labels = chunk.labels.to(network.device)
    robust = network(images).argmax(-1) == labels
    yield "clean", robust.cpu().clone()  # on the CPU, `cpu` copies nothing
    for attack in options.attacks:
        (left,) = robust.nonzero(as_tuple=True)
        if len(left):
            attacked = _perturb(attacker, attack, images[left], labels[left])
            robust[left] = network(attacked).argmax(-1) == labels[left]
        yield attack, robust.cpu().clone()


def _perturb(attacker: Any, attack: str, images: Tensor, labels: Tensor) -> Tensor:
    """Return what one attack of the ensemble makes of images; it sets torch's seed itself."""
    match attack:
        case "apgd-ce":
            attacker.apgd.loss = "ce"
            attacked = attacker.apgd.perturb(images, labels)
        case "apgd-t":
            attacked = attacker.apgd_targeted.perturb(images, labels)
        case "fab-t":
            attacker.fab.targeted = True
            attacked = attacker.fab.perturb(images, labels)
        case _:
            attacked = attacker.square.perturb(images, labels)
    return cast("Tensor", attacked)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the package's logger: `checks` says what it would, once and not for each chunk."""
    logger = logging.getLogger("auto-attack")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


# --- files ------------------------------------------------------------------------------------------------


def _read(chunk: _Chunk, options: _Options) -> _Part | None:
    """Return what an earlier session left of a chunk; None if there is no file, or a damaged one."""
    if chunk.path is None:
        return None
    try:
        content = json.loads(chunk.path.read_text(encoding="utf-8"))
        flags = {attack: torch.tensor(content["flags"][attack]).bool() for attack in ("clean", *options.attacks)}
        seconds = float(content["seconds"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return None
    whole = all(robust.shape == chunk.labels.shape for robust in flags.values())
    return _Part(flags, seconds) if whole else None


def _write(chunk: _Chunk, part: _Part) -> None:
    """Put a chunk's file in its place, whole: it is on the disk before it has its name."""
    if chunk.path is None:
        return
    content = {"flags": {name: robust.int().tolist() for name, robust in part.flags.items()}, "seconds": part.seconds}
    chunk.path.parent.mkdir(parents=True, exist_ok=True)
    temporary = chunk.path.with_name(f".{chunk.path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(chunk.path)
    finally:
        temporary.unlink(missing_ok=True)


def _joined(parts: list[_Part], options: _Options) -> AutoAttackResult:
    flags = {name: torch.cat([part.flags[name] for part in parts]) for name in ("clean", *options.attacks)}
    return AutoAttackResult(flags, options.standard, options.library, sum(part.seconds for part in parts))
