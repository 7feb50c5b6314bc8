"""A download that goes on where it stopped, and counts only when its size and checksums are right. No packages.

What came is kept in `NAME.part`, and beside it, in `NAME.part.json`, what the server said of the file. A later call
asks for the rest on the condition that the file is still the same; a server that ignores this sends all of it again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from contextlib import contextmanager, suppress
from http.client import HTTPException
from typing import TYPE_CHECKING, NamedTuple, Protocol
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from limbeck.data_files import PART, megabytes
from limbeck.errors import UserError, reason

try:
    import fcntl
except ImportError:  # Windows, where two downloads of one file are not kept apart; the checksum tells
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from http.client import HTTPResponse
    from pathlib import Path
    from typing import BinaryIO

TIMEOUT_SECONDS = 30.0  # without a byte
WAITS_SECONDS = (1.0, 2.0, 4.0)  # before the attempts that follow one that brought nothing new
CHUNK = 1 << 18
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})  # answers that may be others a moment later
RANGE_IS_OVER = 416


class Progress(Protocol):
    """Whom a download tells how far it is."""

    def at(self, done: int) -> None:
        """Tell how many bytes are on the disk; the first time, those of earlier calls."""

    def note(self, text: str) -> None:
        """Tell a sentence."""


class Wanted(NamedTuple):
    """A file to download.

    Attributes:
        url: Where it is.
        path: Where it goes.
        size: Its bytes.
        checksums: Hexadecimal, by hashlib's names.
    """

    url: str
    path: Path
    size: int
    checksums: Mapping[str, str]

    @property
    def part(self) -> Path:
        """The file that grows."""
        return self.path.with_name(self.path.name + PART)

    @property
    def origin(self) -> Path:
        """What the server said of the file that `part` is the beginning of."""
        return self.part.with_name(self.part.name + ".json")


class _Lost(Exception):
    """The connection broke, or never was; another attempt may do."""


def download(wanted: Wanted, progress: Progress) -> None:
    """Download a file, or the rest of it.

    Args:
        wanted: The file.
        progress: Is told what happens.

    Raises:
        UserError: The server cannot be reached or has another file, the disk is full, or another process downloads
            the same; what came stays for the next call, unless it is wrong.
        KeyboardInterrupt: As it came; what came stays.
    """
    if urlsplit(wanted.url).scheme not in ("http", "https"):
        raise UserError(f"--url expected http:// or https://, got {wanted.url}")
    with _disk_errors(wanted), _open_part(wanted) as file:
        if file.tell() > wanted.size:
            _start_again(file)
        _check_room(wanted, file.tell())
        progress.at(file.tell())
        _receive_all(wanted, file, progress)
        file.flush()
        os.fsync(file.fileno())
        if wrong := wrong_checksum(wanted.part, wanted.checksums):
            _forget(wanted)
            raise UserError(
                f"{wanted.path.name} from {wanted.url}: {wrong}; it is deleted: run the command again, or name another "
                f"server with --url"
            )
        wanted.part.replace(wanted.path)
        wanted.origin.unlink(missing_ok=True)


def wrong_checksum(path: Path, checksums: Mapping[str, str]) -> str | None:
    """Return in words the first checksum of a file that is not as expected; None if all are."""
    digests = {kind: hashlib.new(kind, usedforsecurity=False) for kind in checksums}
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            for digest in digests.values():
                digest.update(chunk)
    for kind, digest in digests.items():
        if digest.hexdigest() != checksums[kind]:
            return f"{kind} expected {checksums[kind]}, got {digest.hexdigest()}"
    return None


# --- the connection ---


def _receive_all(wanted: Wanted, file: BinaryIO, progress: Progress) -> None:
    """Make attempts until the file has its size, or a row of them brought nothing new."""
    waits = iter(WAITS_SECONDS)
    most = file.tell()
    while file.tell() < wanted.size:
        try:
            _receive(wanted, file, progress)
        except _Lost as error:
            if file.tell() > most:
                most, waits = file.tell(), iter(WAITS_SECONDS)
            wait = next(waits, None)
            if wait is None:
                raise UserError(_given_up(wanted, error, file.tell())) from error
            progress.note(f"{error}; trying again in {wait:g} s")
            time.sleep(wait)


def _receive(wanted: Wanted, file: BinaryIO, progress: Progress) -> None:
    """Append what one answer of the server brings.

    Raises:
        _Lost: It ended too early.
        UserError: It is another file.
    """
    done = file.tell()
    with _ask(wanted, done) as response:
        _check_size(wanted, response)
        if done and not _goes_on(wanted, response, done):
            progress.note(f"the server does not go on at {megabytes(done)}, or has another file: from the start")
            _start_again(file)
            if response.status != 200:
                return
        wanted.origin.write_text(json.dumps(_said(wanted, response)), encoding="utf-8")
        while file.tell() <= wanted.size and (chunk := _read(response)):  # no server that never ends fills the disk
            file.write(chunk)
            progress.at(file.tell())
    if file.tell() < wanted.size:
        raise _Lost(f"the connection ended at {megabytes(file.tell())} of {megabytes(wanted.size)}")
    if file.tell() > wanted.size:
        _forget(wanted)
        raise UserError(_another_file(wanted, f"more than {wanted.size:,} bytes"))


def _ask(wanted: Wanted, done: int) -> HTTPResponse:
    """Open the file at the byte `done`, or the whole file if it changed since."""
    headers = {"User-Agent": "limbeck", "Accept-Encoding": "identity"}
    if done:
        before = _origin(wanted)
        headers["Range"] = f"bytes={done}-"
        same_as = before.get("ETag") or before.get("Last-Modified")
        if same_as and not same_as.startswith("W/"):  # a weak tag is no condition, but a change of it is one
            headers["If-Range"] = same_as
    try:
        return urlopen(Request(wanted.url, headers=headers), timeout=TIMEOUT_SECONDS)  # type: ignore[no-any-return]
    except HTTPError as error:
        answer = f"{_host(wanted)} answers {error.code} {error.reason}"
        if error.code == RANGE_IS_OVER:
            raise UserError(_another_file(wanted, f"at most {done:,} bytes")) from error
        if error.code in PASSING:
            raise _Lost(answer) from error
        raise UserError(f"{answer} to {wanted.url}; {_elsewhere(wanted)}") from error
    except (OSError, HTTPException) as error:
        raise _Lost(f"{_host(wanted)} cannot be reached ({_words(error)})") from error


def _read(response: HTTPResponse) -> bytes:
    try:
        return response.read(CHUNK)
    except (OSError, HTTPException) as error:
        raise _Lost(f"the connection broke ({_words(error)})") from error


def _goes_on(wanted: Wanted, response: HTTPResponse, done: int) -> bool:
    """Tell whether an answer is the rest of the file that the part is the beginning of."""
    if response.status != 206 or not response.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
        return False
    before, now = _origin(wanted), _said(wanted, response)
    return all(before[key] == now[key] for key in before.keys() & now.keys())


def _said(wanted: Wanted, response: HTTPResponse) -> dict[str, str]:
    """Return what tells one state of a file on a server from another."""
    words = {key: response.headers.get(key, "") for key in ("ETag", "Last-Modified")}
    return {"url": wanted.url} | {key: word for key, word in words.items() if word}


def _origin(wanted: Wanted) -> dict[str, str]:
    """Return what the same server said when the part was begun; nothing of another server, whose tags are others."""
    with suppress(OSError, ValueError):
        said = json.loads(wanted.origin.read_text(encoding="utf-8"))
        if isinstance(said, dict) and said.get("url") == wanted.url:
            return said
    return {}


def _check_size(wanted: Wanted, response: HTTPResponse) -> None:
    whole = response.headers.get("Content-Range", "").rpartition("/")[2] or response.headers.get("Content-Length", "")
    if whole.isdigit() and int(whole) != wanted.size:
        raise UserError(_another_file(wanted, f"{int(whole):,} bytes"))


# --- the disk ---


@contextmanager
def _open_part(wanted: Wanted) -> Iterator[BinaryIO]:
    """Open the part at its end, for this process alone; an empty one is removed again."""
    wanted.path.parent.mkdir(parents=True, exist_ok=True)
    with wanted.part.open("ab") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another process is downloading {wanted.path}; wait for it") from None
            except OSError:  # a file system without locks, as some network ones are
                pass
        try:
            yield file
        finally:
            if wanted.part.is_file() and not file.tell():
                _forget(wanted)


def _start_again(file: BinaryIO) -> None:
    file.seek(0)
    file.truncate()


def _forget(wanted: Wanted) -> None:
    wanted.part.unlink(missing_ok=True)
    wanted.origin.unlink(missing_ok=True)


def _check_room(wanted: Wanted, done: int) -> None:
    free = shutil.disk_usage(wanted.path.parent).free
    if free < wanted.size - done:
        raise UserError(
            f"{wanted.path.parent} expected room for {megabytes(wanted.size - done)}, got {megabytes(free)}; "
            f"choose another --folder"
        )


@contextmanager
def _disk_errors(wanted: Wanted) -> Iterator[None]:
    """Turn an error of the operating system into one line."""
    try:
        yield
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{wanted.path.parent} lies in or is a file, not a folder; choose another --folder") from error
    except OSError as error:
        raise UserError(
            f"{error.filename or wanted.part} cannot be written ({reason(error)}); mend this and run the command "
            f"again, or choose another --folder"
        ) from error


# --- what is said ---


def _given_up(wanted: Wanted, error: _Lost, done: int) -> str:
    kept = f"{megabytes(done)} are kept, the same command goes on; or " if done else ""
    return f"{error}, after {len(WAITS_SECONDS) + 1} attempts; {kept}{_elsewhere(wanted)}"


def _another_file(wanted: Wanted, seen: str) -> str:
    return f"{wanted.url} expected to be the published file of {wanted.size:,} bytes, got {seen}; {_elsewhere(wanted)}"


def _elsewhere(wanted: Wanted) -> str:
    return f"name another server with --url, or put {wanted.path.name} into {wanted.path.parent} yourself"


def _host(wanted: Wanted) -> str:
    return urlsplit(wanted.url).netloc


def _words(error: Exception) -> str:
    inner = error.reason if isinstance(error, URLError) else error
    return reason(inner) if isinstance(inner, Exception) else str(inner)
