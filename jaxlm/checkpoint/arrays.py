"""Named NumPy arrays to a directory and back, through orbax, one directory for each leaf.

Layout: `DIRECTORY/<leaf>/{.zarray,0.0}` and one `_METADATA` of orbax's. Neither OCDBT (which mixes all leaves in shared files)
nor compression is used: a damaged file then names its leaf, equal arrays give equal files, a chunk is the leaf's bytes in C
order, and random-looking floats do not compress anyway. Orbax casts dtypes and fails to notice flipped bits without a word,
so nothing here is trusted: the caller compares digests.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

LONGEST = 200  # bytes of a directory name; file systems allow 255, and orbax appends to names


def leaf_directory(name: str) -> str:
    """The directory of a leaf: its name with `.` for `/`, and everything but letters, digits, `_` and `-` as %XX.

    Two names never share one; a name too long for a file system keeps its beginning and gets a digest.
    """
    escaped = ".".join(re.sub(rb"[^A-Za-z0-9_-]", _percent, part.encode()).decode() for part in name.split("/"))
    if 0 < len(escaped) <= LONGEST:
        return escaped
    return f"{escaped[: LONGEST - 70]}~{hashlib.sha256(name.encode()).hexdigest()}"


def _percent(match: re.Match[bytes]) -> bytes:
    return b"%%%02X" % ord(match[0])


def leaves_of_files(names: Iterable[str], leaves: Iterable[str], *, below: str = "state") -> dict[str, str | None]:
    """The leaf that each file of a checkpoint belongs to, or None. names: `/`-joined paths relative to the checkpoint."""
    found = {leaf_directory(leaf): leaf for leaf in leaves}
    split = {name: name.split("/") for name in names}
    return {name: found.get(parts[1]) if len(parts) > 2 and parts[0] == below else None for name, parts in split.items()}


def write_arrays(directory: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write `arrays` below the new directory `directory`. Raises what orbax and the file system raise (disk full, ...).

    Arrays without elements have no bytes and orbax refuses them: they are left out, as their shape and dtype say it all.
    """
    os.makedirs(directory)
    write_shards(directory, arrays)
    if any(array.size for array in arrays.values()):
        complete_arrays(directory)


def write_shards(directory: str | os.PathLike[str], arrays: Mapping[str, Any]) -> None:
    """Write this process's part of `arrays` below `directory`, which is there. All processes of a cluster call it.

    Of a jax array each process writes the shards that are its own; of a NumPy array process 0 writes all. When every process
    has returned, one of them calls `complete_arrays`.
    """
    ocp, path = _orbax(directory)
    tree = {leaf_directory(name): array for name, array in arrays.items() if array.size}
    if tree:
        with contextlib.closing(_writer(ocp)) as handler:
            handler.save(path, args=ocp.args.PyTreeSave(tree))


def complete_arrays(directory: str | os.PathLike[str]) -> None:
    """What orbax does when all parts are written: it compares what the processes wrote."""
    ocp, path = _orbax(directory)
    with contextlib.closing(_writer(ocp)) as handler:
        handler.finalize(path)


def _writer(ocp: Any) -> Any:
    return ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=False, use_compression=False)


def read_arrays(directory: str | os.PathLike[str], names: Iterable[str]) -> dict[str, np.ndarray]:
    """Read the named arrays that `write_arrays` wrote; none of them may be one without elements.

    Raises what orbax raises. Shapes and dtypes are those on the disk: the caller compares them.
    """
    ocp, path = _orbax(directory)
    files = {leaf_directory(name): name for name in names}
    if not files:
        return {}
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False)
    try:
        args = ocp.args.PyTreeRestore(
            item=dict.fromkeys(files, 0),
            restore_args={file: ocp.RestoreArgs(restore_type=np.ndarray) for file in files},
            partial_restore=True,
        )
        restored = handler.restore(path, args=args)
    finally:
        handler.close()
    return {name: np.asarray(restored[file]) for file, name in files.items()}


def _orbax(directory: str | os.PathLike[str]) -> tuple[Any, Any]:
    """orbax and `directory` as its path type. Imported when first used: it takes two seconds, and `verify` needs none of it."""
    import orbax.checkpoint as ocp
    from etils import epath

    absl = logging.getLogger("absl")
    if _without_orbax_noise not in absl.filters:
        absl.addFilter(_without_orbax_noise)
    return ocp, epath.Path(Path(directory).absolute())


def _without_orbax_noise(record: logging.LogRecord) -> bool:
    """Drop orbax's warnings about normal events (`Skipping merge of OCDBT checkpoints`) and the tracebacks of errors that it
    raises as well; its other errors and everybody else's lines pass."""
    loud = record.levelno >= logging.ERROR and not record.exc_info
    return loud or f"{os.sep}orbax{os.sep}" not in record.pathname
