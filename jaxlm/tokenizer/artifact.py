"""The tokenizer on the disk, and what it promises.

`bpe.json` holds everything that makes ids: pattern, special tokens, merges (both halves of each, in hexadecimal). The manifest
adds what ids it makes of a fixed probe text, so that a change of the code is found as well as a change of the file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxlm.contract import ContractError, FileRecord, Manifest, fingerprint
from jaxlm.tokenizer.vocabulary import Vocabulary

KIND = "tokenizer"
FILE = "bpe.json"

# Scripts, marks, emoji, whitespace runs of every kind, contractions, digits, code, line ends, special text; the last line has
# letters and numbers that came with Unicode 16.0, and some that came after it.
PROBE = (
    "The quick brown fox doesn't jump, they'll, you've, I'm, 'llama; it's HE'LL we'Ve I'd 'tis y'all're\r\n\r\n"
    "  \t indented\u00a0nbsp\u3000wide\u2028line\n"
    "def f(x: int = 1_000) -> str:\n    return f'{x!r:>12}'  # ∑ α≤β → ∞\n\n\n0 12 345 6789 1234567890 ٣٤٥ ५६७ Ⅷ ½ x² 1.5e-3\n"
    "naïve café e\u0301 Ångström Straße ſ İstanbul ŉ ﬁ — “quotes” ‘single’ … !?!? --==>> <|endoftext|> <|im_start|>\n"
    "Привет, мир! Γειά σου Κόσμε שָׁלוֹם مرحبا بالعالم नमस्ते दुनिया สวัสดีชาวโลก 你好,世界。こんにちは世界 안녕하세요 "
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466\U0001f1e9\U0001f1ea\U00010348\x00"
    "\x1c\x1f\x7f\x85\ufeff\ufffd  \n \n   end   \n"
    "a\u1c89b a\U00010d4ab 1\U00010d402 a\U000105c0b a\u0558b a\u088fb a\ua7ceb a\U00010940b "
    "a\U000323b0b 1\U00011de02 1\U000125502   "
)


def serialise(*, pattern: str, vocabulary: Vocabulary) -> bytes:
    """The content of `bpe.json`: one merge a line, the same bytes for the same tokenizer.

    Format 1 where ids follow from the order of everything; else format 2, which states them: those of bytes and merges as runs
    [first, count], those of special tokens one by one.
    """
    special = vocabulary.special_ids
    head = {"format": 1, "pattern": pattern, "special_tokens": list(special)}
    if not vocabulary.is_plain:
        head = {"format": 2, "pattern": pattern, "special_tokens": special, "ids": _runs(vocabulary.ids)}
    fields = "".join(f" {json.dumps(name)}: {json.dumps(value)},\n" for name, value in head.items())
    lines = ",\n".join([f'  ["{a.hex()}", "{b.hex()}"]' for a, b in vocabulary.merges])
    return f'{{\n{fields} "merges": [\n{lines}\n ]\n}}\n'.encode()


def _runs(ids: np.ndarray) -> list[list[int]]:
    """Runs of consecutive ids, [first, count] each."""
    starts = np.flatnonzero(np.diff(ids, prepend=ids[0] - 2) != 1)
    return [[int(ids[start]), int(count)] for start, count in zip(starts, np.diff(starts, append=len(ids)), strict=True)]


def parse(raw: bytes, *, artifact: object) -> dict[str, Any]:
    """pattern, special_tokens, ids and merges from the content of `bpe.json`. Raises ContractError for anything else."""
    try:
        body = json.loads(raw)
        if body["format"] not in (1, 2):
            raise ValueError(f"format {body['format']!r}")
        merges = [(bytes.fromhex(a), bytes.fromhex(b)) for a, b in body["merges"]]
        special = body["special_tokens"]
        ids = body.get("ids")
        return {
            "pattern": body["pattern"],
            "special_tokens": special if isinstance(special, dict) else tuple(special),
            "ids": ids and [first + i for first, count in ids for i in range(count)],
            "merges": merges,
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        remedy = "Restore it from a copy, or train the tokenizer again."
        raise ContractError(KIND, artifact=artifact, expected="a tokenizer", found=repr(error), remedy=remedy) from None


def facts_of(
    *,
    pattern: str,
    pattern_text: str,
    merges: Sequence[tuple[bytes, bytes]],
    special_ids: dict[str, int],
    probe_ids: Sequence[int],
    probe_pretokens: Sequence[str],
    vocab: dict[int, bytes],
    vocab_size: int,
) -> dict[str, Any]:
    """The facts that the layers below rely on.

    The probe counts with its pre-tokens: few merges cross the boundaries between rare characters, so that with a small
    vocabulary the ids would be the same if the boundaries moved.
    """
    first = next(iter(special_ids), None)
    rule = f"bos, text, eos; bos = eos = {first}" if first is not None else "text alone"
    return {
        "vocab_size": vocab_size,
        "pattern": pattern,
        "pattern_sha256": hashlib.sha256(pattern_text.encode()).hexdigest(),
        "merges_sha256": _sha256_of_lists(f'["{a.hex()}","{b.hex()}"]' for a, b in merges),
        "special_tokens": special_ids,
        "document_rule": rule,
        "bos_id": special_ids.get(first) if first is not None else None,
        "eos_id": special_ids.get(first) if first is not None else None,
        "probe_sha256": fingerprint([list(probe_ids), list(probe_pretokens)]),
        "bytes_per_id_sha256": _sha256_of_lists(f'"{vocab[i].hex()}"' if i in vocab else "null" for i in range(vocab_size)),
    }


def _sha256_of_lists(items: Iterable[str]) -> str:
    """`fingerprint` of a list, given the canonical JSON of its items: a vocabulary has too many for a walk through each."""
    return hashlib.sha256(f"[{','.join(items)}]".encode()).hexdigest()


def manifest_of(content: bytes, facts: dict[str, Any], provenance: dict[str, Any]) -> Manifest:
    """The manifest of a tokenizer whose `bpe.json` is `content`."""
    record = FileRecord(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    return Manifest(kind=KIND, facts=facts, files={FILE: record}, provenance=provenance)
