"""What timm has too, and trained the published recipes with: LAMB and the binary cross-entropy."""

from __future__ import annotations

import pytest
import torch
from test_engine_lamb import BETAS, RATE, network, train
from torch.nn import functional as F

from limbeck.config import CrossEntropyTerm
from limbeck.engine.lamb import LAMB
from limbeck.objectives.terms import cross_entropy


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lamb_is_timms(decay):
    from timm.optim import Lamb

    net, theirs = network(), network()
    train(LAMB(net.parameters(), lr=RATE, betas=BETAS, weight_decay=decay), net, range(1, 6))
    other = Lamb(theirs.parameters(), lr=RATE, betas=BETAS, weight_decay=decay, max_grad_norm=None)
    train(other, theirs, range(1, 6))
    for parameter, expected in zip(net.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("threshold", [None, 0.2])
@pytest.mark.parametrize("mixed", [False, True])
def test_binary_cross_entropy_is_timms(threshold, mixed):
    from timm.loss import BinaryCrossEntropy

    logits = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    targets = F.one_hot(labels, 5).double().lerp(F.one_hot(labels.flip(0), 5).double(), 0.3) if mixed else labels
    smoothing = 0.0 if mixed else 0.1  # timm smooths mixed labels where it mixes
    ours = cross_entropy(
        CrossEntropyTerm(binary=True, label_smoothing=smoothing, target_threshold=threshold), logits, targets
    )
    torch.testing.assert_close(ours, BinaryCrossEntropy(smoothing, target_threshold=threshold)(logits, targets))
