"""Compare losses on your own networks and data: python examples/own_networks.py [FOLDER]. Half a minute."""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset

import limbeck
from limbeck.config import GKLTerm, KLTerm


class Digits(Dataset):
    """Your data set: whatever a DataLoader reads, with your own augmentation."""

    def __init__(self, rows, noise):
        images, labels = load_digits(return_X_y=True)
        self.images, self.labels, self.noise = torch.tensor(images[rows]).float() / 8 - 1, labels[rows], noise

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.images[i] + self.noise * torch.randn(64), int(self.labels[i])


class Net(nn.Sequential):
    """Your network: whatever returns logits (N, C)."""

    def __init__(self, width):
        super().__init__(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


folder = sys.argv[1] if len(sys.argv) > 1 else "runs/own"
train = DataLoader(Digits(slice(1200), noise=0.3), batch_size=64, shuffle=True)
val = DataLoader(Digits(slice(1200, None), noise=0.0), batch_size=256)
teacher = Net(width=128)
limbeck.fit(teacher, train, val, epochs=10, folder=f"{folder}/teacher", resume=True)
losses = {"ce": "ce", "kl": KLTerm(temperature=4, scale_by_t2=True), "gkl": GKLTerm(weight_power=0.3, temperature=4)}
print(limbeck.compare(lambda: Net(width=8), teacher, train, val, losses=losses, seeds=3, epochs=10, folder=folder))
