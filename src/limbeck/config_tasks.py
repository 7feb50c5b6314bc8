"""Which losses, data sets and networks a task takes. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from limbeck.network_names import DETECTOR_BACKBONES, DETECTOR_PREFIX, TASK_NETWORKS, is_prefixed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from limbeck.config_terms import TermOptions

TaskName = Literal[
    "supervised", "distill", "adversarial", "semi_supervised", "consistency", "segment", "detect", "image_text"
]
TAUGHT = ("distill", "segment", "detect", "image_text")  # tasks with `teachers`
CLASSIFIED = ("supervised", "distill", "adversarial", "semi_supervised", "consistency")  # one class of each image

# The losses of each task; those that classify images with or without a teacher take all that TASK_ONLY does not name.
TASK_TERMS: dict[str, tuple[str, ...]] = {
    "semi_supervised": (
        "cross_entropy",
        "pseudo_label",
        "probability_mse",
        "kl",
        "reverse_kl",
        "js",
        "dkl",
        "ikl",
        "gkl",
        "logit_mse",
    ),
    "consistency": (
        *("cross_entropy", "multi_js", "kl", "reverse_kl", "js", "dkl", "ikl", "gkl", "logit_mse", "probability_mse"),
    ),
    "segment": ("cross_entropy", "kl", "js", "ikl", "gkl", "cwd", "apd"),
    "detect": (
        *("detection", "kl", "js", "dkd", "ikl", "gkl", "wkd_logit"),
        *("wkd_feature", "fitnet", "review_kd", "fgfi", "box_regression"),
    ),
    "image_text": ("cross_entropy", "kl", "js", "gkl"),
}
# Losses that belong to some tasks only.
TASK_ONLY: dict[str, tuple[str, ...]] = {
    "multi_js": ("consistency",),
    "cwd": ("segment",),
    "apd": ("segment",),
    "detection": ("detect",),
    "fgfi": ("detect",),
    "box_regression": ("detect",),
}
TOWERS = ("hf", "open_clip")  # libraries with networks of two towers
# Data sets that are not of images with one class each.
TASK_DATA: dict[str, tuple[str, ...]] = {
    "emoji": ("image_text",),
    "captioned_shards": ("image_text",),
    "scene_boxes": ("detect",),
    **dict.fromkeys(("scenes", "ade20k", "voc2012"), ("segment",)),
    "coco": ("detect",),
}


def check_task(task: str, terms: Iterable[TermOptions], data_name: str, networks: Iterable[str]) -> None:
    """Raise ValueError for losses, data or networks that are another task's."""
    for term in terms:
        known = TASK_TERMS.get(task)
        if known is not None and term.name not in known:
            raise ValueError(f"task `{task}` expected losses among {', '.join(known)}, got `{term.name}`")
        if task not in TASK_ONLY.get(term.name, (task,)):
            raise ValueError(f"the loss `{term.name}` belongs to task `{TASK_ONLY[term.name][0]}`, got task `{task}`")
    needed = TASK_DATA.get(data_name)
    if needed is not None and task not in needed:
        raise ValueError(f"the data `{data_name}` belong to task `{needed[0]}`, got task `{task}`")
    if needed is None and task not in CLASSIFIED:
        own = [name for name, tasks in TASK_DATA.items() if task in tasks]
        raise ValueError(f"task `{task}` expected data among {', '.join(own)}, got `{data_name}`")
    for name in networks:
        if is_prefixed(name):
            _check_library(task, name)
        if name == "custom" or is_prefixed(name):
            continue
        own_networks = TASK_NETWORKS.get(task)
        if own_networks is not None and name not in own_networks:
            raise ValueError(f"task `{task}` expected a network among {', '.join(own_networks)}, got `{name}`")
        owner = next((other for other, names in TASK_NETWORKS.items() if name in names), task)
        if owner != task:
            raise ValueError(f"the network `{name}` belongs to task `{owner}`, got task `{task}`")


def _check_library(task: str, name: str) -> None:
    """Raise ValueError for a library that has no networks of the task."""
    prefix = name.partition(":")[0]
    if task == "image_text" and prefix not in TOWERS:
        raise ValueError(f"task `image_text` expected a network hf:NAME or open_clip:NAME, got `{name}`")
    if task != "image_text" and prefix == "open_clip":
        raise ValueError(f"the network `{name}` belongs to task `image_text`, got task `{task}`")
    if task == "detect" and name.removeprefix(DETECTOR_PREFIX).removesuffix("_fpn") not in DETECTOR_BACKBONES:
        raise ValueError(
            f"task `detect` expected a network {DETECTOR_PREFIX}BACKBONE, BACKBONE among "
            f"{', '.join(DETECTOR_BACKBONES)}, got `{name}`"
        )
    if task != "detect" and name.startswith(DETECTOR_PREFIX):
        raise ValueError(f"the network `{name}` belongs to task `detect`, got task `{task}`")
