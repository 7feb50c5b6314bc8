"""Arrays of an .npz file, mapped from the disk: nothing is read before it is asked for, and no pickle is run.

`numpy.load` reads a member of such a file whole, however it is called. But `numpy.savez` stores members as they are, so
that an array lies in the file in one piece, and mapping it needs no more than its place.
"""

from __future__ import annotations

import math
import mmap
import shlex
import struct
import zipfile
from typing import TYPE_CHECKING, Any, NamedTuple

from limbeck.errors import UserError, reason

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np

LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature and the lengths of name and extra field: APPNOTE.TXT, 4.3.7
SIGNATURE = b"PK\x03\x04"
SHOWN = 5  # names of a file's arrays in an error


class MappedArray(NamedTuple):
    """An array in a file.

    Attributes:
        values: The array, read-only; its pages are read when they are touched.
        checksum: CRC-32 of the member, as the file states it.
    """

    values: np.ndarray[Any, np.dtype[Any]]
    checksum: int


def map_arrays(path: Path, names: Sequence[str]) -> list[MappedArray]:
    """Map arrays of an .npz file that was written by `numpy.savez`. The file must not change while they are in use.

    Args:
        path: The file.
        names: Names of the arrays.

    Raises:
        UserError: The file is missing, truncated or no .npz; or an array is missing, compressed, in Fortran's order or
            made of Python objects.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            members = {member.filename: member for member in archive.infolist()}
            return [_map(path, content, members, name) for name in names]
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: expected an .npz file; {reason(error)}") from error
    except Exception as error:  # damaged directories and headers raise whatever the wrong bytes lead to
        raise UserError(f"{path}: expected an .npz file, got a truncated, damaged or foreign one") from error


def _map(path: Path, content: mmap.mmap, members: dict[str, zipfile.ZipInfo], name: str) -> MappedArray:
    import numpy as np

    member = members.get(f"{name}.npy")
    if member is None:
        found = ", ".join(map(repr, list(members)[:SHOWN])) + (", ..." if len(members) > SHOWN else "")
        raise UserError(f"{path}: expected an array `{name}`, got {found or 'none'}")
    if member.compress_type != zipfile.ZIP_STORED:
        raise UserError(
            f"{path}: expected `{name}` without compression, so that a part of it can be read; write it by "
            f"numpy.savez, or in a shell: unzip {shlex.quote(str(path))} && zip -0 stored.npz *.npy"
        )
    end = _seek(content, member)
    shape, fortran_order, dtype = _read_header(content)
    if dtype.hasobject:
        raise UserError(f"{path}: expected `{name}` to be numbers, got Python objects, which are never read")
    if fortran_order and len(shape) > 1:
        raise UserError(f"{path}: expected `{name}` in C's order, got Fortran's; save numpy.ascontiguousarray({name})")
    start = content.tell()
    if start + math.prod(shape) * dtype.itemsize != end:
        raise ValueError("the array does not fill its place")
    return MappedArray(np.ndarray(shape, dtype, content, start), member.CRC)  # TypeError if it ends behind the file


def _seek(content: mmap.mmap, member: zipfile.ZipInfo) -> int:
    """Go to where a stored member begins, after the header before it, and return where it ends."""
    header = content[member.header_offset : member.header_offset + LOCAL_HEADER.size]
    signature, name_length, extra_length = LOCAL_HEADER.unpack(header)  # struct.error if it is cut
    if signature != SIGNATURE:
        raise ValueError("no header where the directory says")
    start = member.header_offset + LOCAL_HEADER.size + name_length + extra_length
    content.seek(start)  # ValueError behind the end
    end: int = start + member.file_size
    return end


def _read_header(content: mmap.mmap) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, whether the order is Fortran's, and dtype of the array that begins here, and go to its first byte.

    Version 3 differs from 2 in field names beyond Latin 1, which no array of numbers has.
    """
    from numpy.lib import format

    version = format.read_magic(content)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version}")
    read = format.read_array_header_1_0 if version == (1, 0) else format.read_array_header_2_0
    return read(content)
