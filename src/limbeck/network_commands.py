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


def models() -> None:
    """List the networks, and how those of other libraries are named."""
    from limbeck.listings import print_models

    print_models()


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    out: Annotated[Path, typer.Argument(metavar="FILE", help="What to write: .safetensors, .pth or .pt.")],
    which: Annotated[
        Weights | None, typer.Option(help="Which weights of the run.", show_default="what it reports")
    ] = None,
) -> None:
    """Write a run's weights under the names of torchvision, or of its network's own library or public code."""
    from limbeck.listings import loading, say

    with loading():
        from limbeck.engine.export import export as write
    say(write(run, out, which.value if which else None))
