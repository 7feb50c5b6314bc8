"""Who pushes back: attacks on the inputs and on the weights. Torch alone; no loss and no model is known here."""

from limbeck.adversary.attack_losses import ToClean, clean_logits, cross_entropy, margin
from limbeck.adversary.awp import awp
from limbeck.adversary.balls import ascend, project, start_points
from limbeck.adversary.modes import attack_mode
from limbeck.adversary.pgd import AttackNotFinite, pgd

__all__ = [
    "AttackNotFinite",
    "ToClean",
    "ascend",
    "attack_mode",
    "awp",
    "clean_logits",
    "cross_entropy",
    "margin",
    "pgd",
    "project",
    "start_points",
]
