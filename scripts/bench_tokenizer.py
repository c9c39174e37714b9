#!/usr/bin/env python3
"""The tokenizer against tiktoken, tokenizers and rustbpe, in one run: tables with ratios, JSON beside them.

    scripts/bench_tokenizer.py [--data DIR] [--tokenizer PATH] [--only encode,decode,...] [--out docs/bench/tokenizer.json]

DIR holds the texts (JAXLM_TEST_DATA by default); code is that of the installed packages. PATH is a tokenizer to encode with in
any format that `jaxlm tokenizer convert` reads, GPT-2's say; by default one of 32,000 tokens is trained, on other texts than
those that are encoded. One thread where nothing else is said; rounds go through all of them in turn, and a figure is the least
of the rounds, in CPU seconds for one thread and in seconds by the clock for two.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import tiktoken  # noqa: E402
from bench_tokenizer_asked import asked, lines  # noqa: E402
from bench_tokenizer_calls import calls  # noqa: E402
from bench_tokenizer_texts import paths_of, texts_of  # noqa: E402

from jaxlm.interop.patterns import FANCY  # noqa: E402

CHILD = str(ROOT / "scripts" / "bench_tokenizer_process.py")
TRAIN_BYTES = 60_000_000
VOCAB_SIZE = 32_000
# As tiktoken has them: its own spelling of the patterns, which is its fastest.
PATTERNS = {"gpt2": FANCY["gpt2"][2], "cl100k_base": FANCY["cl100k_base"][0], "o200k": FANCY["o200k"][0]}


# ---- measuring ---------------------------------------------------------------------------------------------------


def least(
    functions: dict[str, Callable[[], Any]], rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, float]:
    """Seconds of each function, the least of `rounds` through all of them in turn."""
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(rounds):
        for name, function in functions.items():
            began = clock()
            kept = function()
            best[name] = min(best[name], clock() - began)
            del kept
    return best


def peers_of(tok: Any) -> tuple[tiktoken.Encoding, Any]:
    """tiktoken and tokenizers with the merges of `tok`."""
    import tokenizers

    from jaxlm.interop import write_tokenizer

    ordinary = {text: i for i, text in tok.vocab.items() if i not in tok.special_ids.values()}
    encoding = tiktoken.Encoding(
        "peer", pat_str=PATTERNS[tok.pattern], mergeable_ranks=ordinary, special_tokens=tok.special_ids
    )
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(tok, Path(folder) / "tokenizer.json", format="tokenizer.json")
        return encoding, tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))


def encode(tok: Any, texts: dict[str, list[str]], rounds: int) -> list[dict[str, Any]]:
    """Encoding of each kind of text as one string: MB/s and times as fast as tiktoken's encode_ordinary."""
    from jaxlm.tokenizer import Tokenizer
    from jaxlm.tokenizer.compiled.encode import Engine

    peer, library = peers_of(tok)
    rows = []
    for kind, documents in texts.items():
        text = "\n\n".join(documents)
        size = len(text.encode())
        warm = Tokenizer(tok.merges, tok.special_ids, tok.pattern, ids=tok.vocabulary.ids.tolist(), engine="compiled")
        portable = Tokenizer(tok.merges, tok.special_ids, tok.pattern, ids=tok.vocabulary.ids.tolist(), engine="portable")
        expected = peer.encode_ordinary(text)
        for other in (warm, portable):
            if other.encode_ordinary(text) != expected:
                raise AssertionError(f"{kind}: expected the ids of tiktoken, found others")

        def cold(warm: Tokenizer = warm, text: str = text) -> np.ndarray:
            return Engine(warm.vocabulary, warm.pattern).encode([text.encode()])[0]

        seconds = least(
            {
                "tiktoken encode_ordinary": lambda text=text: peer.encode_ordinary(text),
                "tiktoken encode_to_numpy": lambda text=text: peer.encode_to_numpy(text),
                "cold": cold,
                "warm": lambda warm=warm, text=text: warm.encode_to_numpy(text),
                "warm, a list": lambda warm=warm, text=text: warm.encode_ordinary(text),
                "NumPy, warm": lambda portable=portable, text=text: portable.encode_to_numpy(text),
            },
            rounds,
        )
        seconds |= least({"tokenizers encode_batch_fast": lambda documents=documents: library.encode_batch_fast(documents)}, 1)
        for name, found in seconds.items():
            rows.append(
                {"text": kind, "pattern": tok.pattern, "name": name, "bytes": size, "tokens": len(expected), "seconds": found}
            )
    return rows


