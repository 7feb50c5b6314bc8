"""Networks of timm, torchvision and transformers by name. Each library is imported when a name asks for it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from limbeck.errors import UserError, install, missing_extra
from limbeck.models.prefixed import PrefixedNetwork, Standardisation
from limbeck.models.weights import other_head
from limbeck.network_names import EXTRAS, PREFIXES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from limbeck.config_models import ModelOptions

IMAGENET = Standardisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Published sizes of networks that timm does not name: a network of timm, and what is other in it.
SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    # Swin-P of arXiv 2310.19444 and 2412.08139.
    "swin_pico_patch4_window7_224": (
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 48, "depths": (2, 2, 2, 2), "num_heads": (2, 4, 8, 16)},
    ),
    # ViT-S of USB, arXiv 2208.07204, for images of 32 pixels.
    "vit_small_patch2_32": ("vit_small_patch16_224", {"patch_size": 2}),
}
AUXILIARY = ("googlenet", "inception_v3")  # of torchvision: they return several logits in training


class Wanted(NamedTuple):
    """What is asked of a library.

    Attributes:
        options: Of the network.
        name: Its name, without the prefix.
        image_shape: `(C, H, W)`.
        num_classes: Number of classes.
        pretrained: Whether it starts from the library's own weights.
        maps: Whether it gives each pixel a class, not each image.
    """

    options: ModelOptions
    name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    pretrained: bool
    maps: bool = False


class Opened(NamedTuple):
    """A library's network.

    Attributes:
        network: With a head for the wanted classes.
        own: What its pretrained weights expect pixels to be standardised by.
        head: Number of classes of the head that came with pretrained weights, if they came; 0 if there was none.
    """

    network: nn.Module
    own: Standardisation
    head: int | None


def open_network(
    options: ModelOptions,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    data: Standardisation | None,
    pretrained: bool,
    task: str = "supervised",
) -> PrefixedNetwork:
    """Open a network of another library; its random weights are drawn from torch's generator.

    Args:
        options: Its name has a prefix. With `weights`, the network sees pixels standardised as its library does,
            unless `pixels` say as the data are; without, as the data are.
        image_shape: `(C, H, W)`.
        num_classes: Number of classes.
        data: What the images' pixels are standardised by; None if that is unknown, and they are taken as they come.
        pretrained: Whether to get the library's own weights, from its cache or the net.
        task: What the network is for.

    Raises:
        UserError: The library is not here, knows no such network or weights, or the network cannot look at the images.
    """
    prefix, _, name = options.name.partition(":")
    wanted = Wanted(options, name, image_shape, num_classes, pretrained, maps=task == "segment")
    if task == "image_text":
        from limbeck.models.libraries_image_text import open_towers

        return open_towers(wanted, data)
    if task == "detect":
        from limbeck.models.libraries_detect import open_detector

        return open_detector(wanted, data)
    opened = _LIBRARIES[prefix](wanted)
    unknown = Standardisation((0.0,) * image_shape[0], (1.0,) * image_shape[0])
    data = data or unknown
    own = of_channels(opened.own, image_shape[0], options.name) if sees_its_own(options) else data
    new_head = opened.head if opened.head not in (None, num_classes) else None
    network = PrefixedNetwork(opened.network, own, data, new_head=new_head)
    _look_once(network, wanted)
    return network


@contextmanager
def imported(wanted: Wanted) -> Iterator[None]:
    """Turn the failure of a library's import into one line."""
    prefix, name = wanted.options.name.partition(":")[0], wanted.options.name
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in PREFIXES.values():
            raise
        raise missing_extra(package, EXTRAS[prefix], f"`model.name` {name}") from error
    except (ImportError, RuntimeError) as error:  # torchvision beside another build of torch
        raise UserError(
            f"`model.name` {name}: {PREFIXES[prefix]} cannot be imported beside torch {torch.__version__} "
            f"({_line(error)}); install builds that belong together: {install(EXTRAS[prefix])}"
        ) from error


# --- timm ---------------------------------------------------------------------------------------------------


