"""Writing a file whole or not at all, and never over another."""

from __future__ import annotations

import os
from pathlib import Path

from jaxlm.contract import InputError, make_folder, write_atomic


def new_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Write `content` to a path that is free; folders above it are made. Raises InputError where something is there."""
    path = Path(path)
    if path.exists() or path.is_symlink():
        raise InputError(f"{path}: expected the path of a new file, found one in use; choose another or remove it")
    make_folder(path.parent)
    write_atomic(path, content)
