"""Files written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from catalogs.errors import InputError

MAX_DIGITS = 300  # of a whole number in JSON; a float holds up to 308


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its name when the block ends well, and is removed when it does not.

    Raises:
        InputError: the folder does not exist or cannot be written.
    """
    target = Path(path)
    if target.is_dir():
        raise InputError("is a folder, a file name is needed", where=str(target))
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name[:80]}.", suffix=".tmp", dir=target.parent)
    except OSError as error:
        raise InputError(
            f"cannot write there: {error.strerror}",
            where=str(target),
            remedy=f"make the folder first: mkdir -p {target.parent}" if not target.parent.exists() else "",
        ) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask()
        temporary.chmod(mode)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` (UTF-8) whole or not at all.

    Raises:
        InputError: the folder does not exist or cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def parse_json(text: str | bytes) -> Any:
    """``json.loads``, where what the interpreter cannot bear is a ``json.JSONDecodeError`` as any other fault.

    That is nesting too deep for it, and whole numbers that no float holds.
    """
    try:
        return json.loads(text, parse_int=_whole_number)
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", "", 0) from None


def _whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise json.JSONDecodeError(f"a number of {len(digits)} digits", "", 0)
    return int(digits)


def gunzipped(raw: bytes, most: int) -> bytes:
    """The content of a gzip file in memory.

    Raises:
        ValueError: not gzip, cut off, or of more than ``most`` bytes: a few kilobytes may claim gigabytes.
    """
    unpack = zlib.decompressobj(wbits=31)
    try:
        content = unpack.decompress(raw, most)
    except zlib.error as error:
        raise ValueError(f"is not a whole gzip file: {error}") from error
    if not unpack.eof:
        raise ValueError("unpacks to more than can be read" if unpack.unconsumed_tail else "is cut off")
    return content


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def read_text(path: Path | str, what: str) -> str:
    """A text file's content.

    Args:
        path: the file.
        what: what it should be, for the error: ``"a profile"``.

    Raises:
        InputError: no such file, a folder, unreadable, or not UTF-8.
    """
    source = Path(path)
    try:
        return source.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"no such file; {what} is needed", where=str(source)) from error
    except IsADirectoryError as error:
        raise InputError(f"is a folder; {what} is needed", where=str(source)) from error
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8 text; {what} is needed", where=str(source)) from error
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {getattr(error, 'strerror', error)}", where=str(source)) from error
