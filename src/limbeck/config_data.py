"""Which images a run sees, and how they are augmented. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from limbeck.config_augment import AugmentOptions
from limbeck.config_consistency import AugMixOptions
from limbeck.config_data_captions import CaptionOptions
from limbeck.config_data_coco import CocoOptions
from limbeck.config_data_masks import MASKED, MasksOptions, check_masked
from limbeck.config_data_scenes import ScenesOptions
from limbeck.config_data_unlabelled import UnlabelledOptions
from limbeck.config_incremental import IN_MEMORY, PhaseOptions
from limbeck.config_terms import Options, did_you_mean
from limbeck.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence


Count = Annotated[int, Field(ge=0)]
LISTED = ("imagenet_lt", "places_lt", "inaturalist18")  # images that a file lists, with their labels
STORED = (
    "imagenet",
    "image_folder",
    "captioned_shards",
    *LISTED,
)  # images that stay in their files until a batch needs them
OWN_TEST = ("cifar10", "cifar100", *STORED, *MASKED)  # data sets that come with test images
DEFAULT_TEST = 0.3
STORED_SIZE = 224


class ShiftedTests(Options):
    """Folders of test images of ImageNet's classes from elsewhere; paths start at the data folder."""

    imagenet_v2: str | None = Field(None, description="Folder of ImageNet-V2: a folder of each class, named 0 to 999.")
    imagenet_sketch: str | None = Field(None, description="Folder of ImageNet-Sketch: a folder of each class.")
    imagenet_r: str | None = Field(
        None, description="Folder of ImageNet-R: folders of 200 classes; the logits of the others are left out."
    )

    @property
    def folders(self) -> dict[str, str]:
        """Name -> folder of those that are named."""
        return {name: folder for name, folder in self.model_dump().items() if folder is not None}


def read_shifted(words: Sequence[str]) -> ShiftedTests | None:
    """Return the folders that words `NAME=FOLDER` name, from the working directory; None where there are none.

    Raises:
        UserError: A word names no such test images, or no folder.
    """
    folders = dict(word.partition("=")[::2] for word in words)
    for name, folder in folders.items():
        if name not in ShiftedTests.model_fields:
            hint = did_you_mean(name, ShiftedTests.model_fields)
            raise UserError(f"--shifted expected NAME=FOLDER, got no test images of the name `{name}`; {hint}")
        if not folder:
            raise UserError(f"--shifted expected NAME=FOLDER, got no folder of `{name}`")
    if not folders:
        return None
    # A recipe's folders start at the data folder, a user's in the terminal where the user is.
    placed = {name: str(Path(folder).expanduser().absolute()) for name, folder in folders.items()}
    return ShiftedTests.model_validate(placed)


