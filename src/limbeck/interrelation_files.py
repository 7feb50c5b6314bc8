"""Files of interrelations: how alike classes are to a teacher, and whence that is known. Imports no torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from limbeck.errors import UserError, missing_extra, reason

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

Kind = Literal["cka", "rbf", "polynomial", "centroid", "classifier", "covariance", "uniform"]
KINDS: dict[Kind, str] = {
    "cka": "linear CKA of samples that are paired by chance, as published",
    "rbf": "the same with a Gaussian kernel",
    "polynomial": "the same with the kernel (x y + 1)^k",
    "centroid": "cosines of the classes' mean features",
    "classifier": "cosines of the rows of the linear classifier",
    "covariance": "alignment of the classes' covariances",
    "uniform": "all classes equally unlike, a control",
}
PAIRED: tuple[Kind, ...] = ("cka", "rbf", "polynomial")
"""Kinds that compare sample k of one class with sample k of another."""

OPTIONS_OF: dict[str, tuple[Kind, ...]] = {  # in the order of the command's options
    "features": (*PAIRED, "centroid", "covariance"),
    "per_class": PAIRED,
    "seed": PAIRED,
    "bandwidth": ("rbf",),
    "power": ("polynomial",),
    "center": ("centroid",),
    "negative": ("centroid", "classifier"),
}
FORMAT = "limbeck interrelations 1"


@dataclass(frozen=True)
class InterrelationRequest:
    """What is to be computed. Options that are not of the kind, see `OPTIONS_OF`, are without effect.

    Attributes:
        kind: What makes two classes alike.
        features: Of the teacher: what goes into its classifier, or its logits.
        per_class: Samples of each class that are paired; None is as many as the smallest class has, at most 500.
        seed: Of the draw of these samples and of their order.
        bandwidth: Of the Gaussian kernel, in roots of the median squared distance.
        power: Of the polynomial kernel.
        center: Subtract the mean of all classes' means.
        negative: What becomes of negative cosines: "shift" takes (1 + cos) / 2, "clip" 0.
    """

    kind: Kind
    features: Literal["penultimate", "logits"] = "penultimate"
    per_class: int | None = None
    seed: int = 0
    bandwidth: float = 0.4
    power: int = 2
    center: bool = True
    negative: Literal["shift", "clip"] = "shift"

    def options(self) -> dict[str, Any]:
        """Return the options of the kind and their values.

        >>> InterrelationRequest("centroid", negative="clip").options()
        {'features': 'penultimate', 'center': True, 'negative': 'clip'}
        """
        return {name: value for name, value in asdict(self).items() if self.kind in OPTIONS_OF.get(name, ())}


@dataclass(frozen=True, eq=False)
class InterrelationFile:
    """Content of a file.

    Attributes:
        interrelations: float32 (C, C), 1 on the diagonal.
        cost: float32 (C, C), what transport between two classes costs; 0 on the diagonal.
        kind: What made them.
        options: Those of the kind.
        sharpness: kappa, between the two matrices.
        teacher: Its name.
        teacher_fingerprint: SHA-256 of its weights.
        data: Name of the data set, or of the recipe whose data they are.
        data_fingerprint: SHA-256 of its images and labels.
        split: Which part of the data was looked at.
        samples: Samples of each class that were; none for kinds that need no data.
        limbeck: Version that wrote the file.
    """

    interrelations: NDArray[np.float32]
    cost: NDArray[np.float32]
    kind: Kind
    options: dict[str, Any]
    sharpness: float
    teacher: str
    teacher_fingerprint: str
    data: str
    data_fingerprint: str
    split: str
    samples: tuple[int, ...]
    limbeck: str


TENSORS = ("interrelations", "cost")
PROVENANCE = tuple(field.name for field in fields(InterrelationFile) if field.name not in TENSORS)


def encode(content: InterrelationFile) -> bytes:
    """Return the bytes of a safetensors file; the provenance is its metadata, each entry as JSON."""
    try:
        from safetensors.numpy import save
    except ImportError as error:
        raise missing_extra("safetensors", "cli", "writing interrelations") from error
    metadata = {name: json.dumps(getattr(content, name)) for name in PROVENANCE}
    return save({name: getattr(content, name) for name in TENSORS}, {"format": FORMAT, **metadata})


def read_interrelations(path: Path) -> InterrelationFile:
    """Read a file that `limbeck interrelations` wrote.

    Raises:
        UserError: The file is missing, damaged or another one, or safetensors is not installed.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise missing_extra("safetensors", "cli", f"reading {path}") from error
    wanted = f"{path}: expected a file of interrelations"
    way_out = "make one with: limbeck interrelations TEACHER DATA --kind KIND --out FILE"
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise UserError(f"{wanted}, got other tensors; {way_out}")
            tensors = {name: file.get_tensor(name) for name in TENSORS}
        return InterrelationFile(**tensors, **_decoded(metadata))
    except OSError as error:
        raise UserError(f"{wanted}; {reason(error)}; {way_out}") from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{wanted}, got a damaged or foreign one; {way_out}") from error


def _decoded(metadata: dict[str, str]) -> dict[str, Any]:
    values = {name: json.loads(metadata[name]) for name in PROVENANCE}
    return {**values, "samples": tuple(values["samples"])}
