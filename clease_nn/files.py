"""Files that appear under their name only when they are complete."""

from __future__ import annotations

import contextlib
import glob
import os
import sqlite3
import uuid
from collections.abc import Iterator
from pathlib import Path

__all__ = ["replacing"]


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary name beside ``path`` that takes its place if the block ends well.

    Raises
    ------
    OSError
        If the folder does not exist or is not writable, or the disk is full; what stood under
        ``path`` before is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except (OSError, sqlite3.Error) as error:
        raise OSError(
            getattr(error, "errno", None),
            f"cannot write {path}: {getattr(error, 'strerror', None) or error}; nothing was "
            "changed there, choose another path or free space and write again",
        ) from error
    finally:
        for left in path.parent.glob(f"{glob.escape(temporary.name)}*"):
            left.unlink(missing_ok=True)
