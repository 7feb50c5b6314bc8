"""How well images and texts find each other: zero-shot classification by prompts, and retrieval in both directions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from limbeck.measures.verdict import Verdict

if TYPE_CHECKING:
    from limbeck.data import DataBundle
    from limbeck.data.pairs import Gallery
    from limbeck.models.image_text import ImageTextNetwork
    from limbeck.turns import Turns

BATCH = 256  # a constant, so that features do not depend on the batch size of the training
ROWS = 1024  # of similarities that are in memory at a time
DEPTHS = (1, 5, 10)
# Captions whose nearest images are kept for pictures, by the share of captions that find their own image sooner.
SHOWN, NEAREST = (0.0, 0.01, 0.03, 0.06, 0.1, 0.25, 0.5, 1.0), 5


def judge(model: ImageTextNetwork, part: Gallery, data: DataBundle, place: Turns) -> Verdict:
    """Return zero-shot accuracy and, where images have captions of their own, recall at 1, 5 and 10.

    Args:
        model: Of two towers, in eval mode.
        part: Held-out images.
        data: Of the run.
        place: Several ranks share the images, and all get the verdict.
    """
    batches = part.batches(BATCH, place.rank, place.world)
    images = torch.cat(place.in_turns([model.encode_images(batch).float().cpu() for batch in batches]))
    of_classes = class_features(model, part.prompts)
    predicted = nearest(images, of_classes)
    labels = part.labels.cpu()
    metrics: dict[str, Any] = {"zero_shot": (predicted == labels).double().mean().item(), "samples": len(labels)}
    confusion = torch.zeros(len(of_classes), len(of_classes), dtype=torch.int64)
    confusion.index_put_((labels, predicted), torch.ones((), dtype=torch.int64), accumulate=True)
    arrays = {"confusion": confusion, "class_names": as_bytes(part.class_names)}
    if not len(part.tokens):
        return Verdict(metrics, arrays)
    texts = torch.cat([model.encode_texts(tokens).float().cpu() for tokens in torch.split(part.tokens, BATCH)])
    same = torch.unique(part.tokens.cpu(), dim=0, return_inverse=True)[1]  # equal captions are one
    for name, queries, keys in (("image_to_text", images, texts), ("text_to_image", texts, images)):
        first, *others = recalls(queries, keys, same, same, DEPTHS)
        metrics[name] = first
        metrics |= {f"{name}_{depth}": value for depth, value in zip(DEPTHS[1:], others, strict=True)}
    return Verdict(metrics, {**arrays, **_shown(part, texts, images, same)})


def class_features(model: ImageTextNetwork, prompts: Tensor) -> Tensor:
    """Return the features of classes, on the CPU: the direction of the mean over their prompts.

    Args:
        model: Of two towers.
        prompts: Tokens, int64 `(C, P, L)`.

    Returns:
        `(C, D)`, of unit length.
    """
    found = [model.encode_texts(tokens).float().cpu().mean(0) for tokens in prompts]
    return normalize(torch.stack(found), dim=-1)


def nearest(images: Tensor, classes: Tensor) -> Tensor:
    """Return the class whose features are nearest to each image's, int64 `(N,)`; the first of equals.

    Args:
        images: `(N, D)`.
        classes: `(C, D)`.
    """
    return torch.cat([(rows @ classes.T).argmax(1) for rows in torch.split(images, ROWS)])


def recalls(
    queries: Tensor, keys: Tensor, query_groups: Tensor, key_groups: Tensor, depths: tuple[int, ...]
) -> list[float]:
    """Return, for each depth k, the share of queries that find one of their group among the k nearest keys.

    A key of another group that is as near as the nearest right one counts as nearer, so that a network to which all
    are alike finds nothing. N x M similarities are never in memory at a time.

    Args:
        queries: `(N, D)`.
        keys: `(M, D)`.
        query_groups: int64 `(N,)`.
        key_groups: int64 `(M,)`; each query has a key of its group.
        depths: Numbers of keys.

    Example:
        >>> recalls(torch.eye(2), torch.eye(2).flip(0), torch.arange(2), torch.arange(2), (1, 2))
        [0.0, 1.0]
    """
    before = ahead(queries, keys, query_groups, key_groups)
    return [(before < depth).double().mean().item() for depth in depths]


def ahead(queries: Tensor, keys: Tensor, query_groups: Tensor, key_groups: Tensor) -> Tensor:
    """Return how many keys of other groups are at least as near to each query as the nearest of its own, `(N,)`."""
    found = []
    for rows, groups in zip(torch.split(queries, ROWS), torch.split(query_groups, ROWS), strict=True):
        similarities = rows @ keys.T
        right = groups.unsqueeze(1) == key_groups
        best = similarities.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
        found.append(((similarities >= best) & ~right).sum(1))
    return torch.cat(found)


def _shown(part: Gallery, texts: Tensor, images: Tensor, same: Tensor) -> dict[str, Tensor]:
    """Return some captions, from the best found to the worst, their own images, and the nearest ones."""
    pixels = getattr(part.images, "images", None)
    if pixels is None or not part.captions:
        return {}
    before = ahead(texts, images, same, same)
    order = before.argsort(stable=True)
    places = sorted({round(share * (len(texts) - 1)) for share in SHOWN})
    chosen = order[torch.tensor(places)]
    found = (texts[chosen] @ images.T).topk(min(NEAREST, len(images))).indices
    return {
        "captions": as_bytes([part.captions[place] for place in chosen.tolist()]),
        "caption_places": before[chosen] + 1,
        "caption_images": pixels[chosen.to(pixels.device)].cpu(),
        "retrieved_images": pixels[found.to(pixels.device)].cpu(),
        "retrieved_right": same[found] == same[chosen].unsqueeze(1),
    }


def as_bytes(texts: tuple[str, ...] | list[str]) -> Tensor:
    """Return texts as rows of UTF-8, padded with 0: uint8 `(N, longest)`."""
    rows = [text.encode() for text in texts]
    longest = max(map(len, rows), default=0)
    return torch.tensor([list(row.ljust(longest, b"\0")) for row in rows], dtype=torch.uint8).view(len(rows), longest)