class DataOptions(Options):
    """Which images, and how they are split. Nothing here is drawn from the run's seed: see `split_seed`."""

    name: Literal[
        "digits",
        "mnist5k",
        "cifar10",
        "cifar100",
        "imagenet",
        "image_folder",
        "imagenet_lt",
        "places_lt",
        "inaturalist18",
        "emoji",
        "captioned_shards",
        "scene_boxes",
        "scenes",
        "ade20k",
        "voc2012",
        "coco",
        "custom",
    ] = Field(
        "digits",
        description="Data set; digits, mnist5k, emoji, scene_boxes need no download, custom is `limbeck.fit`'s own.",
    )
    folder: str | None = Field(
        None, description="Where archives, folders of images or lists of them lie; null is $LIMBECK_DATA, or ./data."
    )
    train_list: str | None = Field(
        None, description="Lines `path label` of imagenet_lt, places_lt or inaturalist18; null is its published name."
    )
    test_list: str | None = Field(None, description="As `train_list`, of the test images.")
    shards: str | None = Field(
        None,
        description="imagenet, image_folder and captioned_shards: tar files of training images as WebDataset writes "
        "them, such as train-{0000..0146}.tar, in place of the folder train.",
    )
    samples: Annotated[int, Field(ge=1)] | None = Field(None, description="Images of an epoch of `shards`.")
    image_size: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Side in pixels of what the network sees: images in files are cropped to it, null is 224; those in "
        "memory are enlarged to it after all augmentation, null leaves them as they are.",
    )
    test_resize: Annotated[int, Field(ge=1)] = Field(
        256, description="Images in files: the shorter side that a test image is resized to before its middle is taken."
    )
    workers: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="Images in files: processes that decode; 0 decodes in the training process, null takes the CPU "
        "cores that each rank has, at most 16.",
    )
    repeats: Annotated[int, Field(ge=1)] = Field(
        1, description="Views that a batch has of each of its images; it holds so many times fewer images."
    )
    shifted_tests: ShiftedTests = ShiftedTests()
    captions: CaptionOptions = CaptionOptions()
    imbalance: Annotated[float, Field(ge=1)] = Field(
        1.0,
        description="Images of the largest class over those of the smallest, training split only; 1 is balanced.",
    )
    labels_per_class: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Keep so many training images of the largest class; null keeps all."
    )
    groups: tuple[Count, Count] | None = Field(
        None,
        description="Accuracy by groups of classes: more training images than the first number are many, fewer than "
        "the second few, the others medium; ImageNet-LT has [100, 20]. null has no groups.",
    )
    validation: Annotated[float, Field(ge=0, lt=0.9)] = Field(
        0.2, description="Fraction held out of the training part."
    )
    test: Annotated[float, Field(gt=0, lt=0.9)] | None = Field(
        None, description="Fraction kept for testing where the data set has no test images of its own; null is 0.3."
    )
    split_seed: Annotated[int, Field(ge=0)] = Field(
        0, description="Seed of the split, the same for all runs of a comparison."
    )
    class_order: Literal["drawn"] | tuple[Count, ...] | None = Field(
        None,
        description="Number the classes anew: these come first to last; drawn orders them by `split_seed`, null leaves "
        "them as they are.",
    )
    phase: PhaseOptions | None = Field(None, description="The part of a phase of `incremental`; null is all of them.")
    scenes: ScenesOptions = ScenesOptions()
    coco: CocoOptions = CocoOptions()
    augmix: AugMixOptions | None = Field(None, description="Task consistency: views of each image; null has none.")
    corrupted_tests: str | None = Field(
        None,
        description="Also measured: `generated` corrupts the test images in 12 ways and 5 strengths; else a folder of "
        "arrays such as CIFAR-10-C, from the data folder; null has none.",
    )
    masks: MasksOptions = MasksOptions()
    augment: AugmentOptions = AugmentOptions()
    second_view: AugmentOptions | None = Field(
        None, description="Task adversarial: each batch has a second view of its images, augmented so; null has none."
    )
    standardise: bool = Field(
        True,
        description="Subtract each channel's mean and divide by its deviation; off leaves pixels in [0, 1], as attacks "
        "expect them.",
    )
    unlabelled: UnlabelledOptions | None = Field(
        None,
        description="Task semi_supervised: the training images that `labels_per_class` leaves without a label; null "
        "leaves them out.",
    )
    generated: str | None = Field(
        None, description="File .npz of generated images, `image` (N, H, W, C) uint8 and `label` (N,); null has none."
    )
    generated_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.7, description="Share of generated images in each batch, where there are some."
    )

    @property
    def test_share(self) -> float:
        """The fraction of the images that is kept for testing; 0 where the test images are others."""
        return 0.0 if self.name in OWN_TEST else DEFAULT_TEST if self.test is None else self.test

    @property
    def stored(self) -> bool:
        """Whether the images stay in their files."""
        return self.name in STORED

    @property
    def masked(self) -> bool:
        """Whether each image has a mask of its pixels' classes."""
        return self.name in MASKED

    @property
    def stored_size(self) -> int:
        """Side in pixels of images in files as the network sees them."""
        return self.image_size or STORED_SIZE

    @property
    def full_batches(self) -> bool:
        """Whether all batches of an epoch are full, whatever `train.drop_last` says."""
        drawn = self.unlabelled is not None or self.generated is not None or self.shards is not None
        return drawn or self.repeats > 1

    @model_validator(mode="after")
    def _stored_images(self) -> DataOptions:
        if (self.train_list and self.name not in (*LISTED, "voc2012")) or (self.test_list and self.name not in LISTED):
            raise ValueError(f"`train_list` and `test_list` belong to {', '.join(LISTED)}, got `{self.name}`")
        if self.stored and self.stored_size > self.test_resize:
            raise ValueError(
                f"`test_resize` expected at least `image_size`, {self.stored_size}, got {self.test_resize}"
            )
        if (self.class_order or self.phase) and self.name not in IN_MEMORY:
            raise ValueError(f"`class_order` and `phase` expected one of {', '.join(IN_MEMORY)}, got `{self.name}`")
        if (self.augmix or self.corrupted_tests) and self.name not in IN_MEMORY:
            raise ValueError(
                f"`augmix` and `corrupted_tests` expected one of {', '.join(IN_MEMORY)}, got `{self.name}`"
            )
        if self.augmix and (self.generated or self.unlabelled or self.augment.cutout or self.repeats > 1):
            raise ValueError("`augmix` expected no `generated`, no `unlabelled`, and neither `cutout` nor `repeats`")
        if self.shifted_tests.folders and not self.stored:
            raise ValueError(f"`shifted_tests` belong to images in files, got `{self.name}`")
        if self.generated is not None and (self.stored or self.repeats > 1):
            what = f"the images of `{self.name}` are in files" if self.stored else "`repeats` is above 1"
            raise ValueError(f"`generated` expected null where {what}")
        return self

    @model_validator(mode="after")
    def _masked(self) -> DataOptions:
        if self.masked:
            check_masked(self)
        return self

    @model_validator(mode="after")
    def _shards(self) -> DataOptions:
        if (self.shards is None) != (self.samples is None):
            raise ValueError("`shards` and `samples` expected each other, got one of them")
        if self.shards is None:
            if self.name == "captioned_shards":
                raise ValueError("`captioned_shards` expected tar files in `shards`, and `samples`, got none")
            return self
        if self.name not in ("imagenet", "image_folder", "captioned_shards"):
            raise ValueError(f"`shards` belong to imagenet, image_folder and captioned_shards, got `{self.name}`")
        asked = {
            "imbalance": self.imbalance > 1,
            "labels_per_class": self.labels_per_class is not None,
            "repeats": self.repeats > 1,
            "groups": self.groups is not None,
        }
        if known := [name for name, given in asked.items() if given]:
            raise ValueError(f"`{known[0]}` needs to know each image before it is read, so `shards` expected null")
        return self

    @model_validator(mode="after")
    def _own_test_images(self) -> DataOptions:
        if self.test is not None and self.name in OWN_TEST:
            raise ValueError(f"`{self.name}` has test images of its own; `test` expected null, got {self.test}")
        return self

    @model_validator(mode="after")
    def _many_above_few(self) -> DataOptions:
        if self.groups and self.groups[0] < self.groups[1]:
            raise ValueError(f"`groups` expected numbers that do not rise, as [100, 20], got {list(self.groups)}")
        return self

    @model_validator(mode="after")
    def _images_alone(self) -> DataOptions:
        views = [self.augment, *([self.second_view] if self.second_view else [])]
        if (self.second_view or self.generated) and any(view.mixup or view.cutmix for view in views):
            raise ValueError("`mixup` and `cutmix` expected 0 beside `second_view` and `generated`")
        return self

    @model_validator(mode="after")
    def _few_labels(self) -> DataOptions:
        if self.unlabelled is None:
            return self
        if self.labels_per_class is None:
            raise ValueError("`unlabelled` expected a number of `labels_per_class`, got null: every image has a label")
        others = {"generated": self.generated, "second_view": self.second_view, "shards": self.shards}
        asked = [name for name, value in others.items() if value is not None]
        asked += ["repeats"] if self.repeats > 1 else []
        asked += ["augment.mixup and augment.cutmix"] if self.augment.mixup or self.augment.cutmix else []
        if asked:
            raise ValueError(f"`{asked[0]}` has no meaning beside `unlabelled`; leave out one of them")
        return self
