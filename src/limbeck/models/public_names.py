"""How public files name the weights of the zoo, and the names here: rules for `re.sub`, applied in turn.

The files are those of mdistiller and RepDistiller for CIFAR, of torchvision for ImageNet, and of TRADES, its
descendants, RobustBench and arXiv 2010.03593 for robust networks.
"""

from __future__ import annotations

import re

Rules = tuple[tuple[str, str], ...]

# Wrappers of a whole network: DataParallel's prefix, then the second of (normalisation, network) has none of its own.
WRAPPERS = re.compile(r"^(module\.)+(0\.)?")
INNER = "network."  # before the names of a network of timm, torchvision or transformers
STANDARDISATION = ("mean", "std")  # beside them
# A copy of the first stage that TRADES' network holds and never uses.
UNUSED = re.compile(r"^sub_block1\.")

_STEM: Rules = ((r"^conv1\.", "features.stem.conv."), (r"^bn1\.", "features.stem.bn."))
_LAYERS: Rules = ((r"^layer(\d)\.", r"features.stage\1."),)
_HEAD: Rules = ((r"^(fc|linear|classifier|logits)\.", "head."),)

RESNET: Rules = (
    *_STEM,
    *_LAYERS,
    (r"\.(downsample|shortcut)\.0\.", ".shortcut.conv."),
    (r"\.(downsample|shortcut)\.1\.", ".shortcut.bn."),
    *_HEAD,
)
SHUFFLENET: Rules = (
    *_STEM,
    *_LAYERS,
    (r"^conv2\.", "features.neck.conv."),
    (r"^bn2\.", "features.neck.bn."),
    *_HEAD,
)
PREACT_RESNET: Rules = (
    (r"^conv1\.", "features.stem.conv."),
    *_LAYERS,
    (r"\.shortcut\.0\.", ".shortcut."),
    (r"^bn\.", "features.neck.bn."),
    *_HEAD,
)
WIDE_RESNET: Rules = (
    (r"^conv1\.", "features.stem.conv."),
    (r"^block(\d)\.layer\.", r"features.stage\1."),
    (r"\.convShortcut\.", ".shortcut."),
    (r"^bn1\.", "features.neck.bn."),
    *_HEAD,
)
WIDE_RESNET_SWISH: Rules = (
    (r"^(mean|std)$", r"features.stem.standardise.\1"),
    (r"^init_conv\.", "features.stem.conv."),
    (r"^layer\.0\.block\.", "features.stage1."),
    (r"^layer\.1\.block\.", "features.stage2."),
    (r"^layer\.2\.block\.", "features.stage3."),
    (r"\.batchnorm_0\.", ".bn1."),
    (r"\.conv_0\.", ".conv1."),
    (r"\.batchnorm_1\.", ".bn2."),
    (r"\.conv_1\.", ".conv2."),
    (r"^batchnorm\.", "features.neck.bn."),
    *_HEAD,
)
VGG: Rules = (
    (r"^block(\d)\.0\.", r"block\1.conv1."),
    (r"^block(\d)\.1\.", r"block\1.bn1."),
    (r"^block(\d)\.3\.", r"block\1.conv2."),
    (r"^block(\d)\.4\.", r"block\1.bn2."),
    (r"^block0\.", "features.stem."),
    (r"^block(\d)\.", r"features.stage\1."),
    *_HEAD,
)
MOBILENET_V2: Rules = (
    (r"^conv1\.0\.", "features.stem.conv."),
    (r"^conv1\.1\.", "features.stem.bn."),
    (r"^conv2\.0\.", "features.neck.conv."),
    (r"^conv2\.1\.", "features.neck.bn."),
    (r"\.conv\.0\.", ".expand.conv."),
    (r"\.conv\.1\.", ".expand.bn."),
    (r"\.conv\.3\.", ".depthwise.conv."),
    (r"\.conv\.4\.", ".depthwise.bn."),
    (r"\.conv\.6\.", ".project.conv."),
    (r"\.conv\.7\.", ".project.bn."),
    (r"^blocks\.([01])\.", r"features.stage1.\1."),
    (r"^blocks\.2\.", "features.stage2.0."),
    (r"^blocks\.3\.", "features.stage3.0."),
    (r"^blocks\.4\.", "features.stage3.1."),
    (r"^blocks\.5\.", "features.stage4.0."),
    (r"^blocks\.6\.", "features.stage4.1."),
    (r"^classifier\.0\.", "head."),
)
# Stage and place in it of MobileNetV1's blocks.
SEPARABLE = (
    [(1, index) for index in range(3)] + [(2, 0), (2, 1)] + [(3, index) for index in range(6)] + [(4, 0), (4, 1)]
)
MOBILENET_V1: Rules = (
    (r"^model\.0\.0\.", "features.stem.conv."),
    (r"^model\.0\.1\.", "features.stem.bn."),
    (r"^(model\.\d+)\.0\.", r"\1.depthwise.conv."),
    (r"^(model\.\d+)\.1\.", r"\1.depthwise.bn."),
    (r"^(model\.\d+)\.3\.", r"\1.pointwise.conv."),
    (r"^(model\.\d+)\.4\.", r"\1.pointwise.bn."),
    *(
        (rf"^model\.{number}\.", f"features.stage{stage}.{index}.")
        for number, (stage, index) in enumerate(SEPARABLE, 1)
    ),
    *_HEAD,
)

# The first beginning of an architecture's name that fits.
FAMILIES: tuple[tuple[str, Rules], ...] = (
    ("resne", RESNET),
    ("preact_", PREACT_RESNET),
    ("wrn_28_10_swish", WIDE_RESNET_SWISH),
    ("wrn_", WIDE_RESNET),
    ("vgg", VGG),
    ("mobilenet_v1", MOBILENET_V1),
    ("mobilenet_v2", MOBILENET_V2),
    ("shufflenet", SHUFFLENET),
    ("", ()),
)


def our_name(public: str, architecture: str) -> str | None:
    """Return the name here of a weight of a public file; None if the network does without it.

    A network of timm, torchvision or transformers keeps the library's names, one level down.

    >>> our_name("module.layer1.0.downsample.0.weight", "resnet8x4")
    'features.stage1.0.shortcut.conv.weight'

    A name that no rule knows stays as it is, and so do the names here.

    >>> our_name("features.stage1.0.conv1.weight", "resnet8x4")
    'features.stage1.0.conv1.weight'
    """
    name = WRAPPERS.sub("", public)
    if UNUSED.match(name):
        return None
    if ":" in architecture:
        return name if name in STANDARDISATION or name.startswith(INNER) else INNER + name
    rules = next(rules for beginning, rules in FAMILIES if architecture.startswith(beginning))
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
