"""Files that are read: pipes, devices and what is beyond all bounds are refused before they are opened."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xentcheck.spec.case import Case
from xentcheck.spec.mistakes import CaseFileError, Mistake, Unexpected

MAX_TENSOR_FILE = 2**33  # bytes
MAX_HEADER = 1_000_000  # bytes; libraries read it whole


def size_of_regular(path: Path) -> int:
    """How many bytes the file has. Raises OSError, and Unexpected for a pipe or a device, which might never end."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise Unexpected("a regular file", "a folder" if path.is_dir() else "a pipe, a socket or a device")
    return status.st_size


@contextmanager
def tensor_file(case: Case, key: str, file: str) -> Iterator[Path]:
    """The path of a file that a case names under a key. Raises CaseFileError where it is not one of tensors, or cannot be read."""
    path = case.folder / file
    try:
        if not 8 <= (size := size_of_regular(path)) <= MAX_TENSOR_FILE:
            raise Unexpected(f"a safetensors file of 8 to {MAX_TENSOR_FILE:,} bytes", f"{size:,}")
        with path.open("rb") as start:
            header = int.from_bytes(start.read(8), "little")
        if header > min(MAX_HEADER, size - 8):
            raise Unexpected("a safetensors file", "one that does not begin like one")
        yield path
    except (Unexpected, OSError) as error:
        text = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)
        raise CaseFileError(Mistake(f"{file}: {text}", case.path, case.line, case.id, key)) from error
