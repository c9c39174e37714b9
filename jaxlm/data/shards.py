"""Token shards: flat arrays of ids on the disk, memory-mapped, with an index of where documents begin.

`train-00000.bin` holds ids as little-endian uint16 or uint32, document after document, each BOS + text + EOS; a document never
crosses into another shard. `train.index.bin` holds the first token of each document, and the end, as little-endian int64.
Everything is verified at open: what is read later is what was written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.config.schema import DataConfig
from jaxlm.contract import MANIFEST, ContractError, FileRecord, InputError, Manifest, naming, new_artifact
from jaxlm.data.documents import Counts, read_documents
from jaxlm.data.overlap import overlap, window_of
from jaxlm.data.roundtrip import require_document
from jaxlm.data.sources import Sources
from jaxlm.data.split import RULE, SPLITS, split_of
from jaxlm.data.stream import TokenStream
from jaxlm.tokenizer import Tokenizer

KIND = "data"
PACKING_RULE = (
    "row i of length T is tokens i*T .. i*T+T of the split, its labels the same shifted by one; segments and positions restart "
    "at every document and at the row's start; the last row is padded with segment 0"
)
LOSS_MASK_RULE = "a label is supervised where it belongs to the document of its input"
_REMEDY = "Restore it from a copy, or build the shards again."

Progress = Callable[[Counts], None]


@dataclass(frozen=True)
class ShardSet:
    """An opened data artifact: both splits and the manifest."""

    path: Path
    manifest: Manifest
    train: TokenStream
    val: TokenStream


class _Writer:
    """The shards of one split, while documents come in."""

    def __init__(self, directory: Path, split: str, dtype: np.dtype, shard_tokens: int):
        self.directory, self.split, self.dtype, self.limit = directory, split, dtype, shard_tokens
        self.starts, self.max_id, self.bytes = [0], -1, 0
        self.sizes: list[int] = []
        self._file: Any = None
        self._path = directory

    def add(self, ids: np.ndarray, size: int) -> None:
        if self._file is None or (self.sizes[-1] and self.sizes[-1] + len(ids) > self.limit):
            self.close()
            self._path = self.directory / f"{self.split}-{len(self.sizes):05d}.bin"
            self._file = open(self._path, "wb")
            self.sizes.append(0)
        with naming(self._path):
            self._file.write(ids.astype(self.dtype).tobytes())
        self.sizes[-1] += len(ids)
        self.starts.append(self.starts[-1] + len(ids))
        self.max_id = max(self.max_id, int(ids.max()))
        self.bytes += size

    def close(self) -> None:
        if self._file is not None:
            with naming(self._path):
                self._file.close()

    def facts(self) -> dict[str, Any]:
        shards = {f"{self.split}-{i:05d}.bin": size for i, size in enumerate(self.sizes)}
        return {"tokens": self.starts[-1], "documents": len(self.starts) - 1, "bytes": self.bytes, "shards": shards}


def build_shards(
    cfg: DataConfig, tokenizer: Tokenizer, directory: str | os.PathLike[str], *, on_progress: Progress | None = None
) -> ShardSet:
    """Read the sources, split and encode every document, write the artifact, and open it.

    on_progress: called after every document. Raises InputError for bad sources, or where a split would be empty, ContractError
    naming a document whose ids do not stand for its text, or whose text is not that of its source; then nothing is written.
    """
    counts = Counts()
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    with new_artifact(directory) as temporary:
        writers = {split: _Writer(temporary, split, dtype, cfg.shard_tokens) for split in SPLITS}
        try:
            sources = Sources(cfg)
            for document in read_documents(cfg, counts):
                sources.require(document)
                ids, text = tokenizer.encode_document(document.text), document.text.encode()
                require_document(tokenizer, ids, text, origin=document.origin)
                writers[split_of(document.text, cfg.val_fraction)].add(ids, len(text))
                if on_progress is not None:
                    on_progress(counts)
        finally:
            for writer in writers.values():
                writer.close()
        for split, writer in writers.items():
            if len(writer.starts) == 1:
                raise InputError(
                    f"--data.val-fraction: expected documents for training and for validation, found {counts.documents} in all "
                    f"and none for {split} at a share of {cfg.val_fraction}. A text file is one document, unless "
                    r"--data.separator (<|endoftext|>, or \n\n for paragraphs) cuts it; or give more, or another share"
                )
            with naming(temporary / f"{split}.index.bin") as index:
                index.write_bytes(np.asarray(writer.starts, "<i8").tobytes())
        read, splits = counts.facts(), {split: writer.facts() for split, writer in writers.items()}
        _require_all(read, splits, artifact=directory)
        window = window_of(splits["train"]["tokens"], splits["train"]["bytes"])
        train, val = (_stream(temporary, split, splits[split], dtype) for split in SPLITS)
        facts = {
            "vocab_size": tokenizer.vocab_size,
            "tokenizer_probe_sha256": tokenizer.manifest.facts["probe_sha256"],
            "document_rule": tokenizer.manifest.facts["document_rule"],
            "max_id": max(writer.max_id for writer in writers.values()),
            "dtype": dtype.str,
            "splits": splits,
            "split_rule": RULE,
            "val_fraction": cfg.val_fraction,
            "order_seed": cfg.order_seed,
            "packing_rule": PACKING_RULE,
            "loss_mask_rule": LOSS_MASK_RULE,
            "curation": {name: value for name, value in read.items() if name != "by_source"},
            "decontamination": {"method": "none"},
            "overlap": {"window": window, **overlap(train, val, window)._asdict()},
        }
        files = {p.name: FileRecord.of(p) for p in sorted(temporary.iterdir())}
        # Where the text lay is no property of it: the same text read elsewhere gives the same fingerprint.
        provenance = {"sources": list(cfg.source), "by_source": read["by_source"]}
        Manifest(KIND, facts, {"tokenizer": tokenizer.fingerprint}, files, provenance).save(temporary)
    return open_shards(directory)


def open_shards(directory: str | os.PathLike[str]) -> ShardSet:
    """Open a data artifact and verify it: manifest, every file's length and sha256, the index, no file too many.

    Raises ContractError naming the file, InputError where there is no artifact.
    """
    root = Path(directory)
    manifest = Manifest.load(root, KIND)
    manifest.require_files(root)
    if extra := sorted({p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()} - {*manifest.files, MANIFEST}):
        raise ContractError(KIND, artifact=root / extra[0], expected="no such file", found="one", remedy="Remove it.")
    dtype, splits = np.dtype(manifest.facts["dtype"]), manifest.facts["splits"]
    streams = [_stream(root, split, splits[split], dtype) for split in SPLITS]
    _require_all(manifest.facts["curation"], splits, artifact=root / MANIFEST)
    return ShardSet(root, manifest, *streams)


def _require_all(read: Mapping[str, Any], splits: Mapping[str, Any], *, artifact: object) -> None:
    """Raise ContractError where the splits do not hold every document that was read, and every byte of it."""
    for name in ("documents", "bytes"):
        written = {split: splits[split][name] for split in SPLITS}
        if sum(written.values()) != read[name]:
            found = " + ".join(f"{count} for {split}" for split, count in written.items())
            expected = f"the {read[name]} {name} that were read, in one split or the other"
            raise ContractError(KIND, artifact=artifact, expected=expected, found=found, remedy=_REMEDY)


def _stream(root: Path, split: str, facts: Mapping[str, Any], dtype: np.dtype) -> TokenStream:
    shards = []
    for name, tokens in facts["shards"].items():
        shard = np.memmap(root / name, dtype, "r")
        if len(shard) != tokens:
            raise ContractError(KIND, artifact=root / name, expected=f"{tokens} tokens", found=len(shard), remedy=_REMEDY)
        shards.append(shard)
    index = root / f"{split}.index.bin"
    starts = np.fromfile(index, "<i8")
    if len(starts) != facts["documents"] + 1 or starts[0] != 0 or starts[-1] != facts["tokens"] or (np.diff(starts) <= 0).any():
        expected = f"{facts['documents']} documents of {facts['tokens']} tokens"
        raise ContractError(KIND, artifact=index, expected=expected, found="another index", remedy=_REMEDY)
    offsets = np.cumsum([0, *facts["shards"].values()])[:-1]
    return TokenStream(tuple(shards), offsets, starts)
