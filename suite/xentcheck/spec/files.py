"""What may be read as a file: a pipe, a device or a file beyond all bounds is refused before it is opened."""

from __future__ import annotations

import stat
from pathlib import Path

from xentcheck.spec.mistakes import Unexpected

MAX_TENSOR_FILE = 2**33  # bytes
MAX_HEADER = 1_000_000  # bytes; libraries read it whole


def size_of_regular(path: Path) -> int:
    """How many bytes the file has. Raises Unexpected where it is no regular file: reading a pipe or a device might never end. Raises OSError."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise Unexpected("a regular file", "a folder" if path.is_dir() else "a pipe, a socket or a device")
    return status.st_size


def check_tensor_file(path: Path) -> None:
    """Raises Unexpected where the size of the file or of its header cannot be that of a safetensors file, and OSError."""
    if not 8 <= (size := size_of_regular(path)) <= MAX_TENSOR_FILE:
        raise Unexpected(f"a safetensors file of 8 to {MAX_TENSOR_FILE:,} bytes", f"{size:,} bytes")
    with path.open("rb") as start:
        header = int.from_bytes(start.read(8), "little")
    if header > min(MAX_HEADER, size - 8):
        raise Unexpected("a safetensors file", f"{size:,} bytes that begin as none does")
