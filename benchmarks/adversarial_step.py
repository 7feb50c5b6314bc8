"""A step of adversarial training: ours against the public form, what else makes it faster, and what methods cost.

    python -m benchmarks.adversarial_step [--rounds 7] [--csv FILE]

The public form passes the clean images through the network, with a graph, in each step of the attack; perturbs the
weights by way of a copy of the network; and writes the loss out over all pairs of classes. Ours is the objective of
`limbeck train`, driven as the engine drives it. Both are GKL-AT and are held against each other in float64 before they
are timed. They take turns in one process, one thread, so that a drift of the machine meets both alike: each ratio is
given of the fastest rounds and as the median over rounds. Passes are floating-point operations over those of one
forward pass of one batch.

A variant is labelled `exact` where every number of float64 stays what it was up to the order of sums, `rounding` where
only the order of sums in float32 changes, and `no` where the arithmetic is another.
"""

from __future__ import annotations

import argparse
import copy
import csv
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from limbeck.adversary import start_points
from limbeck.config import TERMS, AdversaryOptions, ModelOptions
from limbeck.data import Batch
from limbeck.models import build_model
from limbeck.objectives.adversarial import Adversarial
from limbeck.objectives.build import Facts

EPSILON, AWP_SIZE, MSE_WEIGHT, CE_WEIGHT, TAU = 8 / 255, 0.005, 20.0, 5.0, 4.0
SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
CLEAN: dict[str, Any] = {"name": "cross_entropy"}
GKL: dict[str, Any] = {"name": "gkl", "mse_weight": MSE_WEIGHT, "ce_weight": CE_WEIGHT, "prior_temperature": TAU}
KL: dict[str, Any] = {"name": "kl", "weight": 6.0}


@dataclass(frozen=True)
class Setting:
    """What is trained: the attack's loss is that of the authors' scripts, the cross-entropy part alone for CIFAR-10."""

    classes: int
    steps: int
    awp: bool
    samples: int
    network: str

    @property
    def attack_loss(self) -> str:
        """Name in the configuration."""
        return "kl" if self.classes == 10 else "gkl"


def network(name: str, classes: int, seed: int = 0) -> nn.Module:
    """Return a network for images of 3 x 32 x 32 in training mode."""
    return build_model(ModelOptions(name=name), image_shape=(3, 32, 32), num_classes=classes, seed=seed).train()


