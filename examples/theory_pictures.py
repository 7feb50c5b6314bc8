"""The pictures of the page on theory, each for light and for dark pages; `theory.py` draws them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from theory_tools import class_row, gradients, normal, part_gradients, train

from limbeck import dkl_divergence, js_divergence, kl_divergence

# Colours that differ in lightness too, after Okabe and Ito: (page, ink, first, second, third).
THEMES = {
    "": ("#ffffff", "#222222", "#0072B2", "#D55E00", "#009E73"),
    "-dark": ("#1e2129", "#e0e0e0", "#56B4E9", "#E69F00", "#2BC99B"),
}


@contextmanager
def theme(suffix: str) -> Iterator[tuple[str, str, str]]:
    """Draw in a theme's colours; yields those of the data."""
    page, ink, *colours = THEMES[suffix]
    settings = {
        "figure.facecolor": page,
        "savefig.facecolor": page,
        "axes.facecolor": page,
        "legend.facecolor": page,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.hashsalt": "limbeck",
        "font.size": 10,
        "axes.titlesize": 10.5,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink),
    }
    with plt.rc_context(settings):
        yield colours[0], colours[1], colours[2]


def draw_all(folder: Path) -> list[Path]:
    """Draw every picture in every theme into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw in PICTURES.items():
        for suffix in THEMES:
            with theme(suffix) as colours:
                figure = draw(colours)
                path = folder / f"{name}{suffix}.svg"
                figure.savefig(path, metadata={"Date": None})
                plt.close(figure)
            paths.append(path)
    return paths


def draw_gradients(colours: tuple[str, str, str]) -> Figure:
    """The gradients of DKL's two parts for one sample, to both sides, without and with BA: a computed Fig. 2."""
    s, t = normal(1, 8, seed=11, scale=1.5), normal(1, 8, seed=12, scale=1.5)
    figure, axes = plt.subplots(2, 2, figsize=(8.4, 5.0), sharex=True, sharey=True, layout="constrained")
    for column, symmetric in enumerate((False, True)):
        parts = part_gradients(s, t, symmetric=symmetric)
        for row, side in enumerate(("student's logits", "target's logits")):
            ax = axes[row][column]
            for offset, colour, hatch, (name, sides) in zip(
                (-0.2, 0.2), colours, (None, "////"), parts.items(), strict=False
            ):
                ax.bar(
                    torch.arange(8) + offset,
                    sides[row][0],
                    width=0.38,
                    color=colour,
                    hatch=hatch,
                    edgecolor=ax.get_facecolor(),
                    linewidth=0,
                    label=name,
                )
            ax.axhline(0, color=plt.rcParams["axes.edgecolor"], linewidth=0.8)
            ax.set_xticks(range(8))
            if not column:
                ax.set_ylabel(f"gradient to the\n{side}")
        axes[1][column].set_xlabel("class")
        axes[0][column].set_title("with BA" if symmetric else "without BA: the gradients of KL")
    axes[0][0].annotate("weighted MSE: 0 for every class", (0.4, 0.8), xycoords="axes fraction", color=colours[0])
    axes[1][0].annotate("soft cross-entropy: 0", (0.55, 0.8), xycoords="axes fraction", color=colours[1])
    axes[1][1].annotate("soft cross-entropy: 0", (0.55, 0.8), xycoords="axes fraction", color=colours[1])
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def draw_training(colours: tuple[str, str, str]) -> Figure:
    """Losses and weights over the steps of a training with KL, with DKL, and with DKL and BA; frozen teacher."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.2), layout="constrained")
    steps = torch.arange(1, 301)
    tens = steps.view(-1, 10).double().mean(-1)  # the losses of single batches are noisy: means of ten
    kl = train("kl")
    lines = (("dkl", "DKL", "-"), ("dkl with BA", "DKL with BA", "--"))
    left.plot(tens, kl.losses.view(-1, 10).mean(-1), color=colours[0], linestyle=":", linewidth=2, label="KL")
    for colour, (name, label, style) in zip(colours[1:], lines, strict=True):
        other = train(name)
        left.plot(tens, other.losses.view(-1, 10).mean(-1), color=colour, linestyle=style, linewidth=1.6, label=label)
        apart = (other.weights - kl.weights).abs().amax(-1).clamp_min(1e-17)
        right.plot(steps, apart, color=colour, linestyle=style, linewidth=1.6, label=label)
    left.set(xlabel="step", ylabel="loss", yscale="log", title="The values differ ...")
    right.set(
        xlabel="step",
        ylabel="largest difference of a weight",
        yscale="log",
        ylim=(1e-17, 10),
        title="... DKL's weights are KL's, to rounding",
    )
    left.legend()
    right.legend(loc="center right")
    return figure


def draw_pull(colours: tuple[str, str, str]) -> Figure:
    """How hard each divergence pulls a student that is confidently wrong."""
    gaps = torch.linspace(0, 12, 49, dtype=torch.float64)
    t = torch.zeros(49, 10, dtype=torch.float64)
    t[:, 0] = 4
    s = torch.zeros_like(t)
    s[:, 1] = gaps
    figure, ax = plt.subplots(figsize=(6.2, 3.4), layout="constrained")
    ba = {"symmetric": True, "reduction": "sum"}
    curves: list[tuple[str, Callable[..., Any], str, str]] = [
        ("weighted MSE of DKL with BA", partial(dkl_divergence, ce_weight=0.0, **ba), colours[2], "-"),
        ("KL, also the soft cross-entropy", partial(kl_divergence, reduction="sum"), colours[0], "--"),
        ("JSD", partial(js_divergence, reduction="sum"), colours[1], "-."),
    ]
    for label, divergence, colour, style in curves:
        ax.plot(gaps, gradients(divergence, s, t)[0].norm(dim=-1), style, color=colour, linewidth=1.8, label=label)
    ax.set(xlabel="the student's logit of a wrong class", ylabel="norm of the gradient to the student", xlim=(0, 12))
    ax.set_ylim(bottom=0)
    ax.legend()
    return figure


def draw_power(colours: tuple[str, str, str]) -> Figure:
    """The class prior's row of the digit 8 at several powers, each normalised."""
    figure, ax = plt.subplots(figsize=(6.2, 3.4), layout="constrained")
    for colour, marker, power in zip((plt.rcParams["text.color"], *colours), "osD^", (1.0, 0.3, 0.1, 0.0), strict=True):
        label = {1.0: "power 1: IKL", 0.0: "power 0: all classes alike"}.get(power, f"power {power:g}")
        ax.plot(range(10), class_row(power), marker=marker, linewidth=0.8, color=colour, label=label)
    ax.set(xlabel="class", ylabel="weight, normalised to sum 1", yscale="log", xticks=range(10))
    ax.legend(ncols=2, loc="upper left", bbox_to_anchor=(0, 1.25))
    return figure


PICTURES: dict[str, Callable[[tuple[str, str, str]], Figure]] = {
    "gradients": draw_gradients,
    "training": draw_training,
    "pull": draw_pull,
    "power": draw_power,
}
