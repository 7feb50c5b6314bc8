"""Other people's kernels, called as their documentation says, where they are installed.

Liger's KL and JSD take log-probabilities, so that log_softmax of both sides belongs to them. Their backward passes ask
the host whether the incoming gradient is 1, which no CUDA graph can hold; while one is captured the question is
answered with yes, as it is true here, and costs nothing. The wall time of their eager calls has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.contenders import Case, Contender, exact_js, exact_kl, js, kl


def liger_kl(s: Tensor, t: Tensor, case: Case) -> Tensor:
    """Liger's KL of log-probabilities."""
    from liger_kernel.transformers import LigerKLDIVLoss

    loss = LigerKLDIVLoss(reduction="batchmean", log_target=True)
    return loss(F.log_softmax(s, -1), F.log_softmax(t, -1))


def liger_js(s: Tensor, t: Tensor, case: Case) -> Tensor:
    """Liger's JSD of log-probabilities, halfway."""
    from liger_kernel.transformers import LigerJSD

    return LigerJSD(beta=0.5)(F.log_softmax(s, -1), F.log_softmax(t, -1))


@contextmanager
def gradient_is_one() -> Iterator[None]:
    """Within it, `torch.equal(gradient, torch.tensor(1.0, device=...))` is True and copies nothing to the device."""
    one = patch.object(torch, "tensor", lambda *_, **__: None)
    with patch.object(torch, "equal", lambda *_: True), one:
        yield


def liger() -> list[Contender]:
    """KL and JSD, gradients to the student alone."""
    options = {"package": "liger_kernel", "rounds_log_probabilities": True, "while_captured": gradient_is_one}
    return [
        Contender("Liger KL", liger_kl, exact_kl, kl("torch"), **options),
        Contender("Liger JSD", liger_js, exact_js, js("torch"), **options),
    ]
