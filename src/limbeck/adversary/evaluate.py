"""How robust a network is: accuracy under PGD, Carlini and Wagner's loss, and AutoAttack, over several radii."""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from limbeck.adversary.attack_losses import cross_entropy, margin
from limbeck.adversary.autoattack import CHUNK, autoattack, open_package
from limbeck.adversary.balls import Norm
from limbeck.adversary.checks import check_inputs, check_logits, network_warnings, square_warning
from limbeck.adversary.inference import Inference, inference
from limbeck.adversary.modes import Model
from limbeck.adversary.pgd import pgd
from limbeck.adversary.robustness import Robustness, Row, share
from limbeck.turns import Alone, Turns, own

STEP_RATIO = 0.25  # of the radius: the field's 2/255 at 8/255
_GRADIENT_ATTACK = re.compile(r"(pgd|cw)([1-9][0-9]*)")
_LOSSES = {"pgd": ("cross_entropy", cross_entropy), "cw": ("margin", margin)}

Progress = Callable[[str, float, int, int], None]  # attack, epsilon, images done, of how many


def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    attacks: Sequence[str] = ("pgd20", "aa"),
    epsilons: Sequence[float] = (8 / 255,),
    norm: Norm = "linf",
    batch_size: int = CHUNK,
    seed: int = 0,
    folder: Path | None = None,
    progress: Progress | None = None,
    turns: Turns | None = None,
) -> Robustness:
    """Measure the accuracy of a network on images, and on what attacks make of them.

    PGD and CW take steps of epsilon / 4 from a uniform start, without restarts, and count their last point; PGD climbs
    the cross-entropy, CW the margin. AutoAttack is its standard version. The network is attacked in evaluation mode,
    eagerly, in float32 and contiguous memory, and then is exactly what it was, torch's random state included. A
    sample's draws depend on its index and on `seed`, not on the batch.

    Args:
        model: From images in [0, 1] to logits; it normalises inside.
        images: `(N, C, H, W)`, floating, in [0, 1], on any device.
        labels: int64 `(N,)`.
        attacks: "clean", which is always measured, "pgdN", "cwN" with N steps, and "aa".
        epsilons: Radii of the ball, in units of the pixels.
        norm: "linf" or "l2".
        batch_size: Most images of one forward pass.
        seed: Of all draws.
        folder: Where AutoAttack leaves a file per finished chunk, and finds those of an evaluation that was stopped.
        progress: Called with attack, epsilon, images done and their number.
        turns: Processes that share the batches; all call this with the same arguments and get the same result.

    Returns:
        Rows, flags per sample, warnings.

    Raises:
        ImportError: "aa" without its package; the message names the extra.
        TypeError: A dtype is wrong, or `model` is no module.
        ValueError: An unknown attack, an option, shape or pixel out of range, or logits that are none. All of this is
            found before the first attack.

    Gradient:
        None.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> measured = evaluate(network, torch.rand(8, 1, 2, 2), torch.arange(8) % 3, attacks=["pgd10"], epsilons=[0.1])
        >>> row = measured.rows[0]
        >>> row.attack, row.steps, row.step_size, row.start, row.iterate
        ('pgd10', 10, 0.025, 'uniform', 'last')

    Reference:
        Madry et al., arXiv 1706.06083; Carlini, Wagner, arXiv 1608.04644; Croce, Hein, arXiv 2003.01690.
    """
    names = check_attacks(attacks)
    check_inputs(images, labels, epsilons, norm)
    if "aa" in names:
        open_package()
    rows: list[Row] = []
    flags: dict[tuple[str, float], Tensor] = {}
    with inference(model, batch_size) as network:
        clean = network.predict(images)
        check_logits(clean, labels)
        warnings = network_warnings(network, *(part[:CHUNK].to(network.device) for part in (images.float(), labels)))
        plan = _Plan(network, images, labels, norm, seed, folder, progress or (lambda *told: None), turns or Alone())
        for name, epsilon in product(names, dict.fromkeys(epsilons)):
            made = plan.autoattack(epsilon) if name == "aa" else plan.pgd(name, epsilon)
            rows.append(made.row)
            flags[name, epsilon] = made.flags
            warnings += made.warnings
    return Robustness(clean.argmax(-1) == labels.cpu(), tuple(rows), flags, tuple(warnings), norm, seed)


def check_attacks(attacks: Sequence[str]) -> list[str]:
    """Return the attacks of an evaluation, each once, AutoAttack last as it takes longest.

    Args:
        attacks: "clean", "pgdN", "cwN", "aa".

    Returns:
        The names without "clean".

    Raises:
        TypeError: `attacks` is a string.
        ValueError: No attack, or an unknown one; the message names the nearest.

    Example:
        >>> check_attacks(["aa", "clean", "pgd20"])
        ['pgd20', 'aa']
    """
    if isinstance(attacks, str):
        raise TypeError(f"`attacks` expected a list of names, got the string {attacks!r}")
    if not attacks:
        raise ValueError("`attacks` expected at least one of clean, pgdN, cwN and aa, got none")
    for name in attacks:
        if name not in ("clean", "aa") and not _GRADIENT_ATTACK.fullmatch(name):
            near = difflib.get_close_matches(name, ["clean", "pgd10", "pgd20", "cw10", "cw20", "aa"], n=1, cutoff=0.5)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise ValueError(f"`attacks` expected clean, pgdN, cwN with N steps, or aa, got {name!r}{hint}")
    return sorted((name for name in dict.fromkeys(attacks) if name != "clean"), key=lambda name: name == "aa")