def _timm(wanted: Wanted) -> Opened:
    with imported(wanted):
        import timm
    name, sizes = SIZES.get(wanted.name, (wanted.name, {}))
    known = [*timm.list_models(), *SIZES]
    if not timm.is_model(name):
        raise _unknown(wanted, known)
    if sizes and wanted.pretrained:
        raise UserError(f"`model.name` {wanted.options.name} has no weights in timm; name a file in `weights`")
    card = timm.models.get_pretrained_cfg(name, allow_unregistered=True)
    channels, *sides = wanted.image_shape
    keywords = {"num_classes": wanted.num_classes, "in_chans": channels, "pretrained": wanted.pretrained, **sizes}
    if card is not None and card.fixed_input_size:
        keywords["img_size"] = tuple(sides)
    keywords |= _regularised(wanted.options, "drop_rate", "drop_path_rate")
    with said(wanted, keywords):
        network = timm.create_model(name, **keywords)
    its = network.pretrained_cfg
    own = Standardisation(tuple(its["mean"]), tuple(its["std"]))
    return Opened(network, own, its["num_classes"] if wanted.pretrained else None)


# --- torchvision --------------------------------------------------------------------------------------------


def _torchvision(wanted: Wanted) -> Opened:
    with imported(wanted):
        from torchvision import models
    known = [name for name in models.list_models(module=models) if name not in AUXILIARY]
    if wanted.name not in known:
        raise _unknown(wanted, known)
    if wanted.image_shape[0] != 3:
        raise UserError(
            f"`model.name` {wanted.options.name} expected images of 3 channels, got {wanted.image_shape[0]}; "
            "timm's networks take any number"
        )
    keywords: dict[str, Any] = {"num_classes": wanted.num_classes}
    if wanted.name.startswith("vit_"):
        keywords["image_size"] = wanted.image_shape[-1]
    keywords |= _regularised(wanted.options, "dropout", "stochastic_depth_prob")
    weights = models.get_model_weights(wanted.name).DEFAULT
    with said(wanted, keywords):
        network = models.get_model(wanted.name, weights=None, **keywords)
        head = None
        if wanted.pretrained:
            head = len(weights.meta["categories"])
            state = weights.get_state_dict(progress=False, check_hash=True)
            network.load_state_dict({**state, **other_head(state, network.state_dict())})
    seen = weights.transforms()
    return Opened(network, Standardisation(tuple(seen.mean), tuple(seen.std)), head)


# --- transformers -------------------------------------------------------------------------------------------


def _transformers(wanted: Wanted) -> Opened:
    with imported(wanted):
        import transformers
    name = wanted.name
    with said(wanted, {}):
        if name in transformers.CONFIG_MAPPING:
            config = transformers.AutoConfig.for_model(name, architectures=[])
        else:
            config = transformers.AutoConfig.from_pretrained(name)
        auto = transformers.AutoModelForImageClassification
        if wanted.maps:
            auto = transformers.AutoModelForSemanticSegmentation
        head = config.num_labels
        config.num_labels = wanted.num_classes
        _fit_config(config, wanted)
        own = IMAGENET
        if sees_its_own(wanted.options):
            own = processor(name)
        if not wanted.pretrained:
            return Opened(auto.from_config(config), own, None)
        network, loaded = auto.from_pretrained(
            name, config=config, ignore_mismatched_sizes=True, output_loading_info=True
        )
    fresh = [str(key) for key in loaded["missing_keys"]]
    return Opened(network, own, 0 if fresh else head)


def _fit_config(config: Any, wanted: Wanted) -> None:
    """Write the images' channels and side, and the rate of stochastic depth, into a configuration."""
    channels, _, side = wanted.image_shape
    config.num_channels = channels
    if hasattr(config, "image_size") and not wanted.pretrained:
        config.image_size = side
    options = wanted.options
    if options.dropout:
        raise UserError(
            f"`model.dropout` expected 0 for {options.name}, got {options.dropout:g}; set it in a folder's config.json"
        )
    if options.stochastic_depth:
        if not hasattr(config, "drop_path_rate"):
            raise UserError(f"`model.stochastic_depth` expected 0: {options.name} has none")
        config.drop_path_rate = options.stochastic_depth