def random_batch(samples: int, classes: int, *, second: bool = False) -> Batch:
    """Return noise: the time of a step does not depend on what the images show."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(1 + second, samples, 3, 32, 32, generator=generator)
    labels = torch.randint(classes, (samples,), generator=generator)
    return Batch(images[0], labels, torch.arange(samples), 0, images[1] if second else None)


# --- ours ---------------------------------------------------------------------------------------------------------


class Ours:
    """The objective and its optimizer, driven as the engine drives them."""

    def __init__(
        self,
        model: nn.Module,
        setting: Setting,
        terms: Sequence[dict[str, Any]] = (CLEAN, GKL),
        *,
        attack_loss: str | None = None,
        guide: nn.Module | None = None,
        bfloat16: bool = False,
        frozen: bool = False,
    ) -> None:
        options = AdversaryOptions(
            epsilon=EPSILON,
            steps=setting.steps,
            loss=setting.attack_loss if attack_loss is None else attack_loss,
            awp=AWP_SIZE if setting.awp else 0.0,
        )
        built = [TERMS[term["name"]].model_validate(term) for term in terms]
        self.objective = Adversarial(model, built, options, epochs=1, facts=Facts(setting.classes), guide=guide)
        self.optimizer = torch.optim.SGD(self.objective.parameters(), fused=True, **SGD)
        self.bfloat16, self.frozen = bfloat16, frozen

    def __call__(self, batch: Batch) -> None:
        """Take a step."""
        with self._autocast():
            self.objective.requires_grad_(not self.frozen)
            attacked = self.objective.prepare(batch)
            self.objective.requires_grad_(True)

        def accumulate_gradient() -> Any:
            with self._autocast():
                outcome = self.objective(attacked)
            outcome.loss.backward()
            return outcome

        with self.objective.around_step(accumulate_gradient):
            self.optimizer.zero_grad()
            outcome = accumulate_gradient()
            self.optimizer.step()
        self.objective.after_step(attacked, outcome)

    def _autocast(self) -> Any:
        return torch.autocast("cpu", torch.bfloat16) if self.bfloat16 else nullcontext()


# --- the public form ----------------------------------------------------------------------------------------------


class Public:
    """The same step in the form of the public scripts, written from a description of them."""

    def __init__(self, model: nn.Module, setting: Setting) -> None:
        self.model, self.setting = model, setting
        self.optimizer = torch.optim.SGD(model.parameters(), **SGD)
        self.proxy = copy.deepcopy(model)
        self.proxy_optimizer = torch.optim.SGD(self.proxy.parameters(), lr=0.01)
        self.prior = torch.full((setting.classes, setting.classes), 1 / setting.classes)
        self.sums, self.counts = torch.zeros_like(self.prior), torch.zeros(setting.classes, 1)

    def __call__(self, batch: Batch) -> None:
        """Take a step."""
        rows = self.prior.to(batch.images.dtype)[batch.labels]
        adversarial = self.attack(batch, rows)
        self.model.train()
        perturbation = self.perturbation(batch, adversarial, rows) if self.setting.awp else {}
        for name, delta in perturbation.items():
            self.model.get_parameter(name).data.add_(delta)
        self.optimizer.zero_grad()
        logits, clean = self.model(adversarial), self.model(batch.images)
        loss = F.cross_entropy(clean, batch.labels) + pairwise_gkl(logits, clean, rows, MSE_WEIGHT, CE_WEIGHT)
        loss.backward()
        self.optimizer.step()
        for name, delta in perturbation.items():
            self.model.get_parameter(name).data.sub_(delta)
        one_hot = F.one_hot(batch.labels, self.setting.classes).float()
        self.sums += one_hot.T @ F.softmax(clean.detach() / TAU, 1).float()
        self.counts += one_hot.sum(0).unsqueeze(1)

    def attack(self, batch: Batch, rows: Tensor) -> Tensor:
        """Return the adversarial images: both kinds pass through the network in each step."""
        self.model.eval()
        images, mse_weight = batch.images, 0.0 if self.setting.attack_loss == "kl" else 1.0
        where = {"epsilon": EPSILON, "norm": "linf", "seed": 0, "epoch": 1}
        x = start_points(images, "gaussian", **where, indices=batch.indices)
        for _ in range(self.setting.steps):
            x.requires_grad_()
            loss = pairwise_gkl(self.model(x), self.model(images), rows, mse_weight, 1.0)
            x = x.detach() + EPSILON / 4 * torch.autograd.grad(loss, x)[0].sign()
            x = torch.min(torch.max(x, images - EPSILON), images + EPSILON).clamp(0, 1)
        return x

    def perturbation(self, batch: Batch, adversarial: Tensor, rows: Tensor) -> dict[str, Tensor]:
        """Return how far a step of ascent moves the weights of a copy, rescaled to a share of their norms."""
        self.proxy.load_state_dict(self.model.state_dict())
        self.proxy.train()
        logits, clean = self.proxy(adversarial), self.proxy(batch.images)
        loss = F.cross_entropy(clean, batch.labels) + pairwise_gkl(logits, clean, rows, MSE_WEIGHT, CE_WEIGHT)
        self.proxy_optimizer.zero_grad()
        (-loss).backward()
        self.proxy_optimizer.step()
        moved, weights = self.proxy.state_dict(), self.model.state_dict()
        perturbation = {}
        for name, weight in weights.items():
            if "weight" in name and weight.dim() > 1:
                difference = moved[name] - weight
                perturbation[name] = AWP_SIZE * weight.norm() / (difference.norm() + 1e-20) * difference
        return perturbation


def pairwise_gkl(logits: Tensor, target_logits: Tensor, rows: Tensor, mse_weight: float, ce_weight: float) -> Tensor:
    """GKL at power 1 with its (N, C, C) tensors; without the weighted MSE they are not made."""
    cross_entropy = -(F.softmax(target_logits, 1).detach() * F.log_softmax(logits, 1)).sum(1).mean()
    if not mse_weight:
        return ce_weight * cross_entropy
    delta = (logits.unsqueeze(2) - logits.unsqueeze(1)) - (target_logits.unsqueeze(2) - target_logits.unsqueeze(1))
    weights = rows.unsqueeze(2) * rows.unsqueeze(1)
    return mse_weight * 0.25 * (weights * delta**2).sum() / weights.sum() + ce_weight * cross_entropy


# --- measuring ----------------------------------------------------------------------------------------------------


def verify(setting: Setting) -> None:
    """Exit rather than measure: both forms must make the same network in float64."""
    small = Setting(setting.classes, 2, setting.awp, 4, "resnet8")
    batch = random_batch(small.samples, small.classes)
    batch = Batch(batch.images.double(), batch.labels, batch.indices, 0)
    ours, public = (network(small.network, small.classes).double() for _ in range(2))
    for step in (Ours(ours, small), Public(public, small)):
        step(batch)
    pairs = zip(ours.state_dict().values(), public.state_dict().values(), strict=True)
    worst = max((a - b).abs().max().item() for a, b in pairs)
    if worst > 1e-12:
        sys.exit(f"{setting}: the two forms differ by {worst:.1e} in float64")


def seconds_per_round(steps: dict[str, Callable[[Batch], None]], batches: dict[str, Batch], rounds: int) -> Any:
    """Return name -> seconds of each round; every contender has its turn in a round, after one that is not timed."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step(batches[name])
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(slow: list[float], fast: list[float]) -> tuple[float, float]:
    """Return the ratio of the fastest rounds, and the median of the rounds' ratios."""
    return min(slow) / min(fast), statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def compare_forms(setting: Setting, rounds: int) -> dict[str, object]:
    """Return the row of one setting."""
    verify(setting)
    batch = random_batch(setting.samples, setting.classes)
    ours = Ours(network(setting.network, setting.classes), setting)
    public = Public(network(setting.network, setting.classes), setting)
    contenders = {"public": public, "ours": ours}
    seconds = seconds_per_round(contenders, dict.fromkeys(contenders, batch), rounds)
    of_minima, of_rounds = ratios(seconds["public"], seconds["ours"])
    return {
        "variant": "ours over the public form",
        "same_numbers": "exact",
        "classes": setting.classes,
        "steps": setting.steps,
        "awp": setting.awp,
        "seconds": min(seconds["ours"]),
        "seconds_before": min(seconds["public"]),
        "speed_up_of_minima": of_minima,
        "speed_up_median": of_rounds,
        "passes": passes(ours, batch, setting),
        "passes_before": passes(public, batch, setting),
    }


