"""What losses of features share: they take one tensor or several from each network, paired in order."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from limbeck.losses.base import DivergenceLoss

Features = Tensor | Sequence[Tensor]
Shapes = Sequence[Sequence[int]]  # of the features of one sample, one per layer


class FeatureLoss(DivergenceLoss):
    """Base of the losses of features: `loss(features, target_features)`, one tensor or a sequence, one per layer."""

    @staticmethod
    def pairs(features: Features, target_features: Features, layers: int | None = None) -> list[tuple[Tensor, Tensor]]:
        """Return the layers' (student, teacher) pairs, `layers` of them where the loss was built for so many.

        Raises:
            TypeError: Something is not a tensor.
            ValueError: The numbers of layers or of samples differ, or there is no layer.
        """
        sides = [
            [side] if isinstance(side, Tensor) else list(side) if isinstance(side, Sequence) else [side]
            for side in (features, target_features)
        ]
        for name, side in zip(("features", "target_features"), sides, strict=True):
            for feature in side:
                if not isinstance(feature, Tensor):
                    raise TypeError(f"`{name}` expected tensors, one per layer, got {type(feature).__name__}")
        if not sides[0] or len(sides[0]) != len(sides[1]):
            raise ValueError(
                "`features` and `target_features` expected as many layers of the student as of the teacher, got "
                f"{len(sides[0])} and {len(sides[1])}; they are paired in order"
            )
        if layers is not None and len(sides[0]) != layers:
            raise ValueError(
                f"`features` expected {layers} layers, as many as `shapes` has in the constructor, got {len(sides[0])}"
            )
        for feature, target in zip(*sides, strict=True):
            if feature.dim() == 0 or target.dim() == 0 or len(feature) != len(target):
                raise ValueError(
                    "`features` and `target_features` expected the same N samples, got the shapes "
                    f"{tuple(feature.shape)} and {tuple(target.shape)}"
                )
        return list(zip(*sides, strict=True))


def check_shapes(shapes: Shapes, target_shapes: Shapes) -> None:
    """As many layers on either side, at least one.

    Raises:
        ValueError: They are not, or a shape is empty.
    """
    for name, side in (("shapes", shapes), ("target_shapes", target_shapes)):
        if any(isinstance(shape, int) for shape in side):
            raise TypeError(
                f"`{name}` expected one shape per layer, such as [{tuple(side)}], got {tuple(side)}; a layer's shape "
                "has no batch axis"
            )
    if not shapes or len(shapes) != len(target_shapes):
        raise ValueError(
            "`shapes` and `target_shapes` expected one shape per layer, as many of the student as of the teacher, got "
            f"{len(shapes)} and {len(target_shapes)}"
        )
    for shape in (*shapes, *target_shapes):
        if not shape:
            raise ValueError("`shapes` expected the shapes of one sample's features, such as (64, 8, 8), got ()")


def channels_of(shape: Sequence[int]) -> int:
    """D of one sample's features (D, H, W), (L, D) or (D,)."""
    return shape[0] if len(shape) == 3 else shape[-1]
