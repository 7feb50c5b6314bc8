"""What each kind of interrelations knows of a teacher's classes, and how much of it is chance.

    limbeck train supervised/digits/teacher --run runs/digits
    limbeck train teacher/mnist5k/resnet20 --run runs/mnist5k
    python -m benchmarks.interrelations runs/digits runs/mnist5k [--draws 20] [--pictures docs/assets]

Columns, over the pairs of different classes:

- mean, deviation: of the similarities.
- confusion: Spearman's correlation with the teacher's mean probability of the one class on test images of the other,
  both ways averaged.
- nearest: share of the classes whose nearest one is the one that the teacher takes them for most. Where the order of
  the samples matters, both are means over the draws of it.
- halves: Pearson's correlation between the matrices of two halves of the training images, mean over the draws.
- pairs: the same of what is left when each matrix is less a number for each class, by least squares.
- order: as halves, between two orders of the same images, all of them.
- gradient: cosine of the gradient of WKD-L's transport with the kind's cost and with a constant cost of the same mean,
  of a student that is the teacher on test images with noise of deviation 2 on its logits.

The first picture is that of the last run: `cka`, `cka` in another order, and `centroid`, classes in the same order.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr
from torch import Tensor

from limbeck import sinkhorn
from limbeck.data.user import UserTraining, first_two
from limbeck.draws import permutation
from limbeck.engine.evaluate import OpenRun, open_run
from limbeck.engine.interrelations import compute_interrelations
from limbeck.engine.metrics import predict
from limbeck.functional.interrelations import cost_from_interrelations
from limbeck.interrelation_files import KINDS, PAIRED, Kind

TITLES = ("kind", "mean", "deviation", "confusion", "nearest", "halves", "pairs", "order", "gradient")


class Teacher(NamedTuple):
    """A run, what it says of its test images, and its features of the training images."""

    opened: OpenRun
    logits: Tensor
    confusion: Tensor
    features: Tensor
    labels: Tensor

    def similarities(self, kind: Kind, places: Tensor | slice = slice(None), seed: int = 0) -> Tensor:
        """(C, C), of the training images or of some of them; the head alone sees their features again."""
        classes = self.opened.data.num_classes
        part = UserTraining([(self.features[places], self.labels[places])], first_two, classes)
        return compute_interrelations(self.opened.model.head, part, kind=kind, num_classes=classes, seed=seed)


@torch.no_grad()
def open_teacher(run: Path) -> Teacher:
    """Open a finished run."""
    opened = open_run(run, None)
    train, test, classes = opened.data.train, opened.data.test, opened.data.num_classes
    logits = predict(opened.model, test)
    p = logits.double().softmax(-1)
    means = torch.stack([p[test.labels == c].mean(0) for c in range(classes)])
    opened.model.eval()
    features = torch.cat([opened.model.forward_features(images) for images in train.batches(256)])
    return Teacher(opened, logits, (means + means.mT) / 2, features, train.labels)


def pairs(matrix: Tensor) -> np.ndarray:
    """The entries between different classes, each once."""
    rows, columns = torch.triu_indices(*matrix.shape, offset=1)
    return matrix[rows, columns].double().numpy()


def less_classes(values: np.ndarray, classes: int) -> np.ndarray:
    """What is left of the pairs' numbers when a number for each of their two classes is taken off."""
    rows, columns = np.triu_indices(classes, k=1)
    design = np.zeros((len(rows), classes))
    design[np.arange(len(rows)), rows] = design[np.arange(len(rows)), columns] = 1
    return values - design @ np.linalg.lstsq(design, values, rcond=None)[0]


def halves(labels: Tensor, draw: int) -> tuple[Tensor, Tensor]:
    """The places of two halves of the images of each class."""
    order = permutation(draw, 0, len(labels), "halves")
    parts = [order[labels[order] == c].chunk(2) for c in labels.unique()]
    return torch.cat([one for one, _ in parts]), torch.cat([other for _, other in parts])


def gradient(teacher: Teacher, cost: Tensor) -> Tensor:
    """Of WKD-L's transport without the label's class, to a noisy student's logits."""
    noise = torch.randn(teacher.logits.shape, generator=torch.Generator().manual_seed(0))
    student = (teacher.logits + 2 * noise).requires_grad_()
    own = torch.nn.functional.one_hot(teacher.opened.data.test.labels, len(cost)).bool()
    log_p, log_q = ((x / 4).masked_fill(own, -torch.inf).log_softmax(-1) for x in (student, teacher.logits))
    (result,) = torch.autograd.grad(sinkhorn(log_p, log_q, cost), student)
    return result