def compare_variants(setting: Setting, rounds: int, *, compiled: bool) -> list[dict[str, object]]:
    """Return a row for each variant of ours over ours in float32, contiguous and eager."""
    plain = random_batch(setting.samples, setting.classes)
    last = Batch(plain.images.contiguous(memory_format=torch.channels_last), plain.labels, plain.indices, 0)
    kinds = {"float32": "", "channels_last": "rounding", "bf16": "no", "channels_last, bf16": "no"}
    if compiled:
        # A compiled backward pass makes the gradients of all weights, wanted or not: in the attack they are frozen.
        kinds |= {"compile": "rounding", "compile, frozen": "rounding"}
        kinds |= {"channels_last, compile, frozen": "rounding", "channels_last, bf16, compile, frozen": "no"}
    steps: dict[str, Callable[[Batch], None]] = {}
    for name in kinds:
        model = network(setting.network, setting.classes)
        if "channels_last" in name:
            model = model.to(memory_format=torch.channels_last)
        if "compile" in name:
            model.compile()
        steps[name] = Ours(model, setting, bfloat16="bf16" in name, frozen="frozen" in name)
    batches = {name: last if "channels_last" in name else plain for name in kinds}
    seconds = seconds_per_round(steps, batches, rounds)
    rows = []
    for name in list(kinds)[1:]:
        of_minima, of_rounds = ratios(seconds["float32"], seconds[name])
        rows.append(
            {
                "variant": name,
                "same_numbers": kinds[name],
                "classes": setting.classes,
                "steps": setting.steps,
                "awp": setting.awp,
                "seconds": min(seconds[name]),
                "seconds_before": min(seconds["float32"]),
                "speed_up_of_minima": of_minima,
                "speed_up_median": of_rounds,
            }
        )
    return rows


