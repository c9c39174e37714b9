"""Faults between text and ids."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.faults.fault import Fault, Patch, Tampered
from jaxlm.tokenizer import Tokenizer
from jaxlm.tokenizer.counts import Counts

ENCODE = "jaxlm.tokenizer.tokenizer:Tokenizer.encode_document"


def _documents(change: Callable[[Any, str, np.ndarray], np.ndarray]) -> tuple[Patch, ...]:
    """Documents are encoded otherwise. change: takes tokenizer, text and ids."""
    return (Patch(ENCODE, lambda real: lambda self, text: change(self, text, real(self, text)).astype(np.int32)),)


def _wrong_ids(self: Any, text: str, ids: np.ndarray) -> np.ndarray:
    return np.where(ids < 500, ids + 1, ids)


def _letter_by_letter(self: Any, text: str, ids: np.ndarray) -> np.ndarray:
    """Every character by itself, as if there were no merges: the text is the same."""
    known = {letter: self.encode(letter) for letter in set(text)}
    return np.concatenate([ids[:1], *(known[letter] for letter in text), ids[-1:]])


def _specials_merged(self: Any, text: str, ids: np.ndarray) -> np.ndarray:
    """As `encode` with all special tokens allowed; the text of the small run quotes one now and then."""
    spelt = text.replace("import os\n", self.special_tokens[0])
    return np.array([self.bos_id, *self.encode(spelt, allowed_special="all"), self.eos_id])


def _lower(self: Any, text: str, ids: np.ndarray) -> np.ndarray:
    return np.array([self.bos_id, *self.encode_ordinary(unicodedata.normalize("NFKC", text).lower()), self.eos_id])


def _in_blocks(real: Callable) -> Callable:
    """Documents of some length are encoded block by block."""

    def encode_document(self: Any, text: str) -> np.ndarray:
        if len(text) < 1500:
            return real(self, text)  # type: ignore[no-any-return]
        blocks = (text[at : at + 700] for at in range(0, len(text), 700))
        return np.concatenate([[self.bos_id], *map(self.encode_ordinary, blocks), [self.eos_id]]).astype(np.int32)

    return encode_document


def _levelled(real: Callable) -> Callable:
    """Merges are learnt from counts of three at most."""

    def learn_merges(counts: Any, wanted: int, **options: Any) -> Any:
        words = counts.counter() if isinstance(counts, Counts) else counts
        return real({word: min(count, 3) for word, count in words.items()}, wanted, **options)

    return learn_merges


def _other_tokenizer(path: Path) -> None:
    """Another tokenizer of equal size: the same merges, the last two exchanged."""
    held = Tokenizer.load(path / "tokenizer")
    merges = list(held.merges)
    merges[-1], merges[-2] = merges[-2], merges[-1]
    for file in (path / "tokenizer").iterdir():
        file.unlink()
    (path / "tokenizer").rmdir()
    Tokenizer.from_merges(merges, held.special_tokens, held.pattern).save(path / "tokenizer")


def _edited_merges(path: Path) -> None:
    """One byte of the vocabulary file is another."""
    file = path / "tokenizer" / "bpe.json"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def _other_name(path: Path) -> None:
    """The manifest of the shards promises another size of vocabulary, with a fingerprint that fits."""
    file = path / "data" / "manifest.json"
    body = json.loads(file.read_text())
    body["facts"]["vocab_size"] += 4
    file.write_text(json.dumps(body))


FAULTS = (
    Fault(
        name="bos_dropped",
        layer="tokenizer",
        mechanism="Documents are encoded without the token that opens them, so the model never learns how one begins.",
        symptom="None in training. At inference the prompt begins with a token whose embedding was never an input.",
        incident="lm-evaluation-harness #1465: perplexity 5.9e9 without BOS, 3.46 with it",
        plant=_documents(lambda self, text, ids: ids[1:]),
        seen_by=("data",),
        scene="build",
    ),
    Fault(
        name="bos_doubled",
        layer="tokenizer",
        mechanism="A template and the tokenizer both add the opening token.",
        symptom="A small loss of quality; the loss even falls, since the second one is easy to predict.",
        incident="unsloth #2648, sglang #888, vLLM #27515",
        plant=_documents(lambda self, text, ids: np.concatenate([ids[:1], ids])),
        seen_by=("data",),
        scene="build",
    ),
    Fault(
        name="eos_dropped",
        layer="tokenizer",
        mechanism="Documents are encoded without the token that closes them.",
        symptom="Generation never ends by itself.",
        incident="llama3 #77, vLLM #4180 (endless output)",
        plant=_documents(lambda self, text, ids: ids[:-1]),
        seen_by=("data",),
        scene="build",
    ),
    Fault(
        name="ids_off_by_one",
        layer="tokenizer",
        mechanism="The ids of the shards are those of a vocabulary with one entry more at its beginning.",
        symptom="The loss is as good as ever: ids are names. What is generated is garbage.",
        incident="DALLE-pytorch #56",
        plant=_documents(_wrong_ids),
        seen_by=("data",),
        scene="build",
    ),
    Fault(
        name="specials_merged",
        layer="tokenizer",
        mechanism="The text of a special token within a document becomes the control token itself.",
        symptom="Documents end in the middle; text from outside can steer the model.",
        incident="tokenizers #1347, transformers #29279; tiktoken refuses such text by default",
        plant=_documents(_specials_merged),
        seen_by=("data",),
        scene="build",
    ),
    Fault(
        name="normalised_text",
        layer="tokenizer",
        mechanism="Text is normalised before it is encoded, in training only.",
        symptom="Capital letters are never seen; bits per byte are those of another text.",
        incident="transformers #11358, #9518 (two tokenizers of one model that normalise differently)",
        plant=_documents(_lower),
        seen_by=("data",),
        scene="build",
    ),
    Fault(
        name="other_tokenizer",
        layer="tokenizer",
        mechanism="The run's tokenizer is replaced by another of equal size.",
        symptom="Nothing has another shape. Text becomes the wrong ids.",
        incident="Megatron-LM #2570 (clamping proposed as the cure)",
        plant=(Tampered(_other_tokenizer),),
        seen_by=("tokenizer", "data", "run"),
        scene="resume",
    ),
    Fault(
        name="tokenizer_bit_flip",
        layer="tokenizer",
        mechanism="One bit of the file that holds the merges is another.",
        symptom="A merge makes another token; some words are split otherwise.",
        incident="silent corruption at rest; no report is cited",
        plant=(Tampered(_edited_merges),),
        seen_by=("tokenizer",),
        scene="resume",
    ),
    Fault(
        name="vocabulary_size_edited",
        layer="tokenizer",
        mechanism="The shards' manifest promises more tokens than the tokenizer has.",
        symptom="JAX clamps an id that is too large to the last row, without a word.",
        incident="vLLM #35937, DALLE-pytorch #56",
        plant=(Tampered(_other_name),),
        seen_by=("data", "manifest"),
        scene="resume",
    ),
    Fault(
        name="merges_not_applied",
        layer="tokenizer",
        mechanism="Documents are encoded without merges across characters. They decode to the same text.",
        symptom="More tokens than there should be; at inference the model sees ids that it has never seen.",
        incident="merge files that were not loaded; no report is cited",
        plant=_documents(_letter_by_letter),
        seen_by=("data",),
        scene="build",
    ),
    Fault(
        name="long_texts_in_blocks",
        layer="tokenizer",
        mechanism="A text of more than 1500 characters is encoded in blocks of 700, and words at their borders are cut in two.",
        symptom="None: the ids decode to the text. At inference the words at those places have other ids.",
        incident="blocks to save memory, cut where they are full; no report is cited",
        plant=(Patch(ENCODE, _in_blocks),),
        seen_by=("data",),
        scene="build",
    ),
    Fault(
        name="counts_levelled",
        layer="tokenizer",
        mechanism="Words are counted up to three: what is frequent weighs no more than what comes thrice.",
        symptom="None by itself: more ids for the same text than another tokenizer of that size would take.",
        incident="counts kept in a set or in too narrow a type; no report is cited",
        plant=(Patch("jaxlm.tokenizer.train:learn_merges", _levelled),),
        seen_by=("tokenizer",),
        scene="build",
        config={"tokenizer.path": ""},
    ),
)
