"""A loop of your own: distil a small network from a larger one with three calls of the loss.

python examples/user_loop.py [CHECKPOINT]

scikit-learn's digits, a few seconds. Stopped and started again with the same CHECKPOINT, it goes on where it was and
ends with the weights of an unbroken run: the loss has a memory, so its state is saved beside the student's.
"""

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

from limbeck import GKLLoss

EPOCHS = 10


def network(width):
    """Return an MLP with one hidden layer."""
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def batches(images, labels, epoch):
    """Shuffle by the epoch alone, so that a resumed run sees what an unbroken one sees."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch))
    return ((images[i], labels[i]) for i in order.split(64))


def train_teacher(images, labels):
    """Train the larger network on all images."""
    teacher = network(128)
    optimizer = torch.optim.Adam(teacher.parameters(), lr=3e-3)
    for epoch in range(EPOCHS):
        for x, y in batches(images, labels, epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(teacher(x), y).backward()
            optimizer.step()
    return teacher.eval().requires_grad_(False)


def distil(teacher, images, labels, checkpoint=None, epochs=EPOCHS):
    """Train the small network from the teacher's logits and the labels."""
    student = network(8)
    loss = GKLLoss(num_classes=10, mse_weight=4.0, weight_power=0.3, temperature=4.0)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    parts, start = {"student": student, "loss": loss, "optimizer": optimizer}, 0
    if checkpoint is not None and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        start = saved.pop("epoch")
        for name, state in saved.items():
            parts[name].load_state_dict(state)

    for epoch in range(start, epochs):
        for x, y in batches(images, labels, epoch):
            target_logits = teacher(x)
            logits = student(x)
            total = nn.functional.cross_entropy(logits, y) + loss(logits, target_logits, y)  # 1
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            loss.observe(target_logits, y)  # 2: feeds the class prior
        loss.refresh()  # 3: what was observed becomes the prior of the next epoch
        if checkpoint is not None:
            torch.save({"epoch": epoch + 1, **{name: part.state_dict() for name, part in parts.items()}}, checkpoint)
    return student, loss


def main(checkpoint=None):
    """Train both, print what they know about images that neither has seen."""
    torch.manual_seed(0)
    images, labels = (torch.tensor(x) for x in load_digits(return_X_y=True))
    images = images.float() / 8 - 1
    seen = torch.arange(len(images)) % 3 > 0
    teacher = train_teacher(images[seen], labels[seen])
    student, loss = distil(teacher, images[seen], labels[seen], checkpoint)
    for name, model in (("teacher", teacher), ("student", student)):
        accuracy = (model(images[~seen]).argmax(-1) == labels[~seen]).double().mean()
        print(f"{name}: {accuracy:.1%} of {int((~seen).sum())} unseen images")
    print(loss.prior.status())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
