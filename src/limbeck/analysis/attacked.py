"""What a net says of test images before and after an attack, from robust_predictions.npz."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from limbeck.analysis.run_files import foreign
from limbeck.errors import reason

if TYPE_CHECKING:
    from limbeck.analysis.run_files import Array, Run


@dataclass(frozen=True)
class Attacked:
    """The test images of a run, clean and as PGD-20 left them.

    Attributes:
        labels: (N,).
        clean_logits: (N, C).
        adversarial_logits: (N, C).
        clean_features: penultimate features of the first images (M, D); None for nets that are not limbeck's.
        adversarial_features: the same of the attacked images.
        epsilon: radius of the attack.
    """

    labels: Array
    clean_logits: Array
    adversarial_logits: Array
    clean_features: Array | None
    adversarial_features: Array | None
    epsilon: float


def read_attacked(run: Run) -> Attacked | None:
    """Return the attacked predictions of a run; None when it was not attacked.

    Raises:
        UserError: the file is damaged.
    """
    path = run.folder / "robust_predictions.npz"
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            features = [file.get(f"{kind}_features") for kind in ("clean", "adversarial")]
            return Attacked(
                labels=file["labels"],
                clean_logits=file["clean_logits"],
                adversarial_logits=file["adversarial_logits"],
                clean_features=features[0],
                adversarial_features=features[1],
                epsilon=float(file["adversarial_epsilon"]),
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise foreign(path, f"cannot be read ({reason(error)})") from error
