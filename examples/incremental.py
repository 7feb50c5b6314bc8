"""Classes that come two at a time: what a divergence to the network before saves of the old ones.

python examples/incremental.py

scikit-learn's digits, a few seconds. The head grows, and the old network's logits of old classes are the targets.
"""

import copy

import torch
from sklearn.datasets import load_digits
from torch import nn

from limbeck import KLLoss
from limbeck.models.convnet import convnet
from limbeck.models.growing import grow

PHASES = ((0, 2), (2, 4), (4, 6), (6, 8), (8, 10))


def learn(model, before, images, labels, first, weight, epochs):
    """Train on the new classes, from `first` on; `before` says what the images look like of the old ones."""
    loss, optimizer = KLLoss(temperature=2.0, scale_by_t2=True), torch.optim.Adam(model.parameters(), lr=2e-3)
    for epoch in range(epochs):
        for part in torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch)).split(32):
            logits = model(images[part])
            total = nn.functional.cross_entropy(logits[:, first:], labels[part] - first)
            if before is not None and weight:
                with torch.no_grad():
                    target = before(images[part])
                total = total + weight * loss(logits[:, :first], target)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()


def main(epochs=20):
    """Print the accuracy where the phase of a digit is told, without a divergence and with one."""
    images, labels = (torch.tensor(x) for x in load_digits(return_X_y=True))
    images, seen = images.view(-1, 1, 8, 8).float() / 8 - 1, torch.arange(len(labels)) % 3 > 0
    for name, weight in (("nothing", 0.0), ("KL", 3.0)):
        torch.manual_seed(0)
        before = None
        for first, end in PHASES:
            model = convnet((1, 8, 8), end)
            if before is not None:
                grow(model, before)
            its = seen & (labels >= first) & (labels < end)
            learn(model, before, images[its], labels[its], first, weight, epochs)
            before = copy.deepcopy(model).eval().requires_grad_(False)
        pairs = before(images[~seen]).view(-1, len(PHASES), 2)
        told = pairs[torch.arange(len(pairs)), labels[~seen] // 2].argmax(-1) == labels[~seen] % 2
        print(f"{name}: {told.double().mean():.1%} of {len(told)} unseen digits, their pair told")


if __name__ == "__main__":
    main()
