"""Run and comparison folders of adversarial training in the engine's format, made of random numbers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from fake_runs import BALANCED, CROSS_ENTROPY, fake_comparison, fake_run, metrics, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

EPSILON = 0.2
ADVERSARY = {"norm": "linf", "epsilon": EPSILON, "steps": 10, "step_ratio": 0.25, "start": "gaussian"}
ADVERSARY |= {"validation_attack": "pgd10", "attacks": ["pgd20", "aa"]}
ON_ADVERSARIAL = CROSS_ENTROPY | {"on": "adversarial"}


def attack_row(attack: str, accuracy: float, epsilon: float = EPSILON, **changes: Any) -> dict[str, Any]:
    """A line of robustness.json."""
    row = {"attack": attack, "epsilon": epsilon, "accuracy": accuracy, "norm": "linf", "n": 300, "seed": 0}
    if attack == "aa":
        row |= {"library": "pyautoattack 0.2.0", "standard": True, "seconds": 30.0}
    else:
        loss = "margin" if attack.startswith("cw") else "cross_entropy"
        row |= {"step_size": epsilon / 4, "steps": int(attack.lstrip("pgdcw")), "start": "uniform", "iterate": "last"}
        row |= {"loss": loss, "library": "limbeck 0.1.0", "standard": None, "seconds": 1.2}
    return row | changes


def fake_robustness(
    attacks: Mapping[str, Mapping[float, float]], *, clean: float, weights: str = "best", warnings: Sequence[str] = ()
) -> dict[str, Any]:
    """What robustness.json holds; `attacks[name][epsilon]` is what is left."""
    rows = [attack_row(name, left, epsilon) for name, found in attacks.items() for epsilon, left in found.items()]
    worst = [
        {"epsilon": epsilon, "attacks": list(attacks), "accuracy": min(attacks[name][epsilon] for name in attacks)}
        for epsilon in next(iter(attacks.values()), {})
    ]
    content = {"format": 1, "weights": weights, "split": "test", "samples": 300, "norm": "linf", "seed": 0}
    return content | {"clean": clean, "rows": rows, "worst": worst, "averages": [], "warnings": list(warnings)}


def fake_robust_run(
    folder: Path,
    *,
    clean: float = 0.97,
    left: float = 0.6,
    seed: int = 0,
    validation: tuple[float, float] | None = (0.96, 0.62),
    attacks: Sequence[str] = ("pgd20", "cw20", "aa"),
    epsilons: Sequence[float] = (EPSILON,),
    reported: str = "best",
    epoch: int = 15,
    epochs: int = 20,
    losses: Sequence[dict[str, Any]] = (CROSS_ENTROPY, ON_ADVERSARIAL),
    counts: Sequence[int] = BALANCED,
    adversary: Mapping[str, Any] = ADVERSARY,
    warnings: Sequence[str] = (),
) -> Path:
    """Write a finished run: `clean` and AutoAttack's `left` on test; `validation` is (clean, robust)."""
    held_out = None if validation is None else validation[0]
    fake_run(
        folder, top1=clean, validation=held_out, seed=seed, counts=counts, losses=losses, epochs=epochs, distill=False
    )
    gain = {"aa": 0.0, "cw20": 0.02, "pgd20": 0.03}
    found = {
        name: {epsilon: round(_left(clean, left + gain.get(name, 0.04), epsilon / EPSILON), 6) for epsilon in epsilons}
        for name in attacks
    }
    robustness = fake_robustness(found, clean=clean, weights=reported, warnings=warnings)
    write_json(folder / "robustness.json", robustness)
    _predictions(folder, clean, left, counts, seed)
    results = json.loads((folder / "results.json").read_text())
    test = metrics(clean, teacher=False) | {"robust": left + 0.04}
    measured = None if validation is None else metrics(validation[0], teacher=False, samples=200)
    best = {"epoch": epoch, "test": test, "validation": measured and measured | {"robust": validation[1]}}
    last = {"epoch": epochs, "test": metrics(clean + 0.01, teacher=False) | {"robust": left - 0.05}}
    last["validation"] = measured and measured | {"robust": validation[1] - 0.05}
    results |= {"task": "adversarial", "last": last, "best": None, "ema": None, reported: best, "reported": reported}
    write_json(folder / "results.json", results | {"adversary": dict(adversary), "robustness": robustness})
    _learning(folder, validation, epoch)
    return folder


def unattacked(run: Path) -> None:
    """Take the attacks on test images out of a run: it was not chosen, or they are still to be made."""
    (run / "robustness.json").unlink()
    (run / "robust_predictions.npz").unlink()
    results = json.loads((run / "results.json").read_text())
    write_json(run / "results.json", results | {"robustness": None})


def _left(clean: float, left: float, ratio: float) -> float:
    """Accuracy at a radius: all of it at 0, `left` at the training's, ever less beyond."""
    return clean * (left / clean) ** (ratio**1.5)


