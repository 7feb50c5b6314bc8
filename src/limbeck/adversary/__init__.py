"""Who pushes back: attacks on the inputs and on the weights. Torch alone; no loss and no model is known here."""

from limbeck.adversary.attack_losses import ToClean, clean_logits, cross_entropy, margin
from limbeck.adversary.autoattack import AutoAttackResult, autoattack
from limbeck.adversary.awp import awp
from limbeck.adversary.balls import ascend, project, start_points
from limbeck.adversary.evaluate import evaluate, perturb
from limbeck.adversary.modes import attack_mode
from limbeck.adversary.pgd import AttackNotFinite, pgd
from limbeck.adversary.robustness import Robustness, Row, robustbench

__all__ = [
    "AttackNotFinite",
    "AutoAttackResult",
    "Robustness",
    "Row",
    "ToClean",
    "ascend",
    "attack_mode",
    "autoattack",
    "awp",
    "clean_logits",
    "cross_entropy",
    "evaluate",
    "margin",
    "perturb",
    "pgd",
    "project",
    "robustbench",
    "start_points",
]