def processor(name: str) -> Standardisation:
    """Return what a repository's image processor standardises pixels in [0, 1] by."""
    from transformers.utils import cached_file

    path = cached_file(name, "preprocessor_config.json")
    content = json.loads(Path(path).read_text())
    factor = 255 * content.get("rescale_factor", 1 / 255) if content.get("do_rescale", True) else 255.0
    if not content.get("do_normalize", True):
        return Standardisation((0.0,) * 3, (1 / factor,) * 3)
    if absent := [key for key in ("image_mean", "image_std") if content.get(key) is None]:
        raise UserError(
            f"`model.name` hf:{name}: expected image_mean and image_std in its preprocessor_config.json, got no "
            f"{' and no '.join(absent)}; write what its weights were trained with into a copy of its folder, and name "
            "that, hf:FOLDER"
        )
    mean, std = ([value / factor for value in content[key]] for key in ("image_mean", "image_std"))
    return Standardisation(tuple(mean), tuple(std))


# --- what they share ----------------------------------------------------------------------------------------

# The libraries' words for options of ours.
_RATES = {
    "drop_rate": "dropout",
    "dropout": "dropout",
    "drop_path_rate": "stochastic_depth",
    "stochastic_depth_prob": "stochastic_depth",
}
_LIBRARIES: dict[str, Callable[[Wanted], Opened]] = {
    "timm": _timm,
    "tv": _torchvision,
    "hf": _transformers,
}


def sees_its_own(options: ModelOptions) -> bool:
    """Whether pixels are standardised as the library's weights saw them, and not as the data are."""
    return options.weights is not None and options.pixels == "own"


def _unknown(wanted: Wanted, known: Iterable[str]) -> UserError:
    prefix = wanted.options.name.partition(":")[0]
    near = difflib.get_close_matches(wanted.name.split(".")[0], list(known), n=3, cutoff=0.5)
    listed = ", ".join(f"`{prefix}:{name}`" for name in near)
    way = f"did you mean {listed}?" if near else f"{PREFIXES[prefix]}'s list_models() has its names"
    return UserError(f"`model.name`: {PREFIXES[prefix]} has no network `{wanted.name}`; {way}")


def _regularised(options: ModelOptions, dropout: str, stochastic_depth: str) -> dict[str, float]:
    """Return the rates that are on, under the library's words."""
    rates = {dropout: options.dropout, stochastic_depth: options.stochastic_depth}
    return {word: rate for word, rate in rates.items() if rate}


@contextmanager
def said(wanted: Wanted, keywords: dict[str, Any]) -> Iterator[None]:
    """Turn what a library raises into one line."""
    name = wanted.options.name
    try:
        yield
    except TypeError as error:
        refused = next((word for word in _RATES if word in keywords and f"'{word}'" in str(error)), None)
        if refused is not None:
            raise UserError(f"`model.{_RATES[refused]}` expected 0: {name} has no option for it") from error
        raise UserError(f"`model.name` {name}: {_line(error)}") from error
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        if wanted.pretrained or isinstance(error, OSError):
            what, way = "weights", "copy their file to this machine and name it in `weights`"
            if name.startswith("hf:"):
                what, way = "such folder or cached model", "copy its folder to this machine and name that, hf:FOLDER"
            raise UserError(
                f"`model.name` {name}: {PREFIXES[name.partition(':')[0]]} finds no {what} ({_line(error)}); {way}"
            ) from error
        raise UserError(f"`model.name` {name}: {_line(error)}") from error


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def of_channels(own: Standardisation, channels: int, name: str) -> Standardisation:
    """Return what images of so many channels are standardised by: grey ones by the mean of the three."""
    if len(own.mean) == channels:
        return own
    if channels == 1:
        return Standardisation(*((sum(values) / len(values),) for values in own))
    raise UserError(
        f"`model.name` {name}: its weights expected images of {len(own.mean)} channels, got {channels}; "
        "leave `weights` out"
    )


@torch.no_grad()
def _look_once(network: PrefixedNetwork, wanted: Wanted) -> None:
    """Raise UserError unless the network can look at such an image and returns logits for the classes."""
    network.eval()
    try:
        logits = network(torch.zeros(1, *wanted.image_shape))
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        height, width = wanted.image_shape[1:]
        raise UserError(
            f"`model.name` {wanted.options.name} cannot look at images of {height}x{width} ({_line(error)}); "
            "set `data.image_size` to a side that it takes"
        ) from error
    network.train()
    if logits.shape[:2] != (1, wanted.num_classes) or logits.dim() != (4 if wanted.maps else 2):
        each = "pixel" if wanted.maps else "image"
        raise UserError(
            f"`model.name` {wanted.options.name} expected to return {wanted.num_classes} logits of each {each}, "
            f"got {tuple(logits.shape)}; choose a network that classifies {each}s"
        )