def _predictions(folder: Path, clean: float, left: float, counts: Sequence[int], seed: int) -> None:
    """Write robust_predictions.npz: the attack moves logits and features towards the next class."""
    rng, classes = np.random.default_rng(seed + int(1e6 * left)), len(counts)
    with np.load(folder / "predictions.npz") as file:
        labels, logits = file["test_labels"], file["test_logits"]
    centres = np.random.default_rng(7).normal(size=(classes, 16)) * 2
    towards = (labels + 1) % classes
    share = np.clip(rng.normal(0.9 - 0.7 * left, 0.2, size=(len(labels), 1)), 0, 1)
    features = centres[labels] + rng.normal(size=(len(labels), 16)) * (1.2 - 0.5 * clean)
    moved = features + share * (centres[towards] - centres[labels]) + 0.3 * rng.normal(size=features.shape)
    pushed = logits + 4 * share * (np.eye(classes)[towards] - np.eye(classes)[labels])
    arrays = {"labels": labels, "clean_logits": logits, "adversarial_logits": pushed.astype(np.float32)}
    arrays["adversarial_epsilon"] = np.array(EPSILON)
    arrays |= {"clean_features": features.astype(np.float32), "adversarial_features": moved.astype(np.float32)}
    np.savez(folder / "robust_predictions.npz", **arrays)  # type: ignore[arg-type]


def _learning(folder: Path, validation: tuple[float, float] | None, best: int) -> None:
    """Give the epoch lines robust accuracy, which falls after the best epoch."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "epoch" and validation is not None:
            fall = 0.004 * abs(line["epoch"] - best) * (1 if line["epoch"] > best else 2)
            line["validation"]["robust"] = validation[1] - fall
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


Seed = tuple[float, float, float, float]  # clean and robust on test, clean and robust on validation


def fake_robust_comparison(
    folder: Path, rows: Mapping[str, Sequence[Sequence[Seed]]], *, baseline: str = "trades", **options: Any
) -> Path:
    """Write a comparison; `rows[name][setting][seed]` is (clean, robust on test, clean, robust on validation)."""
    plain = {name: [[(seed[0], seed[2]) for seed in seeds] for seeds in settings] for name, settings in rows.items()}
    fake_comparison(folder, plain, baseline=baseline)
    for name, settings in rows.items():
        for index, seeds in enumerate(settings):
            terms = [CROSS_ENTROPY, {"name": "kl", "weight": 1.0 + index, "on": "clean"}]
            for seed, (clean, left, *validation) in enumerate(seeds):
                fake_robust_run(
                    folder / f"{name}/setting{index}/seed{seed}",
                    clean=clean,
                    left=left,
                    validation=(validation[0], validation[1]),
                    seed=seed,
                    epoch=12 + seed,
                    losses=terms,
                    **options,
                )
    content = json.loads((folder / "comparison.json").read_text())
    content |= {"teachers": [], "task": "adversarial", "seconds": {"teachers": 0, "students": 61}}
    for row in content["rows"].values():
        row["adversary"] = {}
    write_json(folder / "comparison.json", content)
    return folder


def robust_demo_like(folder: Path, *, seeds: int = 3, **options: Any) -> Path:
    """Write three rows of three settings: GKL buys robustness with clean accuracy, PGD-AT has less of it."""
    rng = np.random.default_rng(0)
    rows: dict[str, list[list[Seed]]] = {}
    for name, (clean, left) in {"pgd_at": (0.985, 0.52), "trades": (0.979, 0.60), "gkl": (0.965, 0.68)}.items():
        rows[name] = []
        for setting in range(3):
            step = 0.012 * (setting - 1)
            noise = np.round(rng.normal(scale=0.004, size=(seeds, 4)), 4)
            chosen = 0.0 if setting == 1 else -0.02
            rows[name].append(
                [
                    (
                        clean - step / 2 + n[0],
                        left + step + n[1],
                        clean - step / 2 + n[2],
                        left + chosen + step / 2 + n[3],
                    )
                    for n in noise.tolist()
                ]
            )
    return fake_robust_comparison(folder, rows, **options)


def fake_robust_sweep(folder: Path, path: str, points: Mapping[Any, Sequence[Seed]], **options: Any) -> Path:
    """Write a sweep of one option; `points[value][seed]` is (clean, robust on test, clean, robust on validation).

    Where the option is one of the adversary, the runs have its value.
    """
    seeds = range(len(next(iter(points.values()))))
    content: dict[str, Any] = {"format": 1, "title": "A robust sweep", "protocol": "holdout", "points": []}
    for value, accuracies in points.items():
        name = f"{path.rsplit('.', 1)[-1]}={value}"
        content["points"].append({"name": name, "values": [value], "runs": [f"{name}/seed{seed}" for seed in seeds]})
        section, option = path.split(".", 1)
        adversary = ADVERSARY | ({option: value} if section == "adversary" else {})
        for seed, (clean, left, *held_out) in enumerate(accuracies):
            validation = (held_out[0], held_out[1]) if held_out else None
            run, found = folder / name / f"seed{seed}", (adversary["epsilon"],)
            fake_robust_run(
                run, clean=clean, left=left, validation=validation, adversary=adversary, epsilons=found, **options
            )
    content |= {"axes": [{"path": path, "values": list(points)}], "seeds": list(seeds), "vary_split": False}
    write_json(folder / "sweep.json", content | {"diverged": {}, "teachers": []})
    return folder
