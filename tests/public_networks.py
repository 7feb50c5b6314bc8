"""The networks of the public code again, by hand: the names and shapes of their weights, and logits in eval mode.

Written from the papers and the names in the public files, with nothing of `limbeck`, so that a wrong rule, shortcut or
norm there shows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]

# Blocks of each stage, channels of the stem and the stages, and the kind of block.
RESNETS = {
    "resnet8": ((1, 1, 1), (16, 16, 32, 64), "basic"),
    "resnet14": ((2, 2, 2), (16, 16, 32, 64), "basic"),
    "resnet20": ((3, 3, 3), (16, 16, 32, 64), "basic"),
    "resnet32": ((5, 5, 5), (16, 16, 32, 64), "basic"),
    "resnet44": ((7, 7, 7), (16, 16, 32, 64), "basic"),
    "resnet56": ((9, 9, 9), (16, 16, 32, 64), "basic"),
    "resnet110": ((18, 18, 18), (16, 16, 32, 64), "basic"),
    "resnet8x4": ((1, 1, 1), (32, 64, 128, 256), "basic"),
    "resnet32x4": ((5, 5, 5), (32, 64, 128, 256), "basic"),
    "resnet18_cifar": ((2, 2, 2, 2), (64, 64, 128, 256, 512), "basic"),
    "resnet50_cifar": ((3, 4, 6, 3), (64, 256, 512, 1024, 2048), "bottleneck"),
    "resnet18": ((2, 2, 2, 2), (64, 64, 128, 256, 512), "basic"),
    "resnet34": ((3, 4, 6, 3), (64, 64, 128, 256, 512), "basic"),
    "resnet50": ((3, 4, 6, 3), (64, 256, 512, 1024, 2048), "bottleneck"),
    "resnet101": ((3, 4, 23, 3), (64, 256, 512, 1024, 2048), "bottleneck"),
    "resnext101_32x4d": ((3, 4, 23, 3), (64, 256, 512, 1024, 2048), "32x4d"),
}
IMAGENET = ("resnet18", "resnet34", "resnet50", "resnet101", "resnext101_32x4d", "mobilenet_v1")
MOBILENET_V2 = ((1, 16, 8, 1, 1), (6, 8, 12, 2, 1), (6, 12, 16, 3, 2), (6, 16, 32, 4, 2), (6, 32, 48, 3, 1))
MOBILENET_V2 += ((6, 48, 80, 3, 2), (6, 80, 160, 1, 1))  # expansion, from, to, blocks, stride
MOBILENET_V1 = ((32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2))
MOBILENET_V1 += (*[(512, 512, 1)] * 5, (512, 1024, 2), (1024, 1024, 1))
SHUFFLENET_V1 = ((24, 240, 4), (240, 480, 8), (480, 960, 4))
SHUFFLENET_V2 = ((24, 116, 3), (116, 232, 7), (232, 464, 3))


# --- names and shapes ---------------------------------------------------------------------------------------


def conv(name: str, incoming: int, outgoing: int, side: int, groups: int = 1, bias: bool = False) -> State:
    weight = torch.randn(outgoing, incoming // groups, side, side) * math.sqrt(2 * groups / (incoming * side * side))
    return {f"{name}.weight": weight} | ({f"{name}.bias": 0.1 * torch.randn(outgoing)} if bias else {})


def norm(name: str, channels: int) -> State:
    return {
        f"{name}.weight": 0.5 + torch.rand(channels),
        f"{name}.bias": 0.1 * torch.randn(channels),
        f"{name}.running_mean": 0.1 * torch.randn(channels),
        f"{name}.running_var": 0.5 + torch.rand(channels),
        f"{name}.num_batches_tracked": torch.tensor(7),
    }


def linear(name: str, incoming: int, outgoing: int) -> State:
    return {f"{name}.weight": torch.randn(outgoing, incoming) / 10, f"{name}.bias": torch.randn(outgoing)}


def conv_norm(conv_name: str, norm_name: str, incoming: int, outgoing: int, side: int, groups: int = 1) -> State:
    return conv(conv_name, incoming, outgoing, side, groups) | norm(norm_name, outgoing)


def resnet_state(name: str, classes: int) -> State:
    blocks, channels, kind = RESNETS[name]
    around = "shortcut" if name.endswith("_cifar") else "downsample"
    state = conv_norm("conv1", "bn1", 3, channels[0], 7 if name in IMAGENET else 3)
    for stage, count in enumerate(blocks, 1):
        for index in range(count):
            at, incoming, outgoing = f"layer{stage}.{index}", channels[stage if index else stage - 1], channels[stage]
            width, groups = {"basic": (outgoing, 1), "bottleneck": (outgoing // 4, 1), "32x4d": (outgoing // 2, 32)}[
                kind
            ]
            if kind == "basic":
                state |= conv_norm(f"{at}.conv1", f"{at}.bn1", incoming, outgoing, 3)
                state |= conv_norm(f"{at}.conv2", f"{at}.bn2", outgoing, outgoing, 3)
            else:
                state |= conv_norm(f"{at}.conv1", f"{at}.bn1", incoming, width, 1)
                state |= conv_norm(f"{at}.conv2", f"{at}.bn2", width, width, 3, groups)
                state |= conv_norm(f"{at}.conv3", f"{at}.bn3", width, outgoing, 1)
            if index == 0 and (stage > 1 or incoming != outgoing):
                state |= conv_norm(f"{at}.{around}.0", f"{at}.{around}.1", incoming, outgoing, 1)
    return state | linear("linear" if name.endswith("_cifar") else "fc", channels[-1], classes)


def wrn_state(name: str, classes: int) -> State:
    depth, widen = (int(number) for number in name.split("_")[1:3])
    state = conv("conv1", 3, 16, 3)
    channels = (16, 16 * widen, 32 * widen, 64 * widen)
    for stage in (1, 2, 3):
        for index in range((depth - 4) // 6):
            at, incoming, outgoing = f"block{stage}.layer.{index}", channels[stage - (index == 0)], channels[stage]
            state |= norm(f"{at}.bn1", incoming) | conv_norm(f"{at}.conv1", f"{at}.bn2", incoming, outgoing, 3)
            state |= conv(f"{at}.conv2", outgoing, outgoing, 3)
            if incoming != outgoing:
                state |= conv(f"{at}.convShortcut", incoming, outgoing, 1)
    return state | norm("bn1", channels[-1]) | linear("fc", channels[-1], classes)


def preact_state(name: str, classes: int) -> State:
    state = conv("conv1", 3, 64, 3)
    for stage in (1, 2, 3, 4):
        for index in (0, 1):
            at, outgoing = f"layer{stage}.{index}", 32 * 2**stage
            incoming = outgoing // 2 if stage > 1 and index == 0 else outgoing
            state |= norm(f"{at}.bn1", incoming) | conv_norm(f"{at}.conv1", f"{at}.bn2", incoming, outgoing, 3)
            state |= conv(f"{at}.conv2", outgoing, outgoing, 3)
            if incoming != outgoing:
                state |= conv(f"{at}.shortcut.0", incoming, outgoing, 1)
    return state | norm("bn", 512) | linear("linear", 512, classes)


def swish_state(name: str, classes: int) -> State:
    depth, widen = (int(number) for number in name.split("_")[1:3])
    state = conv("init_conv", 3, 16, 3)
    channels = (16, 16 * widen, 32 * widen, 64 * widen)
    for stage in (0, 1, 2):
        for index in range((depth - 4) // 6):
            at, outgoing = f"layer.{stage}.block.{index}", channels[stage + 1]
            incoming = outgoing if index else channels[stage]
            state |= norm(f"{at}.batchnorm_0", incoming) | conv(f"{at}.conv_0", incoming, outgoing, 3)
            state |= norm(f"{at}.batchnorm_1", outgoing) | conv(f"{at}.conv_1", outgoing, outgoing, 3)
            if incoming != outgoing:
                state |= conv(f"{at}.shortcut", incoming, outgoing, 1)
    return state | norm("batchnorm", channels[-1]) | linear("logits", channels[-1], classes)


def vgg_state(name: str, classes: int) -> State:
    state: State = {}
    incoming = 3
    for block, outgoing in enumerate((64, 128, 256, 512, 512)):
        for index in (0,) if name == "vgg8" else (0, 3):
            state |= conv(f"block{block}.{index}", incoming, outgoing, 3, bias=True)
            state |= norm(f"block{block}.{index + 1}", outgoing)
            incoming = outgoing
    return state | linear("classifier", 512, classes)


def mobilenet_v2_state(name: str, classes: int) -> State:
    state = conv_norm("conv1.0", "conv1.1", 3, 16, 3)
    for group, (expansion, first, outgoing, blocks, _) in enumerate(MOBILENET_V2):
        for index in range(blocks):
            at, incoming = f"blocks.{group}.{index}.conv", outgoing if index else first
            width = incoming * expansion
            state |= conv_norm(f"{at}.0", f"{at}.1", incoming, width, 1)
            state |= conv_norm(f"{at}.3", f"{at}.4", width, width, 3, width)
            state |= conv_norm(f"{at}.6", f"{at}.7", width, outgoing, 1)
    return state | conv_norm("conv2.0", "conv2.1", 160, 1280, 1) | linear("classifier.0", 1280, classes)


def mobilenet_v1_state(name: str, classes: int) -> State:
    state = conv_norm("model.0.0", "model.0.1", 3, 32, 3)
    for index, (incoming, outgoing, _) in enumerate(MOBILENET_V1, 1):
        state |= conv_norm(f"model.{index}.0", f"model.{index}.1", incoming, incoming, 3, incoming)
        state |= conv_norm(f"model.{index}.3", f"model.{index}.4", incoming, outgoing, 1)
    return state | linear("fc", 1024, classes)


def shufflenet_v1_state(name: str, classes: int) -> State:
    state = conv_norm("conv1", "bn1", 3, 24, 1)
    for stage, (first, planes, blocks) in enumerate(SHUFFLENET_V1, 1):
        for index in range(blocks):
            at, incoming = f"layer{stage}.{index}", planes if index else first
            outgoing = planes if index else planes - first
            width = outgoing // 4
            state |= conv_norm(f"{at}.conv1", f"{at}.bn1", incoming, width, 1, 1 if incoming == 24 else 3)
            state |= conv_norm(f"{at}.conv2", f"{at}.bn2", width, width, 3, width)
            state |= conv_norm(f"{at}.conv3", f"{at}.bn3", width, outgoing, 1, 3)
    return state | linear("linear", 960, classes)


def shufflenet_v2_state(name: str, classes: int) -> State:
    state = conv_norm("conv1", "bn1", 3, 24, 1)
    for stage, (incoming, outgoing, blocks) in enumerate(SHUFFLENET_V2, 1):
        at, half = f"layer{stage}.0", outgoing // 2
        state |= conv_norm(f"{at}.conv1", f"{at}.bn1", incoming, incoming, 3, incoming)
        state |= conv_norm(f"{at}.conv2", f"{at}.bn2", incoming, half, 1)
        state |= conv_norm(f"{at}.conv3", f"{at}.bn3", incoming, half, 1)
        state |= conv_norm(f"{at}.conv4", f"{at}.bn4", half, half, 3, half)
        state |= conv_norm(f"{at}.conv5", f"{at}.bn5", half, half, 1)
        for index in range(1, blocks + 1):
            at = f"layer{stage}.{index}"
            state |= conv_norm(f"{at}.conv1", f"{at}.bn1", half, half, 1)
            state |= conv_norm(f"{at}.conv2", f"{at}.bn2", half, half, 3, half)
            state |= conv_norm(f"{at}.conv3", f"{at}.bn3", half, half, 1)
    return state | conv_norm("conv2", "bn2", 464, 1024, 1) | linear("linear", 1024, classes)


# --- logits -------------------------------------------------------------------------------------------------


class Twin:
    """A network as the operations that its weights take part in."""

    def __init__(self, name: str, state: State) -> None:
        self.name, self.state = name, state

    def conv(self, name: str, maps: Tensor, stride: int = 1, groups: int = 1, padding: int | None = None) -> Tensor:
        weight = self.state[f"{name}.weight"]
        padding = weight.shape[-1] // 2 if padding is None else padding
        return F.conv2d(maps, weight, self.state.get(f"{name}.bias"), stride, padding, groups=groups)

    def norm(self, name: str, maps: Tensor) -> Tensor:
        weight, bias, mean, var = (
            self.state[f"{name}.{part}"][:, None, None] for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (maps - mean) / (var + 1e-5).sqrt() * weight + bias

    def conv_norm(self, at: str, number: int, maps: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        return self.norm(f"{at}bn{number}", self.conv(f"{at}conv{number}", maps, stride, groups))

    def head(self, name: str, maps: Tensor) -> Tensor:
        return F.linear(maps.mean((2, 3)), self.state[f"{name}.weight"], self.state[f"{name}.bias"])


def resnet_logits(net: Twin, images: Tensor) -> Tensor:
    blocks, _, kind = RESNETS[net.name]
    large = net.name in IMAGENET
    around = "shortcut" if net.name.endswith("_cifar") else "downsample"
    maps = net.conv_norm("", 1, images, 2 if large else 1).relu()
    maps = F.max_pool2d(maps, 3, 2, 1) if large else maps
    for stage, count in enumerate(blocks, 1):
        for index in range(count):
            at, stride = f"layer{stage}.{index}.", 2 if stage > 1 and index == 0 else 1
            if kind == "basic":
                inner = net.conv_norm(at, 2, net.conv_norm(at, 1, maps, stride).relu())
            else:
                inner = net.conv_norm(at, 1, maps).relu()
                inner = net.conv_norm(at, 2, inner, stride, 32 if kind == "32x4d" else 1).relu()
                inner = net.conv_norm(at, 3, inner)
            if f"{at}{around}.0.weight" in net.state:
                maps = net.norm(f"{at}{around}.1", net.conv(f"{at}{around}.0", maps, stride))
            maps = (inner + maps).relu()
    return net.head("linear" if net.name.endswith("_cifar") else "fc", maps)


def wrn_logits(net: Twin, images: Tensor) -> Tensor:
    maps = net.conv("conv1", images)
    for stage in (1, 2, 3):
        index = 0
        while f"block{stage}.layer.{index}.conv1.weight" in net.state:
            at, stride = f"block{stage}.layer.{index}.", 2 if stage > 1 and index == 0 else 1
            active = net.norm(f"{at}bn1", maps).relu()
            inner = net.conv(f"{at}conv2", net.norm(f"{at}bn2", net.conv(f"{at}conv1", active, stride)).relu())
            beside = f"{at}convShortcut"
            maps = inner + (net.conv(beside, active, stride) if f"{beside}.weight" in net.state else maps)
            index += 1
    return net.head("fc", net.norm("bn1", maps).relu())


def preact_logits(net: Twin, images: Tensor) -> Tensor:
    maps = net.conv("conv1", images)
    for stage in (1, 2, 3, 4):
        for index in (0, 1):
            at, stride = f"layer{stage}.{index}.", 2 if stage > 1 and index == 0 else 1
            active = net.norm(f"{at}bn1", maps).relu()
            around = net.conv(f"{at}shortcut.0", active, stride) if stride == 2 else maps
            inner = net.norm(f"{at}bn2", net.conv(f"{at}conv1", active, stride)).relu()
            maps = net.conv(f"{at}conv2", inner) + around
    return net.head("linear", net.norm("bn", maps).relu())


def swish_logits(net: Twin, images: Tensor) -> Tensor:
    """On 100 classes; an even side at stride 2 is padded by one row below and one column to the right."""
    mean, std = torch.tensor([0.5071, 0.4865, 0.4409]), torch.tensor([0.2673, 0.2564, 0.2762])
    maps = net.conv("init_conv", (images - mean[:, None, None]) / std[:, None, None])
    for stage in (0, 1, 2):
        index = 0
        while f"layer.{stage}.block.{index}.conv_0.weight" in net.state:
            at, stride = f"layer.{stage}.block.{index}.", 2 if stage and index == 0 else 1
            active = F.silu(net.norm(f"{at}batchnorm_0", maps))
            padded = F.pad(active, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))
            inner = F.silu(net.norm(f"{at}batchnorm_1", net.conv(f"{at}conv_0", padded, stride, padding=0)))
            beside = f"{at}shortcut"
            maps = net.conv(f"{at}conv_1", inner) + (
                net.conv(beside, active, stride) if f"{beside}.weight" in net.state else maps
            )
            index += 1
    return net.head("logits", F.silu(net.norm("batchnorm", maps)))


def vgg_logits(net: Twin, images: Tensor) -> Tensor:
    maps = images
    for block in range(5):
        maps = F.max_pool2d(maps, 2) if 1 <= block <= 3 else maps
        for index in (0,) if net.name == "vgg8" else (0, 3):
            maps = net.norm(f"block{block}.{index + 1}", net.conv(f"block{block}.{index}", maps)).relu()
    return net.head("classifier", maps)


def mobilenet_v2_logits(net: Twin, images: Tensor) -> Tensor:
    maps = net.norm("conv1.1", net.conv("conv1.0", images, 2)).relu()
    for group, (_, _, _, blocks, stride) in enumerate(MOBILENET_V2):
        for index in range(blocks):
            at, step = f"blocks.{group}.{index}.conv.", stride if index == 0 else 1
            inner = net.norm(f"{at}1", net.conv(f"{at}0", maps)).relu()
            inner = net.norm(f"{at}4", net.conv(f"{at}3", inner, step, inner.shape[1])).relu()
            inner = net.norm(f"{at}7", net.conv(f"{at}6", inner))
            maps = maps + inner if maps.shape == inner.shape else inner
    return net.head("classifier.0", net.norm("conv2.1", net.conv("conv2.0", maps)).relu())


def mobilenet_v1_logits(net: Twin, images: Tensor) -> Tensor:
    maps = net.norm("model.0.1", net.conv("model.0.0", images, 2)).relu()
    for index, (channels, _, stride) in enumerate(MOBILENET_V1, 1):
        maps = net.norm(f"model.{index}.1", net.conv(f"model.{index}.0", maps, stride, channels)).relu()
        maps = net.norm(f"model.{index}.4", net.conv(f"model.{index}.3", maps)).relu()
    return net.head("fc", maps)


def dealt(maps: Tensor, groups: int) -> Tensor:
    """Channel shuffle as the order of channels: first of each group, second of each group, and on."""
    size = maps.shape[1] // groups
    return maps[:, [group * size + place for place in range(size) for group in range(groups)]]


def shufflenet_v1_logits(net: Twin, images: Tensor) -> Tensor:
    maps = net.conv_norm("", 1, images).relu()
    for stage, (_, _, blocks) in enumerate(SHUFFLENET_V1, 1):
        for index in range(blocks):
            at, stride, groups = f"layer{stage}.{index}.", 1 if index else 2, 1 if maps.shape[1] == 24 else 3
            inner = dealt(net.conv_norm(at, 1, maps, groups=groups).relu(), groups)
            inner = net.conv_norm(at, 2, inner, stride, inner.shape[1]).relu()
            inner = net.conv_norm(at, 3, inner, groups=3)
            maps = (inner + maps if index else torch.cat([inner, F.avg_pool2d(maps, 3, 2, 1)], 1)).relu()
    return net.head("linear", maps)


def shufflenet_v2_logits(net: Twin, images: Tensor) -> Tensor:
    maps = net.conv_norm("", 1, images).relu()
    for stage, (_, _, blocks) in enumerate(SHUFFLENET_V2, 1):
        at = f"layer{stage}.0."
        left = net.conv_norm(at, 2, net.conv_norm(at, 1, maps, 2, maps.shape[1])).relu()
        right = net.conv_norm(at, 3, maps).relu()
        right = net.conv_norm(at, 5, net.conv_norm(at, 4, right, 2, right.shape[1])).relu()
        maps = dealt(torch.cat([left, right], 1), 2)
        for index in range(1, blocks + 1):
            at, half = f"layer{stage}.{index}.", maps.shape[1] // 2
            inner = net.conv_norm(at, 2, net.conv_norm(at, 1, maps[:, half:]).relu(), 1, half)
            maps = dealt(torch.cat([maps[:, :half], net.conv_norm(at, 3, inner).relu()], 1), 2)
    return net.head("linear", net.conv_norm("", 2, maps).relu())


FAMILIES = {
    **dict.fromkeys(RESNETS, (resnet_state, resnet_logits)),
    **dict.fromkeys(("wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2"), (wrn_state, wrn_logits)),
    **dict.fromkeys(("wrn_28_10", "wrn_34_10", "wrn_34_20"), (wrn_state, wrn_logits)),
    "wrn_28_10_swish": (swish_state, swish_logits),
    "preact_resnet18": (preact_state, preact_logits),
    **dict.fromkeys(("vgg8", "vgg13"), (vgg_state, vgg_logits)),
    "mobilenet_v2": (mobilenet_v2_state, mobilenet_v2_logits),
    "mobilenet_v1": (mobilenet_v1_state, mobilenet_v1_logits),
    "shufflenet_v1": (shufflenet_v1_state, shufflenet_v1_logits),
    "shufflenet_v2": (shufflenet_v2_state, shufflenet_v2_logits),
}


def public_state(name: str, classes: int = 100, seed: int = 0) -> State:
    """Return weights of an architecture under the names of the public code."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FAMILIES[name][0](name, classes)


def public_logits(name: str, state: State, images: Tensor) -> Tensor:
    """Return the logits of such weights in eval mode."""
    return FAMILIES[name][1](Twin(name, state), images)