def decode(tok: Any, texts: dict[str, list[str]], rounds: int) -> list[dict[str, Any]]:
    """Decoding to bytes, from lists and from arrays."""
    from jaxlm.tokenizer import Tokenizer

    peer, _ = peers_of(tok)
    fast = Tokenizer(tok.merges, tok.special_ids, tok.pattern, ids=tok.vocabulary.ids.tolist(), engine="compiled")
    rows = []
    for kind, documents in texts.items():
        text = "\n\n".join(documents)
        ids = fast.encode_to_numpy(text)
        listed = ids.tolist()
        if fast.decode_bytes(listed) != text.encode():
            raise AssertionError(f"{kind}: expected the bytes of the text, found others")
        seconds = least(
            {
                "tiktoken decode_bytes": lambda listed=listed: peer.decode_bytes(listed),
                "from a list": lambda listed=listed: fast.decode_bytes(listed),
                "from an array": lambda ids=ids: fast.decode_bytes(ids),
            },
            rounds,
        )
        rows += [{"text": kind, "name": name, "bytes": len(text.encode()), "seconds": found} for name, found in seconds.items()]
    return rows


def threads(tok: Any, texts: dict[str, list[str]], rounds: int) -> list[dict[str, Any]]:
    """One thread against two, warm, by the clock: documents as arrays, as lists; sha256 shows what the machine has to give."""
    from jaxlm.tokenizer import Tokenizer

    fast = Tokenizer(tok.merges, tok.special_ids, tok.pattern, ids=tok.vocabulary.ids.tolist(), engine="compiled")
    documents = [text for kind in texts.values() for text in kind] * 2
    size = sum(len(text.encode()) for text in documents)
    for count in (1, 2, 2):
        fast.encode_batch_to_numpy(documents, threads=count)
    busy = os.urandom(size // 16)

    def hashing(count: int) -> None:
        """So many bytes in all, hashed without the interpreter's lock: what the machine itself gives for a second thread."""
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(lambda _: [hashlib.sha256(busy) for _ in range(8 // count)], range(count)))

    seconds = least(
        {
            "sha256, 1 thread": lambda: hashing(1),
            "sha256, 2 threads": lambda: hashing(2),
            "arrays, 1 thread": lambda: fast.encode_batch_to_numpy(documents, threads=1),
            "arrays, 2 threads": lambda: fast.encode_batch_to_numpy(documents, threads=2),
            "lists, 1 thread": lambda: fast.encode_batch(documents, "all", threads=1),
            "lists, 2 threads": lambda: fast.encode_batch(documents, "all", threads=2),
        },
        rounds,
        time.perf_counter,
    )
    sizes = {name: 8 * len(busy) if name.startswith("sha256") else size for name in seconds}
    return [{"name": name, "bytes": sizes[name], "seconds": found} for name, found in seconds.items()]


def repetition(tok: Any) -> list[dict[str, Any]]:
    """Texts without an end: time at two sizes, which is linear where the ratio is near that of the sizes."""
    from jaxlm.tokenizer import Tokenizer

    fast = Tokenizer(tok.merges, tok.special_ids, tok.pattern, ids=tok.vocabulary.ids.tolist(), engine="compiled")
    peer, _ = peers_of(tok)
    rows = []
    for piece in ("a", " ", "\U0001f600"):
        short, long = (piece * (size // len(piece.encode())) for size in (1 << 20, 1 << 22))
        seconds = least(
            {"1 MB": lambda short=short: fast.encode_to_numpy(short), "4 MB": lambda long=long: fast.encode_to_numpy(long)}, 3
        )
        seconds |= least({"tiktoken 1 MB": lambda short=short: peer.encode_ordinary(short)}, 1)
        rows.append({"piece": piece, **seconds})
    return rows


def on_device(tok: Any, texts: dict[str, list[str]]) -> list[dict[str, Any]]:
    """`jaxlm.tokenizer.device.encode` on rows of bytes, beside the host's encoder on the same rows."""
    import jax

    from jaxlm.tokenizer import Tokenizer, device

    fast = Tokenizer(tok.merges, tok.special_ids, tok.pattern, ids=tok.vocabulary.ids.tolist(), engine="compiled")
    rows, width = 256, 1024
    raw = "\n\n".join(texts["mixed"]).encode()[: rows * width]
    pieces = [raw[at : at + width].decode(errors="ignore") for at in range(0, len(raw), width)]
    bytes_BN, lengths_B = np.zeros((rows, width), np.uint8), np.zeros(rows, np.int32)
    for row, piece in enumerate(pieces):
        content = np.frombuffer(piece.encode(), np.uint8)
        bytes_BN[row, : len(content)], lengths_B[row] = content, len(content)
    tables = jax.device_put(device.tables(fast))
    encode = jax.jit(device.encode)
    began = time.perf_counter()
    ids, counts = jax.block_until_ready(encode(tables, bytes_BN, lengths_B))
    compiling = time.perf_counter() - began
    for row, piece in enumerate(pieces):
        if np.asarray(ids)[row, : int(counts[row])].tolist() != fast.encode_ordinary(piece):
            raise AssertionError(f"row {row}: expected the host's ids, found others")
    seconds = least(
        {
            "device": lambda: jax.block_until_ready(encode(tables, bytes_BN, lengths_B)),
            "host": lambda: fast.encode_batch_to_numpy(pieces, threads=1),
        },
        5,
        time.perf_counter,
    )
    kind, size = jax.devices()[0].device_kind, int(lengths_B.sum())
    made = [{"name": name, "device": kind, "bytes": size, "seconds": found} for name, found in seconds.items()]
    return [*made, {"name": "device, the first time (compiles)", "device": kind, "bytes": size, "seconds": compiling}]


# ---- in processes of their own -----------------------------------------------------------------------------------


def measured(*words: str) -> dict[str, Any]:
    """What `child` prints in a process of its own; {"error": ...} where it failed."""
    done = subprocess.run([sys.executable, CHILD, *words], capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else {"error": done.stderr.strip().splitlines()[-1:]}


def training(documents: Iterator[str], folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Training to VOCAB_SIZE: CPU seconds and the peak of memory of a process of each, reading included."""
    path, size = folder / "documents.jsonl", 0
    with path.open("w", encoding="utf-8") as file:
        for text in documents:
            if size >= TRAIN_BYTES:
                break
            file.write(json.dumps(text) + "\n")
            size += len(text.encode())
    rows: dict[str, dict[str, Any]] = {}
    for _ in range(rounds):
        for name in ("jaxlm", "tokenizers", "rustbpe", "nothing"):
            found = measured(name, str(path))
            if name not in rows or found.get("cpu_seconds", 0) < rows[name].get("cpu_seconds", 0):
                rows[name] = {"name": name, "bytes": size, **found}
    return list(rows.values())


# ---- tables ------------------------------------------------------------------------------------------------------


def speeds(rows: list[dict[str, Any]], peer: str) -> list[str]:
    """Lines of a table: MB/s and times as fast as the peer on the same text."""
    lines = []
    for row in rows:
        other = next((r["seconds"] for r in rows if r["name"] == peer and r.get("text") == row.get("text")), row["seconds"])
        where = f"{row['text']:<14}" if "text" in row else ""
        lines.append(
            f"{where}{row['name']:<34}{row['bytes'] / row['seconds'] / 1e6:>9.1f} MB/s{other / row['seconds']:>8.2f} x"
        )
    return lines


def main() -> int:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("JAXLM_TEST_DATA", str(ROOT.parent / "shared" / "data")), help="texts")
    parser.add_argument("--tokenizer", help="encode with this one instead of one trained here")
    parser.add_argument("--only", default="encode,decode,calls,threads,repetition,first,train,device", help="what to measure")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", default=str(ROOT / "docs" / "bench" / "tokenizer.json"), help="where the JSON goes")
    args = parser.parse_args()
    only = args.only.split(",")
    data = Path(args.data)
    if not (data / "peps").is_dir():
        print(
            f"--data {data}: expected the texts of the benchmark (peps/, langid_sentences/, ...), found none", file=sys.stderr
        )
        return 2
    from jaxlm.interop import read_tokenizer
    from jaxlm.tokenizer import Tokenizer, train_tokenizer

    texts, rest = texts_of(paths_of(data))
    rest_texts = list(rest)
    if args.tokenizer:
        path = Path(args.tokenizer)
        tok = Tokenizer.load(path) if (path / "manifest.json").exists() else read_tokenizer(path)
    else:
        tok = train_tokenizer(rest_texts, vocab_size=VOCAB_SIZE, max_bytes=30_000_000)
    packages = ("numpy", "numba", "tiktoken", "tokenizers", "regex")
    versions = {name: importlib.metadata.version(name) for name in packages}
    source = Path(args.tokenizer).name if args.tokenizer else "trained here"
    body: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "processor": f"{platform.machine()}, {os.cpu_count()} processors",
        "versions": versions,
        "tokenizer": {
            "pattern": tok.pattern,
            "tokens": tok.vocab_size,
            "from": source,
        },
    }
    print(f"{body['date']}  Python {body['python']}  {body['processor']}  {versions}")
    print(f"tokenizer: {tok.vocab_size} tokens, pattern {tok.pattern}, {body['tokenizer']['from']}\n")

    def keep() -> None:
        Path(args.out).write_text(json.dumps(body, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if "encode" in only:
            body["encode"] = encode(tok, texts, args.rounds)
            print("encode, one thread, beside tiktoken's encode_ordinary")
            print("\n".join(speeds(body["encode"], "tiktoken encode_ordinary")), "\n")
            for pattern in ("cl100k_base", "o200k"):
                other = Tokenizer(tok.merges, tok.special_ids, pattern, ids=tok.vocabulary.ids.tolist())
                rows = [row for row in encode(other, texts, args.rounds) if "tokenizers" not in row["name"]]
                body["encode"] += rows
                print(f"the same merges with the pattern {pattern}")
                print("\n".join(speeds(rows, "tiktoken encode_ordinary")), "\n")
            keep()
        if "decode" in only:
            body["decode"] = decode(tok, texts, args.rounds)
            print("decode to bytes, one thread, beside tiktoken's decode_bytes")
            print("\n".join(speeds(body["decode"], "tiktoken decode_bytes")), "\n")
            keep()
        if "calls" in only:
            body["calls"] = calls(tok, peers_of(tok)[0], "\n\n".join(texts["english"]), args.rounds)
            print("short calls, everything met before: microseconds, and tiktoken's")
            for row in body["calls"]:
                print(f"{row['what']:<52}{row['jaxlm_us']:>9.1f}{row['tiktoken_us']:>9.1f}")
            print()
            keep()
        if "threads" in only:
            body["threads"] = threads(tok, texts, 2 * args.rounds)
            print("all texts as documents, warm, seconds by the clock, beside one thread")
            for what in ("arrays", "lists", "sha256"):
                alike = [row for row in body["threads"] if row["name"].startswith(what)]
                print("\n".join(speeds(alike, f"{what}, 1 thread")))
            print()
            keep()
        if "repetition" in only:
            body["repetition"] = repetition(tok)
            print("one piece repeated: seconds of 1 MB, of 4 MB, their ratio; tiktoken 1 MB")
            for row in body["repetition"]:
                figures = f"{row['1 MB']:8.3f}{row['4 MB']:8.3f}{row['4 MB'] / row['1 MB']:8.2f}{row['tiktoken 1 MB']:8.3f}"
                print(f"{row['piece']!r:<14}{figures}")
            print()
            keep()
        if "first" in only:
            tok.save(folder / "tok")
            (folder / "text").write_text("\n".join(texts["english"])[:300_000])
            body["first"] = [measured("first", str(folder / "tok"), str(folder / "text")) for _ in range(args.rounds)]
            print("a fresh process, machine code on the disk: seconds to import, to load the artifact, of the first call")
            print(
                "  ".join(f"{name} {min(row[name] for row in body['first']):.3f}" for name in ("import", "load", "first call")),
                "\n",
            )
            keep()
        if "train" in only:
            body["train"] = training(iter(rest_texts), folder, max(1, args.rounds - 1))
            size = body["train"][0]["bytes"] / 1e6
            print(f"train to {VOCAB_SIZE} tokens on {size:.0f} MB, one thread, each in a process of its own")
            peer = next(row for row in body["train"] if row["name"] == "tokenizers")
            for row in body["train"]:
                if "error" in row:
                    print(f"{row['name']:<14}{row['error']}")
                    continue
                ratios = f"{peer['cpu_seconds'] / row['cpu_seconds']:6.2f} x{row['peak_bytes'] / peer['peak_bytes']:10.2f} x"
                print(f"{row['name']:<14}{row['cpu_seconds']:8.1f} CPU s{row['peak_bytes'] / 1e6:8.0f} MB{ratios}")
            print()
            keep()
        if "device" in only:
            body["device"] = on_device(tok, texts)
            print(f"the tokenizer on the device, {body['device'][0]['device']}, beside the host")
            print("\n".join(speeds(body["device"], "host")), "\n")
    body["asked"] = asked(body)
    print("asked, and found on the text on which it is least")
    print("\n".join(lines(body["asked"])))
    keep()
    return 0


if __name__ == "__main__":
    sys.exit(main())
