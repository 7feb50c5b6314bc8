"""Run and comparison folders in the engine's format, made of random numbers: for tests of what only reads files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

KL = {"name": "kl", "weight": 1.0, "warmup_epochs": 0.0, "decay": "none", "temperature": 4.0, "scale_by_t2": True}
CROSS_ENTROPY = {"name": "cross_entropy", "weight": 1.0, "warmup_epochs": 0.0, "decay": "none", "label_smoothing": 0.0}
BALANCED = (100,) * 10
LONG_TAILED = (100, 77, 60, 46, 36, 28, 21, 16, 13, 10)


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def _logits(rng: np.random.Generator, labels: np.ndarray, signal: float, classes: int) -> np.ndarray:
    """Random logits whose largest is often the label's, more so with more `signal`."""
    distance = np.abs(labels[:, None] - np.arange(classes))
    return (rng.normal(size=distance.shape) + signal * np.exp(-distance / 1.5)).astype(np.float32)


def metrics(top1: float, *, teacher: bool = True, samples: int = 300) -> dict[str, Any]:
    agreement = {"agreement": round(0.3 + 0.65 * top1, 6)} if teacher else {}
    return {
        "top1": top1,
        "top5": 1.0,
        "nll": 2.5 * (1 - top1),
        "ece": 0.4 * (1 - top1),
        **agreement,
        "samples": samples,
    }


def fake_run(
    folder: Path,
    *,
    top1: float = 0.9,
    validation: float | None = 0.9,
    seed: int = 0,
    counts: Sequence[int] = BALANCED,
    losses: Sequence[dict[str, Any]] = (CROSS_ENTROPY, KL),
    epochs: int = 20,
    distill: bool = True,
    optimistic: float | None = None,
) -> Path:
    """Write a finished run with the accuracies given; its predictions are random around them."""
    rng, classes, samples = np.random.default_rng(seed + int(1e6 * top1)), len(counts), 300
    lines = []
    for epoch in range(1, epochs + 1):
        rise = 1 - 0.75 * np.exp(-epoch / 3) + 0.004 * rng.normal()
        step = {"kind": "step", "step": 16 * epoch, "epoch": epoch, "learning_rate": 0.05, "loss": 2.3 / epoch}
        lines.append(step | {"parts": {"cross_entropy": 1.0, "kl": 1.3}, "weights": {"cross_entropy": 1.0, "kl": 1.0}})
        line: dict[str, Any] = {"kind": "epoch", "epoch": epoch, "step": 16 * epoch}
        line["train"] = {"loss": 2.3 * np.exp(-epoch / 6) + 0.1, "top1": min(1.0, rise)}
        line["validation"] = None if validation is None else metrics(validation * rise, teacher=distill, samples=200)
        if distill and validation is not None:
            line["accuracy_by_teacher_score"] = [min(1.0, validation * rise * f) for f in (0.8, 0.97, 1.08, 1.1)]
        lines.append(line)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    write_json(folder / "environment.json", {"limbeck": "0.1.0", "python": "3.11.9", "packages": {"torch": "2.13.0"}})
    (folder / "config.yaml").write_text("task: distill\n", encoding="utf-8")
    labels = np.arange(samples) % classes
    scarce = 1 - np.array(counts)[labels][:, None] / max(counts)
    logits = _logits(rng, labels, 5.5 * top1, classes) - 1.2 * scarce * np.eye(classes)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    arrays = {
        "test_logits": logits.astype(np.float32),
        "test_labels": labels,
        "test_features": rng.normal(size=(samples, 16)).astype(np.float32),
        "validation_logits": np.zeros((0, classes), np.float32),
        "validation_labels": np.zeros(0, np.int64),
        "train_class_counts": np.array(counts),
        "class_means": np.stack([probabilities[labels == label].mean(0) for label in range(classes)]),
    }
    if distill:
        arrays["teacher_test_logits"] = _logits(np.random.default_rng(7), labels, 7.0, classes)
        arrays["prior"] = arrays["class_means"].astype(np.float32)
    np.savez(folder / "predictions.npz", **arrays)  # type: ignore[arg-type]
    held_out = None if validation is None else metrics(validation, teacher=distill, samples=200)
    last = {"epoch": epochs, "validation": held_out, "test": metrics(top1, teacher=distill)}
    teachers = [{"test": metrics(0.975, teacher=False), "validation": metrics(0.98, teacher=False)}] if distill else []
    write_json(
        folder / "results.json",
        {"format": 1, "title": "fake", "task": "distill" if distill else "supervised", "seed": seed}
        | {"losses": list(losses), "data": {"name": "digits"}, "num_classes": classes, "class_counts": list(counts)}
        | {"epochs": epochs, "steps": 16 * epochs, "parameters": 1234, "train_seconds": 3.2, "last": last}
        | {"best": None if held_out is None else last, "ema": None, "teachers": teachers}
        | {"optimistic": None if optimistic is None else {"epoch": 3, "test": metrics(optimistic, teacher=distill)}},
    )
    return folder


def fake_comparison(
    folder: Path,
    rows: dict[str, list[list[tuple[float, float | None]]]],
    *,
    baseline: str = "kl",
    equal_by_theory: Sequence[tuple[str, str]] = (),
    counts: Sequence[int] = BALANCED,
) -> Path:
    """Write a comparison; `rows[name][setting][seed]` is (test top-1, validation top-1)."""
    content: dict[str, Any] = {"format": 1, "title": "A fake comparison", "rows": {}, "baseline": baseline}
    for name, settings in rows.items():
        row: dict[str, Any] = {"settings": [], "runs": []}
        for index, seeds in enumerate(settings):
            terms = [CROSS_ENTROPY] if name == "ce" else [CROSS_ENTROPY, KL | {"name": name, "weight": 1.0 + index}]
            row["settings"].append(terms)
            row["runs"].append([f"{name}/setting{index}/seed{seed}" for seed in range(len(seeds))])
            for seed, (top1, validation) in enumerate(seeds):
                run = folder / row["runs"][-1][seed]
                fake_run(run, top1=top1, validation=validation, seed=seed, counts=counts, losses=terms)
        content["rows"][name] = row
    fake_run(folder / "teacher0", top1=0.975, validation=0.98, counts=counts, distill=False)
    content |= {
        "seeds": list(range(len(next(iter(rows.values()))[0]))),
        "vary_split": False,
        "diverged": {},
        "equal_by_theory": list(equal_by_theory),
    }
    write_json(
        folder / "comparison.json", content | {"teachers": ["teacher0"], "seconds": {"teachers": 3, "students": 61}}
    )
    return folder


def demo_like(folder: Path, *, counts: Sequence[int] = LONG_TAILED, seeds: int = 5) -> Path:
    """Write a comparison of five rows, DKL equal to KL, GKL better, IKL like KL, two settings each."""
    rng = np.random.default_rng(0)
    shared = rng.normal(scale=0.008, size=seeds)
    rows = {}
    for name, gain in {"ce": -0.04, "kl": 0.0, "dkl": 0.0, "ikl": 0.002, "gkl": 0.02}.items():
        noise = 0 * shared if name in {"kl", "dkl"} else rng.normal(scale=0.004, size=seeds)
        tests = np.round((0.9 + gain + shared + noise) * 540) / 540
        rows[name] = [
            [(float(t), float(t) - 0.005) for t in tests],
            [(float(t) - 0.01, float(t) - 0.02) for t in tests],
        ]
    return fake_comparison(folder, rows, equal_by_theory=[("kl", "dkl")], counts=counts)
