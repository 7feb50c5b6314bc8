"""Mean intersection over union and pixel accuracy: against an independent implementation, and streaming."""

from __future__ import annotations

import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from limbeck.measures.segmentation import class_iou, confusion_matrix, judge, mean_iou, pixel_accuracy
from limbeck.turns import Alone

CLASSES = 5


def drawn(seed: int, absent: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (6, 9, 7), generator=generator)
    predicted = torch.where(torch.rand(6, 9, 7, generator=generator) < 0.6, labels, labels.flip(0))
    if absent is not None:
        labels[labels == absent] = 0
        predicted[predicted == absent] = 0
    labels[torch.rand(6, 9, 7, generator=generator) < 0.2] = 255
    return predicted, labels


@pytest.mark.parametrize("absent", [None, 2])
def test_mean_iou_and_accuracy_equal_torchmetrics(absent):
    predicted, labels = drawn(0, absent)
    confusion = confusion_matrix(predicted, labels, CLASSES)
    jaccard = MulticlassJaccardIndex(CLASSES, ignore_index=255, average="none")(predicted, labels)
    found = class_iou(confusion)
    there = [number for number in range(CLASSES) if number != absent]
    torch.testing.assert_close(found[there].float(), jaccard[there])
    assert mean_iou(confusion) == pytest.approx(float(jaccard[there].mean()))
    accuracy = MulticlassAccuracy(CLASSES, ignore_index=255, average="micro")(predicted, labels)
    assert pixel_accuracy(confusion) == pytest.approx(float(accuracy))
    if absent is not None:
        assert found[absent].isnan()


def test_counts_of_parts_add_up_to_those_of_the_whole():
    predicted, labels = drawn(1)
    parts = [confusion_matrix(p, t, CLASSES) for p, t in zip(predicted, labels, strict=True)]
    assert torch.equal(sum(parts), confusion_matrix(predicted, labels, CLASSES))


class Part:
    """Four batches of two images; the network is the identity on logits."""

    side = 6

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(2)
        self.logits = torch.randn(8, CLASSES, 3, 3, generator=generator)
        self.labels = torch.randint(CLASSES, (8, 6, 6), generator=generator)

    def __len__(self) -> int:
        return 8

    def batches(self, first: int = 0, every: int = 1):
        for start in range(2 * first, 8, 2 * every):
            yield self.logits[start : start + 2], self.labels[start : start + 2]

    def first(self, count: int):
        for place in range(2):
            yield torch.zeros(1, 3, 6, 6, dtype=torch.uint8), self.logits[place][None], self.labels[place][None]


class Data:
    num_classes = CLASSES
    device = torch.device("cpu")


class Shared:
    """One of two ranks, whose pieces are put together by hand."""

    world = 2

    def __init__(self, rank: int, others: list[torch.Tensor]) -> None:
        self.rank, self.others = rank, others

    def in_turns(self, parts):
        self.others.extend(parts)
        return list(self.others)


def test_ranks_find_what_one_process_finds_at_the_labels_size():
    part, model = Part(), torch.nn.Identity()
    alone = judge(model, part, Data, Alone())
    enlarged = torch.nn.functional.interpolate(part.logits, (6, 6), mode="bilinear").argmax(1)
    assert torch.equal(alone.arrays["confusion"], confusion_matrix(enlarged, part.labels, CLASSES))
    pieces: list[torch.Tensor] = []
    judge(model, part, Data, Shared(0, pieces))
    both = judge(model, part, Data, Shared(1, pieces))
    assert both.metrics == alone.metrics
    assert alone.metrics["samples"] == 8
    assert alone.arrays["images"].shape == (2, 3, 6, 6)
    assert torch.equal(alone.arrays["predicted"].long(), enlarged[:2])
