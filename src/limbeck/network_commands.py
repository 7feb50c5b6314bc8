"""The commands about networks: their names, and their weights for other programs."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Weights(str, Enum):
    """Which weights of a run are meant."""

    last = "last"
    best = "best"
    ema = "ema"


class Format(str, Enum):
    """What an export is written as."""

    weights = "weights"
    hf = "hf"


def models() -> None:
    """List the networks, and how those of other libraries are named."""
    from limbeck.listings import print_models

    print_models()


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="What to write: .safetensors, .pth or .pt; of --format hf, a folder.")
    ],
    which: Annotated[
        Weights | None, typer.Option(help="Which weights of the run.", show_default="what it reports")
    ] = None,
    form: Annotated[
        Format,
        typer.Option(
            "--format", help="weights: a file of them; hf: the image tower of a network hf:NAME of images and texts."
        ),
    ] = Format.weights,
) -> None:
    """Write a run's weights under the names of torchvision, or of its network's own library or public code.

    With --format hf: the image tower as a folder that transformers opens.
    """
    from limbeck.listings import loading, say

    with loading():
        if form is Format.hf:
            from limbeck.engine.export_hf import export_tower as write
        else:
            from limbeck.engine.export import export as write
    say(write(run, out, which.value if which else None))
