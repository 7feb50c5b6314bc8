"""Few labels in a loop of your own: FixMatch on digits, with a loss of your choice between two views.

python examples/semi_supervised.py [hard | kl | gkl]      (four labels per class; a few seconds)
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

from limbeck import GKLLoss, KLLoss, PseudoLabelLoss

CONFIDENCE, STEPS, LABELLED, UNLABELLED = 0.9, 400, 16, 112
LOSSES = {
    "hard": PseudoLabelLoss(reduction="none"),
    "kl": KLLoss(reduction="none"),
    "gkl": GKLLoss(prior="sample", mse_weight=0.1, weight_power=0.5, reduction="none"),
}


def strong(images, generator):
    """Move each image by up to one pixel to either side, and add noise."""
    rows, columns = torch.randint(3, (2, len(images), 1), generator=generator) + torch.arange(8)
    every = torch.arange(len(images))[:, None, None]
    moved = nn.functional.pad(images, (1, 1, 1, 1))[every, rows[:, :, None], columns[:, None]]
    return moved + 0.3 * torch.randn(moved.shape, generator=generator)


def train(images, labels, pool, loss=None):
    """Train a perceptron with the labels, and with the pool if there is a loss between two views of it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer, generator = torch.optim.AdamW(model.parameters(), lr=2e-3), torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        few = torch.randint(len(images), (LABELLED,), generator=generator)
        total = nn.functional.cross_entropy(model(images[few]), labels[few])
        if loss is not None:
            weak = pool[torch.randint(len(pool), (UNLABELLED,), generator=generator)]
            with torch.no_grad():  # the weak view is the target: nothing moves through it
                target = model(weak)
            counts = target.softmax(-1).amax(-1) >= CONFIDENCE
            total = total + (loss(model(strong(weak, generator)), target) * counts).mean()  # those left out count 0
        model.zero_grad(), total.backward(), optimizer.step()
    return model


def main(name="gkl"):
    """Print the test accuracy with labels alone, and with the images that have none."""
    data = load_digits()
    images, labels = torch.tensor(data.images).float() / 16, torch.tensor(data.target)
    few = torch.cat([(labels[:1200] == y).nonzero()[:4, 0] for y in range(10)])
    for what, loss in (("labels alone", None), (f"with the pool, {name}", LOSSES[name])):
        right = train(images[few], labels[few], images[:1200], loss)(images[1200:]).argmax(1) == labels[1200:]
        print(f"{what}: {100 * right.float().mean():.1f}% of {len(right)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
