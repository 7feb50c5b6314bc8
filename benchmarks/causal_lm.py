"""Students of a small language model: what each loss wins on held-out text, and the largest tensor of its step.

    python -m benchmarks.causal_lm [--seeds 3] [--csv FILE]

The models, the text and the training are those of `examples/causal_lm.py`, with one teacher. Each loss has two
settings: seed 0 trains both, and the one of the lower perplexity on validation text is trained from the other seeds
too; the test text chooses nothing. A seed is the student's start and the order of its batches. Differences of the log
perplexity, in nats per token, are paired by seed; below 0 is better. `largest` counts the numbers of the largest
tensor that any operation of one step makes: forward, backward and the optimizer's.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.rows import write
from examples.causal_lm import Lessons, label_loss, llama, measure, read, train
from limbeck.analysis.statistics import judge, paired_difference, spread
from limbeck.functional import linear_gkl, linear_js, linear_kl

Loss = Callable[..., torch.Tensor]
Row = dict[str, object]
BASELINE = "linear_kl"


class Largest(TorchDispatchMode):
    """Sees each tensor that operations make, and keeps the largest number of elements."""

    elements = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the operation and look at what it made."""
        made = operation(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(x.numel() for x in tree_leaves(made) if isinstance(x, torch.Tensor))])
        return made


def settings(lessons: Lessons) -> dict[str, list[dict[str, Any]]]:
    """Return the settings of each loss that are tried: the learning rate of the labels' loss, options of the others."""
    prior = lessons.class_weights()
    gkl = [{"weight_power": 0.5, "mse_weight": weight} for weight in (0.1, 1.0)]
    return {
        "cross-entropy": [{"lr": 4e-3}, {"lr": 8e-3}],
        "linear_kl": [{"temperature": 1.0}, {"temperature": 2.0, "scale_by_t2": True}],
        "linear_js": [{"beta": 0.5}, {"beta": 0.1}],
        "linear_gkl, tokens": gkl,
        "linear_gkl, classes": [{"prior": prior, **options} for options in gkl],
    }


def loss_of(name: str, lessons: Lessons, tokens: torch.Tensor, options: dict[str, Any]) -> tuple[Loss, dict[str, Any]]:
    """Return a loss, and the options that are of the training."""
    if name == "cross-entropy":
        return label_loss(tokens), options
    divergence = {"linear_kl": linear_kl, "linear_js": linear_js}.get(name, linear_gkl)
    return lessons.loss(divergence, tile=(256, 1024), **options), {}


def words(options: dict[str, Any]) -> str:
    """Return a setting without its tensors."""
    return " ".join(f"{name} {value}" for name, value in options.items() if not isinstance(value, torch.Tensor))


def student_of(
    name: str, options: dict[str, Any], seed: int, teacher: nn.Module, lessons: Lessons, texts: tuple[torch.Tensor, ...]
) -> Row:
    """Train one student and measure it on validation and test text."""
    tokens, validation, test = texts
    loss, training = loss_of(name, lessons, tokens, options)
    with Largest() as seen:
        train(llama(64, 1, seed=seed), tokens[:32], loss, epochs=1, accumulate=1)
    started = time.process_time()
    student = train(llama(64, 1, seed=seed), tokens, loss, seed=seed, **training)
    seconds = time.process_time() - started
    chosen_by, (perplexity, agreement) = measure(student, teacher, validation)[0], measure(student, teacher, test)
    row = {"validation perplexity": chosen_by, "test perplexity": perplexity, "agreement, %": agreement}
    return {"loss": name, "setting": words(options), "seed": seed, **row, "largest": seen.elements, "cpu s": seconds}


def table(rows: list[Row]) -> str:
    """Return the rows of the chosen settings as a table, with differences to `BASELINE` paired by seed."""
    names = list(dict.fromkeys(str(row["loss"]) for row in rows))

    def column(name: str, what: str) -> list[float]:
        return [float(row[what]) for row in rows if row["loss"] == name]  # type: ignore[arg-type]

    logs = {name: [-math.log(value) for value in column(name, "test perplexity")] for name in names}
    others = [None if name == BASELINE else paired_difference(logs[name], logs[BASELINE]) for name in names]
    lines = []
    for name, judged in zip(names, judge(others, [False] * len(names)), strict=True):
        perplexity, agreement = spread(column(name, "test perplexity")), spread(column(name, "agreement, %"))
        cells = [name, f"{perplexity.mean:.2f} ± {perplexity.std or 0:.2f}", "-", "-", "baseline"]
        if (difference := judged.difference) is not None and difference.low is not None and difference.high is not None:
            cells[2] = f"{-difference.mean:+.3f} [{-difference.high:+.3f}, {-difference.low:+.3f}]"
            cells[3:] = [f"{judged.p_holm:.3f}", judged.verdict]
        largest = max(column(name, "largest"))
        cells += [
            f"{agreement.mean:.1f} ± {agreement.std or 0:.1f}",
            f"{largest:,.0f}",
            f"{min(column(name, 'cpu s')):.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Train the teacher and all students, print the table and write each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    texts = read()
    teacher = train(llama(128, 2, seed=1), texts[0], label_loss(texts[0]), lr=2e-3, epochs=4).requires_grad_(False)
    print("teacher: validation and test perplexity", *(measure(teacher, teacher, text)[0] for text in texts[1:]))
    lessons, kept, tried = Lessons(teacher, texts[0]), [], []
    for name, options in settings(lessons).items():
        first = [student_of(name, option, 0, teacher, lessons, texts) for option in options]
        tried += first
        best = min(range(len(options)), key=lambda place: float(first[place]["validation perplexity"]))  # type: ignore[arg-type]
        others = [student_of(name, options[best], s, teacher, lessons, texts) for s in range(1, given.seeds)]
        kept += [first[best], *others]
        print(*first, *others, sep="\n", flush=True)
        if given.csv:  # loss by loss: the whole takes long
            write([*(row for row in tried if row not in kept), *kept], given.csv, {"rows": len(texts[0])})
    print(table(kept))


if __name__ == "__main__":
    main()
