"""Losses as modules: a function, its options checked once, and, for class-wise ones, a memory. Needs torch alone."""

from limbeck.losses.adaptive import AKLLoss
from limbeck.losses.attention import ATLoss
from limbeck.losses.base import DivergenceLoss
from limbeck.losses.channel_wise import CWDLoss
from limbeck.losses.class_attention import CATLoss
from limbeck.losses.class_prior import ClassPrior, PriorStatus
from limbeck.losses.congruence import CCLoss
from limbeck.losses.consistency import ProbabilityMSELoss, PseudoLabelLoss
from limbeck.losses.contrastive import CRDLoss
from limbeck.losses.correlation import DISTLoss
from limbeck.losses.curriculum import CTKDLoss
from limbeck.losses.decoupled import DKDLoss
from limbeck.losses.dense import DenseGKLLoss, DenseIKLLoss, DenseJSLoss, DenseKLLoss
from limbeck.losses.detection import BoxRegressionLoss, DetectionLoss, FGFILoss
from limbeck.losses.feature import FeatureLoss
from limbeck.losses.feature_distributions import FeatureDistributionLoss
from limbeck.losses.gaussian import WKDFeatureLoss
from limbeck.losses.gkl import DKLLoss, GKLLoss
from limbeck.losses.hint import FitNetLoss
from limbeck.losses.ikl import IKLLoss
from limbeck.losses.image_text import ContrastiveDivergenceLoss
from limbeck.losses.inter_channel import ICKDLoss
from limbeck.losses.kl import JSLoss, KLLoss, ReverseKLLoss
from limbeck.losses.linear import LinearGKLLoss, LinearJSLoss, LinearKLLoss, LinearSoftCrossEntropyLoss
from limbeck.losses.logit import LogitMSELoss
from limbeck.losses.mart import MARTLoss
from limbeck.losses.multi_js import MultiJSLoss
from limbeck.losses.multilevel import MLKDLoss
from limbeck.losses.normalized import NKDLoss
from limbeck.losses.notation import Translation, translate
from limbeck.losses.one_for_all import OFALoss
from limbeck.losses.overhaul import OFDLoss
from limbeck.losses.perspective import APDLoss
from limbeck.losses.projectors import build_projector
from limbeck.losses.proximal_transport import EMDLoss
from limbeck.losses.relational import RKDLoss
from limbeck.losses.review import ReviewKDLoss
from limbeck.losses.schedules import cosine_decay
from limbeck.losses.selectivity import NSTLoss
from limbeck.losses.similarity import PKTLoss, SPLoss
from limbeck.losses.standardized import StandardizedLoss
from limbeck.losses.teacher_free import TfKDLoss
from limbeck.losses.transformed import TTMLoss
from limbeck.losses.universal_self import USKDLoss
from limbeck.losses.variational import VIDLoss
from limbeck.losses.wasserstein import WKDLogitLoss
from limbeck.losses.zipf import ZipfLoss

__all__ = [
    "AKLLoss",
    "APDLoss",
    "ATLoss",
    "BoxRegressionLoss",
    "CATLoss",
    "CCLoss",
    "CRDLoss",
    "CTKDLoss",
    "CWDLoss",
    "ClassPrior",
    "ContrastiveDivergenceLoss",
    "DISTLoss",
    "DKDLoss",
    "DKLLoss",
    "DenseGKLLoss",
    "DenseIKLLoss",
    "DenseJSLoss",
    "DenseKLLoss",
    "DetectionLoss",
    "DivergenceLoss",
    "EMDLoss",
    "FGFILoss",
    "FeatureDistributionLoss",
    "FeatureLoss",
    "FitNetLoss",
    "GKLLoss",
    "ICKDLoss",
    "IKLLoss",
    "JSLoss",
    "KLLoss",
    "LinearGKLLoss",
    "LinearJSLoss",
    "LinearKLLoss",
    "LinearSoftCrossEntropyLoss",
    "LogitMSELoss",
    "MARTLoss",
    "MLKDLoss",
    "MultiJSLoss",
    "NKDLoss",
    "NSTLoss",
    "OFALoss",
    "OFDLoss",
    "PKTLoss",
    "PriorStatus",
    "ProbabilityMSELoss",
    "PseudoLabelLoss",
    "RKDLoss",
    "ReverseKLLoss",
    "ReviewKDLoss",
    "SPLoss",
    "StandardizedLoss",
    "TTMLoss",
    "TfKDLoss",
    "Translation",
    "USKDLoss",
    "VIDLoss",
    "WKDFeatureLoss",
    "WKDLogitLoss",
    "ZipfLoss",
    "build_projector",
    "cosine_decay",
    "translate",
]