def perturb(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    attack: str = "pgd20",
    epsilon: float,
    norm: Norm = "linf",
    seed: int = 0,
    indices: Tensor | None = None,
) -> Tensor:
    """Return what the PGD or CW attack of an evaluation makes of images.

    Args:
        model: From images to logits.
        images: `(N, ...)` in [0, 1].
        labels: int64 `(N,)`.
        attack: "pgdN" or "cwN".
        epsilon: Radius of the ball, in units of the pixels; a step is a quarter of it.
        norm: "linf" or "l2".
        seed: Of the uniform start.
        indices: Which samples these are, int64 `(N,)`; 0 to N - 1 if left out.

    Returns:
        The last iterate, `(N, ...)`.

    Raises:
        ValueError: Another attack, or what `pgd` refuses.

    Gradient:
        None: the result is detached.

    Example:
        >>> images = torch.full((1, 4), 0.5)
        >>> moved = perturb(nn.Linear(4, 3), images, torch.tensor([0]), attack="cw5", epsilon=0.1)
        >>> bool((moved - images).abs().max() <= 0.1 + 1e-6)
        True
    """
    kind, steps = _read_name(attack)
    return pgd(
        model,
        images,
        _LOSSES[kind][1](labels),
        epsilon=epsilon,
        steps=steps,
        step_size=STEP_RATIO * epsilon,
        norm=norm,
        start="uniform",
        keep="last",
        seed=seed,
        indices=indices,
    )


def _read_name(attack: str) -> tuple[str, int]:
    """Return the kind, "pgd" or "cw", and the steps of an attack by gradient."""
    match = _GRADIENT_ATTACK.fullmatch(attack)
    if match is None:
        raise ValueError(f"`attack` expected pgdN or cwN with N steps, got {attack!r}")
    return match[1], int(match[2])


class _Made(NamedTuple):
    """What one attack at one radius found."""

    row: Row
    flags: Tensor
    warnings: list[str]


class _Plan(NamedTuple):
    """What all attacks of an evaluation have in common."""

    network: Inference
    images: Tensor
    labels: Tensor
    norm: Norm
    seed: int
    folder: Path | None
    progress: Progress
    turns: Turns

    def pgd(self, name: str, epsilon: float) -> _Made:
        """Attack by PGD or CW, a batch at a time."""
        start, device = time.monotonic(), self.network.device
        parts: list[Tensor] = []
        self.progress(name, epsilon, 0, len(self.images))
        for _, indices in own(torch.split(torch.arange(len(self.images)), self.network.batch_size), self.turns):
            images, labels = self.images[indices].to(device, torch.float32), self.labels[indices].to(device)
            attacked = perturb(
                self.network,
                images,
                labels,
                attack=name,
                epsilon=epsilon,
                norm=self.norm,
                seed=self.seed,
                indices=indices.to(device),
            )
            with torch.no_grad():
                parts.append((self.network(attacked).argmax(-1) == labels).cpu())
            self.progress(name, epsilon, int(indices[-1]) + 1, len(self.images))
        flags = torch.cat(self.turns.in_turns(parts))
        kind, steps = _read_name(name)
        row = Row(
            attack=name,
            epsilon=epsilon,
            accuracy=share(flags),
            step_size=STEP_RATIO * epsilon,
            steps=steps,
            start="uniform",
            iterate="last",
            loss=_LOSSES[kind][0],
            norm=self.norm,
            n=len(flags),
            seed=self.seed,
            library=f"limbeck {version('limbeck')}",
            standard=None,
            seconds=time.monotonic() - start,
        )
        return _Made(row, flags, [])

    def autoattack(self, epsilon: float) -> _Made:
        """Attack by AutoAttack, a chunk at a time."""
        result = autoattack(
            self.network.model,
            self.images,
            self.labels,
            epsilon=epsilon,
            norm=self.norm,
            seed=self.seed,
            batch_size=self.network.batch_size,
            folder=self.folder,
            progress=partial(self.progress, "aa", epsilon),
            turns=self.turns,
        )
        row = Row(
            attack="aa",
            epsilon=epsilon,
            accuracy=share(result.robust),
            step_size=None,
            steps=None,
            start=None,
            iterate=None,
            loss=None,
            norm=self.norm,
            n=len(result.robust),
            seed=self.seed,
            library=result.library,
            standard=result.standard,
            seconds=result.seconds,
        )
        warning = square_warning({attack: share(flags) for attack, flags in result.flags.items()}, epsilon)
        return _Made(row, result.robust, [warning] if warning else [])
