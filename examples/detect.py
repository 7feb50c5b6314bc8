"""A small detector taught by a larger one, in a loop of your own: both look at the regions that the student draws.

python examples/detect.py: coloured squares on noise, made here; a few seconds.
"""

import torch

from limbeck.config import DetectionTerm, DetectOptions, KLTerm
from limbeck.data import Batch
from limbeck.measures.average_precision import Found, Truth, average_precision
from limbeck.models.detectors import detector
from limbeck.objectives import Detection, Facts


def squares(count, seed, side=48):
    """Return images with a square of one of three colours, and its box as a row of class and corners."""
    draw = torch.Generator().manual_seed(seed)
    images, boxes = 0.5 * torch.randn(count, 3, side, side, generator=draw), torch.empty(count, 1, 5)
    for image, box in zip(images, boxes, strict=True):
        size = int(torch.randint(12, 24, (1,), generator=draw))
        left, top, label = (int(torch.randint(most, (1,), generator=draw)) for most in (side - size, side - size, 3))
        image[label, top : top + size, left : left + size] += 1
        box[0] = torch.tensor([label, left, top, left + size, top + size])
    return images, boxes


def train(model, teachers, terms, images, boxes, epochs):
    """Train on batches of 16; what a step draws is a function of (seed, epoch, sample)."""
    loop = Detection(model, teachers, terms, DetectOptions(regions=16), epochs=epochs, facts=Facts(num_classes=3))
    optimizer = torch.optim.AdamW(loop.parameters(), lr=3e-3)
    for epoch in range(1, epochs + 1):
        loop.set_epoch(epoch)
        for step, places in enumerate(torch.arange(len(images)).split(16)):
            outcome = loop(Batch(images[places], boxes[places], places, step))
            optimizer.zero_grad()
            outcome.loss.backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def measure(model, images, boxes):
    """Return the average precision."""
    rows, no_crowd = model(images), torch.zeros(len(images), dtype=torch.bool)
    image, row = (rows[..., 5] >= 0).nonzero(as_tuple=True)
    found = Found(image, rows[image, row, 5].long(), rows[image, row, 4], rows[image, row, :4])
    truth = Truth(torch.arange(len(images)), boxes[:, 0, 0].long(), boxes[:, 0, 1:], no_crowd)
    return average_precision(found, truth, num_classes=3).ap


if __name__ == "__main__":
    held_out, many, few, labels = squares(64, 1), squares(192, 2), squares(96, 3), DetectionTerm()
    torch.manual_seed(0)
    teacher = train(detector((3, 48, 48), 3, width=16), [], [labels], *many, epochs=6)
    print(f"teacher AP {measure(teacher, *held_out):.3f}")
    for name, teachers, terms in (("alone", [], [labels]), ("taught", [teacher], [labels, KLTerm()])):
        torch.manual_seed(0)
        student = train(detector((3, 48, 48), 3, width=8), teachers, terms, *few, epochs=7)
        print(f"student {name} AP {measure(student, *held_out):.3f}")