def row(teacher: Teacher, kind: Kind, draws: int) -> tuple[str, ...]:
    """A line of the table."""
    found = teacher.similarities(kind)
    values, seeds = pairs(found), range(draws if kind in PAIRED else 1)
    told = np.mean([confused(teacher, teacher.similarities(kind, seed=seed)) for seed in seeds], axis=0)
    again = ["same"] * 3 if kind == "classifier" else _again(teacher, kind, found, draws)
    cost = cost_from_interrelations(found)
    constant = float(pairs(cost).mean()) * (1 - torch.eye(len(cost)))
    cosine = torch.cosine_similarity(*(gradient(teacher, c).flatten() for c in (cost, constant)), dim=0)
    numbers = (f"{number:.2f}" for number in told)
    return (kind, f"{values.mean():.3f}", f"{values.std():.3f}", *numbers, *again, f"{cosine:.4f}")


def confused(teacher: Teacher, found: Tensor) -> tuple[float, float]:
    """How far similarities go with the teacher's confusion: rank correlation, and the nearest classes in common."""
    nearest, taken_for = ((matrix - 2 * torch.eye(len(found))).argmax(1) for matrix in (found, teacher.confusion))
    correlation = spearmanr(pairs(found), pairs(teacher.confusion))[0]
    return float(correlation), (nearest == taken_for).double().mean().item()


def _again(teacher: Teacher, kind: Kind, found: Tensor, draws: int) -> list[str]:
    """What two halves of the images share, and two orders of them."""
    whole, alone = [], []
    for draw in range(draws):
        one, other = (pairs(teacher.similarities(kind, half)) for half in halves(teacher.labels, draw))
        whole.append(pearsonr(one, other)[0])
        alone.append(pearsonr(less_classes(one, len(found)), less_classes(other, len(found)))[0])
    told = [f"{np.mean(whole):.2f}", f"{np.mean(alone):.2f}"]
    if kind not in PAIRED:
        return [*told, "same"]
    others = (pairs(teacher.similarities(kind, seed=seed)) for seed in range(1, draws + 1))
    return [*told, f"{np.mean([pearsonr(pairs(found), other)[0] for other in others]):.2f}"]


def main() -> None:
    """Print a table for each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--pictures", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for run in options.runs:
        teacher = open_teacher(run)
        labels = teacher.opened.data.test.labels
        top1 = 100 * (teacher.logits.argmax(1) == labels).double().mean()
        print(f"\n{run}: {teacher.opened.recipe.model.name} on {teacher.opened.data.name}, test {top1:.1f} %\n")
        print(f"| {' | '.join(TITLES)} |\n| --- |{' ---: |' * (len(TITLES) - 1)}")
        for kind in KINDS:
            if kind != "uniform":
                print(f"| {' | '.join(row(teacher, kind, options.draws))} |", flush=True)
    if options.pictures:
        draw(teacher, options.pictures)


def draw(teacher: Teacher, folder: Path) -> None:
    """Draw three matrices, for light and for dark pages."""
    import matplotlib.pyplot as plt
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    last = teacher.similarities("centroid")
    shown = {"cka": teacher.similarities("cka"), "cka, samples in another order": teacher.similarities("cka", seed=1)}
    shown["centroid"] = last
    distances = squareform(1 - last.double().numpy(), checks=False)
    order = leaves_list(linkage(distances, "average", optimal_ordering=True)).tolist()
    for suffix, (page, ink) in {"": ("#ffffff", "#222222"), "-dark": ("#1e2129", "#e0e0e0")}.items():
        parts = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
        settings = {"figure.facecolor": page, "axes.facecolor": "#999999", "svg.hashsalt": "limbeck"}
        with plt.rc_context({**settings, **dict.fromkeys(parts, ink), "axes.titlesize": 10.5}):
            figure, panels = plt.subplots(1, 3, figsize=(8.4, 4.0), layout="constrained")
            for axes, (title, matrix) in zip(panels, shown.items(), strict=True):
                values = matrix[order][:, order].double().fill_diagonal_(torch.nan)
                image = axes.imshow(values, cmap="viridis", vmin=pairs(matrix).min(), vmax=pairs(matrix).max())
                axes.set(title=title, xlabel="class", xticks=range(len(order)), xticklabels=order)
                axes.set(yticks=range(len(order)), yticklabels=order)
                axes.tick_params(length=0)
                bar = figure.colorbar(image, ax=axes, location="bottom", label="similarity", pad=0.02)
                bar.ax.locator_params(nbins=4)
            panels[0].set_ylabel("class")
            path = folder / f"interrelations{suffix}.svg"
            figure.savefig(path, metadata={"Date": None}, facecolor=page, bbox_inches="tight", pad_inches=0.08)
            plt.close(figure)


if __name__ == "__main__":
    main()
