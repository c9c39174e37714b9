#!/usr/bin/env python3
"""One measurement of `bench_tokenizer.py` that needs a process of its own; prints one JSON object.

scripts/bench_tokenizer_process.py jaxlm|tokenizers|rustbpe|nothing DOCUMENTS.jsonl    # train; or read only
scripts/bench_tokenizer_process.py first TOKENIZER TEXT                               # the first call
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

VOCAB_SIZE = 32_000
END = "<|endoftext|>"


def documents_in(path: str) -> Iterator[str]:
    """Documents of a file of lines, each a JSON string."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def jaxlm(path: str) -> dict[str, Any]:
    """Train here."""
    from jaxlm.tokenizer import train_tokenizer

    tok = train_tokenizer(documents_in(path), vocab_size=VOCAB_SIZE, special_tokens=(END,), ties="ids", threads=1)
    return {"merges": len(tok.merges)}


def tokenizers(path: str) -> dict[str, Any]:
    """Train with Hugging Face's library."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"initial_alphabet": alphabet, "special_tokens": [END], "show_progress": False}
    library.train_from_iterator(documents_in(path), trainers.BpeTrainer(vocab_size=VOCAB_SIZE, **options))
    return {"merges": library.get_vocab_size() - 257}


def rustbpe(path: str) -> dict[str, Any]:
    """Train with rustbpe, which is no dependency."""
    import rustbpe as library

    from jaxlm.interop.patterns import FANCY

    tok = library.Tokenizer()
    tok.train_from_iterator(documents_in(path), VOCAB_SIZE - 1, pattern=FANCY["gpt2"][2])
    return {"merges": len(tok.get_mergeable_ranks()) - 256}


def nothing(path: str) -> dict[str, Any]:
    """Read the documents, which is in the figures of the others."""
    return {"documents": sum(1 for _ in documents_in(path))}


def first(directory: str, path: str) -> dict[str, Any]:
    """The first call of a tokenizer from the disk, with enough text that compiled code is used, and all that this takes."""
    began = time.perf_counter()
    from jaxlm.tokenizer import Tokenizer

    imported = time.perf_counter()
    tok = Tokenizer.load(directory)
    text = Path(path).read_text()
    loaded = time.perf_counter()
    tok.encode_to_numpy(text)
    called = time.perf_counter()
    if tok.engine != "compiled" or "numba" in sys.modules:
        raise AssertionError(f"expected code from the disk without numba, found the engine {tok.engine}")
    return {"import": imported - began, "load": loaded - imported, "first call": called - loaded}


def peak_bytes() -> int:
    """The most memory that this process has had. (getrusage also counts what the process had that started it.)"""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def main() -> None:
    """Do it, and print what it cost."""
    cpu, clock = time.process_time(), time.perf_counter()
    what = {"jaxlm": jaxlm, "tokenizers": tokenizers, "rustbpe": rustbpe, "nothing": nothing, "first": first}
    result = what[sys.argv[1]](*sys.argv[2:])
    seconds = {"cpu_seconds": time.process_time() - cpu, "seconds": time.perf_counter() - clock}
    print(json.dumps({**result, **seconds, "peak_bytes": peak_bytes()}))


if __name__ == "__main__":
    main()
