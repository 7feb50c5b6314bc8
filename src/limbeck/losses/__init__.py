"""Losses as modules: a function, its options checked once, and, for class-wise ones, a memory. Needs torch alone."""

from limbeck.losses.base import DivergenceLoss
from limbeck.losses.class_prior import ClassPrior, PriorStatus
from limbeck.losses.correlation import DISTLoss
from limbeck.losses.decoupled import DKDLoss
from limbeck.losses.gkl import DKLLoss, GKLLoss, IKLLoss
from limbeck.losses.kl import JSLoss, KLLoss, ReverseKLLoss
from limbeck.losses.logit import LogitMSELoss
from limbeck.losses.mart import MARTLoss
from limbeck.losses.normalized import NKDLoss
from limbeck.losses.notation import Translation, translate
from limbeck.losses.standardized import StandardizedLoss
from limbeck.losses.transformed import TTMLoss
from limbeck.losses.wasserstein import WKDLogitLoss

__all__ = [
    "ClassPrior",
    "DISTLoss",
    "DKDLoss",
    "DKLLoss",
    "DivergenceLoss",
    "GKLLoss",
    "IKLLoss",
    "JSLoss",
    "KLLoss",
    "LogitMSELoss",
    "MARTLoss",
    "NKDLoss",
    "PriorStatus",
    "ReverseKLLoss",
    "StandardizedLoss",
    "TTMLoss",
    "Translation",
    "WKDLogitLoss",
    "translate",
]
