"""Training or validation: by the hash of the text, so that it depends on neither seed, order nor batch size.

Equal documents fall on the same side; a document keeps its side when others come or go.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from jaxlm.config.schema import DataConfig
from jaxlm.data.documents import Counts, read_documents

SPLITS = ("train", "val")
RULE = "val where the first 8 bytes of sha256(UTF-8 text), big-endian, are below val_fraction * 2**64; else train"


def split_of(text: str, val_fraction: float) -> str:
    """ "val" for a share `val_fraction` of all texts, "train" for the others."""
    head = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return "val" if head < val_fraction * 2**64 else "train"


def training_texts(cfg: DataConfig, counts: Counts | None = None) -> Iterator[str]:
    """Texts of the training split, in order: what a tokenizer may be trained on. counts: see `read_documents`."""
    return (document.text for document in read_documents(cfg, counts) if split_of(document.text, cfg.val_fraction) == "train")
