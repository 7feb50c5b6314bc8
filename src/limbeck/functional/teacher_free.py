"""Teacher-free distillation (Tf-KD): KL to a teacher that is written down, not trained."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from limbeck.functional._check import (
    Reduction,
    check_pair,
    check_positive,
    check_range,
    check_reduction,
    full_precision,
    reduce,
    widest,
)
from limbeck.functional._rest import own_class
from limbeck.functional.kl import _kl, tempered

Teacher = Literal["code", "paper"]


@full_precision
def tf_kd_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    correct: float = 0.99,
    temperature: float = 20.0,
    mode: Teacher = "code",
    reduction: Reduction = "mean",
) -> Tensor:
    r"""KL to a virtual teacher that gives the label the probability `correct` and the rest evenly to the others.

    .. math:: u[y] = a, \quad u[k \ne y] = \frac{1 - a}{C - 1} \\
        \text{code:}\quad KL(\mathrm{softmax}(u / T) \| p_s), \qquad
        \text{paper:}\quad KL(\mathrm{softmax}(\log u / T) \| p_s^T)

    a is `correct`. "code" produced the published numbers: it takes the softmax of probabilities over T, so that at
    T = 20 the label is 1.05 times as likely as another class, and leaves the student at T = 1. "paper" softens teacher
    and student alike. No T squared in either. The public code divides by the number of classes as well (KL "mean" over
    all elements) and multiplies by 100 on CIFAR-100's ResNet-18, where both cancel: its a * multiplier is the weight
    a * multiplier / C of this loss, 0.1 for ResNet-18 (T = 20) and 0.0095 for MobileNetV2 (T = 40), beside the labels'
    cross-entropy with weights 0.9 and 0.05. The paper's other form, its own earlier copy as the teacher, is
    `kl_divergence` with `scale_by_t2=True` and the weight a * multiplier / C: 0.475 (ResNet-18, T = 6).

    Args:
        logits: (*, C), any floating dtype; what trains.
        labels: (*), integers in [0, C).
        correct: a, in (0, 1); published 0.99.
        temperature: T > 0; published 20 and 40.
        mode: "code" or "paper".
        reduction: "none" (*), "mean" over all leading axes, or "sum".

    Returns:
        Nats, in [0, inf]; float32 (float64 for float64 inputs). With one class 0. +inf where a class is at -inf: the
        virtual teacher knows no absent class.

    Raises:
        TypeError: logits not floating; labels not integers.
        ValueError: an empty shape; a label, `correct` or `temperature` out of range; unknown `mode` or `reduction`.

    Gradient:
        To `logits`, all orders; p_s - softmax(u / T) in mode "code".

    Example:
        >>> import torch
        >>> tf_kd_loss(torch.tensor([[0.99, 0.01]]) / 20, torch.tensor([0]))  # the virtual teacher's own logits
        tensor(0.)

    Reference:
        Yuan et al., "Revisiting Knowledge Distillation via Label Smoothing Regularization", arXiv 1909.11723, Eq. 9-10;
        yuanli2333/Teacher-free-Knowledge-Distillation, `my_loss_function.py`.
    """
    check_pair(logits, logits)
    own = own_class(labels, logits, "Tf-KD")
    check_tf_kd(correct, temperature, mode)
    check_reduction(reduction)
    classes = logits.shape[-1]
    label, other = correct, (1 - correct) / max(classes - 1, 1)
    if mode == "paper":
        label, other = math.log(label), math.log(other)
    s = logits.to(widest(logits))
    scores = torch.where(own, s.new_full((), label / temperature), s.new_full((), other / temperature))
    log_q = torch.log_softmax(s if mode == "code" else tempered(s, temperature), -1)
    return reduce(_kl(torch.log_softmax(scores, -1), log_q), reduction)


def check_tf_kd(correct: float, temperature: float, mode: str) -> None:
    """Check the options of the virtual teacher."""
    check_range("correct", correct, 0.0, 1.0)
    if not 0 < correct < 1:
        raise ValueError(f"`correct` expected a probability in (0, 1), got {correct}; 1 is the labels' cross-entropy")
    check_positive("temperature", temperature)
    if mode not in ("code", "paper"):
        raise ValueError(f"`mode` expected 'code' (what ran) or 'paper' (what was printed), got {mode!r}")
