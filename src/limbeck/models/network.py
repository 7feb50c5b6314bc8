"""What all networks share: named stages, dropout, a linear head."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Mapping


class Network(nn.Module):
    """Stages one after another, dropout and a linear layer: forward(x) = head(dropout(forward_features(x))).

    `features` is a `Sequential` of the stages: `stem`, `stage1`, `stage2` and on, in some networks `neck`, and
    `pooled`, which returns one vector per image. A hook on `features.stage3` sees what `forward_stages` calls
    `stage3`. Each activation is a module and not in place, so a hook before it has the map that it acts on.

    Args:
        stages: Name -> module, in order; the last is `pooled` and returns `(N, D)`.
        feature_size: D.
        num_classes: K.
        dropout: Probability that a feature is dropped in training, in [0, 1).
    """

    def __init__(
        self, stages: Mapping[str, nn.Module], feature_size: int, num_classes: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(OrderedDict(stages))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(feature_size, num_classes)

    def forward_stages(self, images: Tensor) -> dict[str, Tensor]:
        """Return what each stage makes of images `(N, C, H, W)`: maps `(N, D, H, W)`, and `pooled` `(N, D)`."""
        outputs: dict[str, Tensor] = {}
        output = images
        for name, stage in self.features.named_children():
            output = stage(output)
            outputs[name] = output
        return outputs

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the penultimate features `(N, D)` of images `(N, C, H, W)`, before dropout."""
        return cast("Tensor", self.features(images))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `(N, K)` of images `(N, C, H, W)`."""
        return cast("Tensor", self.head(self.dropout(self.forward_features(images))))
