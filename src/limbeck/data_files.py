"""Where data sets come from and how their files are named: what reading, fetching and listing share. No torch."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import NamedTuple

AUTHORS_PAGE = "https://www.cs.toronto.edu/~kriz/"
VARIABLE = "LIMBECK_DATA"
DEFAULT_FOLDER = "data"
CACHE_VARIABLE = "LIMBECK_CACHE"
PART = ".part"  # ends the name of a download that is not finished


class Layout(NamedTuple):
    """One of the forms in which a data set is published.

    Attributes:
        folder: The folder inside the archive, which stays when it is extracted.
        archive: Name of the archive.
        train: Files of the training images, in order.
        test: Files of the test images.
    """

    folder: str
    archive: str
    train: tuple[str, ...]
    test: tuple[str, ...]


class Published(NamedTuple):
    """A data set that is downloaded on request.

    Attributes:
        title: Its name in print.
        python: What the authors pickled; this version is downloaded.
        binary: The authors' binary version, which is read as well.
        size: Bytes of the python version's archive.
        checksums: Of that archive, in hexadecimal. The authors publish the MD5; Keras and others pin the SHA-256.
    """

    title: str
    python: Layout
    binary: Layout
    size: int
    checksums: dict[str, str]

    @property
    def url(self) -> str:
        """Where the authors offer the archive."""
        return AUTHORS_PAGE + self.python.archive


PUBLISHED: dict[str, Published] = {
    "cifar10": Published(
        "CIFAR-10",
        Layout(
            "cifar-10-batches-py",
            "cifar-10-python.tar.gz",
            train=("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"),
            test=("test_batch",),
        ),
        Layout(
            "cifar-10-batches-bin",
            "cifar-10-binary.tar.gz",
            train=("data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"),
            test=("test_batch.bin",),
        ),
        size=170_498_071,
        checksums={
            "md5": "c58f30108f718f92721af3b95e74349a",
            "sha256": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        },
    ),
    "cifar100": Published(
        "CIFAR-100",
        Layout("cifar-100-python", "cifar-100-python.tar.gz", train=("train",), test=("test",)),
        Layout("cifar-100-binary", "cifar-100-binary.tar.gz", train=("train.bin",), test=("test.bin",)),
        size=169_001_437,
        checksums={
            "md5": "eb9058c3a382ffc7106e4002c42a8d85",
            "sha256": "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        },
    ),
}


class ByHand(NamedTuple):
    """A data set that everyone gets for themselves.

    Attributes:
        source: Where from.
        files: What the data folder then has: folders of training and test images, or the lists of both.
    """

    source: str
    files: tuple[str, str]


BY_HAND: dict[str, ByHand] = {
    "imagenet": ByHand("image-net.org, on request", ("train", "val")),
    "image_folder": ByHand("your own", ("train", "val")),
    "captioned_shards": ByHand("such as DataComp, by img2dataset; and ImageNet for its test", ("val", "val")),
    "ade20k": ByHand(
        "data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
        ("ADEChallengeData2016/images/training", "ADEChallengeData2016/images/validation"),
    ),
    "voc2012": ByHand(
        "host.robots.ox.ac.uk/pascal/VOC/voc2012",
        ("VOCdevkit/VOC2012/JPEGImages", "VOCdevkit/VOC2012/SegmentationClass"),
    ),
    "coco": ByHand("cocodataset.org", ("coco/train2017", "coco/val2017")),
    "imagenet_lt": ByHand(
        "ImageNet, and lists of liuziwei7.github.io/projects/LongTail",
        ("ImageNet_LT_train.txt", "ImageNet_LT_test.txt"),
    ),
    "places_lt": ByHand(
        "places2.csail.mit.edu, and lists of the same page", ("Places_LT_train.txt", "Places_LT_test.txt")
    ),
    "inaturalist18": ByHand(
        "github.com/visipedia/inat_comp, and lists", ("iNaturalist18_train.txt", "iNaturalist18_val.txt")
    ),
}


class Found(NamedTuple):
    """Files of a data set.

    Attributes:
        layout: Which form they have.
        path: An archive, or the folder that was in it.
    """

    layout: Layout
    path: Path


def data_folder(option: str | Path | None) -> Path:
    """Return the folder where archives lie: the option, else $LIMBECK_DATA, else `data` in the current folder.

    >>> data_folder("archives").name
    'archives'
    """
    return Path(option or os.environ.get(VARIABLE) or DEFAULT_FOLDER).expanduser()


def cache_folder() -> Path:
    """Return where what can be made again is kept: $LIMBECK_CACHE, else `limbeck` in the user's cache folder."""
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "limbeck"


def find(name: str, folder: Path) -> Found | None:
    """Return the files of a data set in a data folder, the version that is downloaded first; None if there are none.

    An extracted archive goes before the archive, because it is read faster. `folder` may also be the extracted archive
    itself.
    """
    published = PUBLISHED[name]
    for layout in (published.python, published.binary):
        if (folder / layout.folder).is_dir():
            return Found(layout, folder / layout.folder)
        if folder.is_dir() and folder.name == layout.folder:
            return Found(layout, folder)
        if all((folder / file).is_file() for file in layout.train + layout.test):
            return Found(layout, folder)
        if (folder / layout.archive).is_file():
            return Found(layout, folder / layout.archive)
    return None


def fetch_command(name: str, folder: Path) -> str:
    """Return the command that downloads a data set into a folder.

    >>> fetch_command("cifar100", Path("my data"))
    "limbeck data fetch cifar100 --folder 'my data'"
    """
    return f"limbeck data fetch {name} --folder {shlex.quote(str(folder))}"


def megabytes(size: int) -> str:
    """Return a number of bytes in words.

    >>> megabytes(169_001_437), megabytes(1234)
    ('169.0 MB', '0.0 MB')
    """
    return f"{size / 1e6:.1f} MB"