class Operations(TorchDispatchMode):
    """Counts floating-point operations; torch's own counter fails where a gradient of the images alone is asked for."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and add what it costs."""
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        self.total += count(*args, **(kwargs or {}), out_val=result) if count else 0
        return result


def passes(step: Callable[[Batch], None], batch: Batch, setting: Setting) -> float:
    """Return the floating-point operations of a step over those of one forward pass of `setting.samples` images."""
    images = random_batch(setting.samples, setting.classes).images
    with Operations() as forward, torch.no_grad():
        network(setting.network, setting.classes)(images)
    with Operations() as whole:
        step(batch)
    return whole.total / forward.total


def compare_methods(setting: Setting) -> list[dict[str, object]]:
    """Return the passes of each method's step, and of GKL-AT with two and with three views of each image."""
    one = random_batch(setting.samples, setting.classes)
    two = random_batch(setting.samples, setting.classes, second=True)
    three = random_batch(3 * setting.samples, setting.classes)
    guided = [{"name": "cross_entropy", "on": "guide"}, {"name": "logit_mse", "on": "guide"}, KL]
    methods: dict[str, tuple[Sequence[dict[str, Any]], Batch]] = {
        "PGD-AT": ([{"name": "cross_entropy", "on": "adversarial"}], one),
        "MART": ([{"name": "mart"}], one),
        "TRADES": ([CLEAN, KL], one),
        "LBGAT, its guide as large as the network": (guided, one),
        "GKL-AT": ([CLEAN, GKL], one),
        "GKL-AT, two views": ([CLEAN, GKL], two),
        "GKL-AT, three views": ([CLEAN, GKL], three),
    }
    rows = []
    for name, (terms, batch) in methods.items():
        guide = network(setting.network, setting.classes, seed=1) if terms is guided else None
        model = network(setting.network, setting.classes)
        step = Ours(model, setting, terms, attack_loss="auto", guide=guide)
        rows.append(
            {"variant": name, "steps": setting.steps, "awp": setting.awp, "passes": passes(step, batch, setting)}
        )
    return rows


def show(row: dict[str, object]) -> dict[str, object]:
    """Print a row and return it."""
    shown = {key: f"{value:.3f}" if isinstance(value, float) else value for key, value in row.items()}
    print(", ".join(f"{key} {value}" for key, value in shown.items() if value != ""), flush=True)
    return row


def write(path: Path, rows: list[dict[str, object]], setting: Setting) -> None:
    """Write the rows, each with what they were measured on."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    what = {"network": setting.network, "samples": setting.samples, "torch": torch.__version__, "commit": commit}
    names = dict.fromkeys(name for row in rows for name in row)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=[*names, *what])
        writer.writeheader()
        writer.writerows({**row, **what} for row in rows)


def main() -> None:
    """Verify, time, count, print; write a CSV when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--network", default="wrn_16_2")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out: it takes a minute")
    parser.add_argument("--csv", type=Path, help="also write the rows here")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch._dynamo.config.recompile_limit = 64  # the variants share their code, and each has several modes
    rows: list[dict[str, object]] = []
    for classes in (10, 100):
        for steps in (5, 10):
            for awp in (False, True):
                setting = Setting(classes, steps, awp, given.samples, given.network)
                rows.append(show(compare_forms(setting, given.rounds)))
    setting = Setting(10, 5, False, given.samples, given.network)
    rows += [show(row) for row in compare_variants(setting, given.rounds, compiled=not given.no_compile)]
    for awp in (False, True):
        rows += [show(row) for row in compare_methods(Setting(10, 10, awp, given.samples, given.network))]
    if given.csv is not None:
        write(given.csv, rows, setting)


if __name__ == "__main__":
    main()
