"""From what a file states, vocabulary, merges and special tokens, to a tokenizer of the same ids; or a refusal.

A merge may join what only a later one makes: Hugging Face's conversion of Llama 3 lists, for each token, every way to split it.
Only one of them can ever happen (`last_merge`). Those that join what is made later are left out if they never happen, and
refused otherwise; the others are kept as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxlm.contract import InputError
from jaxlm.interop import byte_alphabet
from jaxlm.interop.last_merge import Merge, without_idle
from jaxlm.interop.refusing import damaged, shortened, unsupported
from jaxlm.tokenizer import Tokenizer
from jaxlm.tokenizer.pretoken import PATTERNS
from jaxlm.tokenizer.vocabulary import MAX_TOKENS, Vocabulary

DOCUMENT_TOKENS = ("<|endoftext|>", "<|begin_of_text|>", "<s>")  # of GPT-2 and most; of Llama 3; of Llama 2 and others


def assembled(
    path: object,
    *,
    ids: Mapping[bytes, int],
    merges: Sequence[Merge],
    special_ids: Mapping[str, int],
    pattern: str,
    document_token: str | None,
    format: str,
) -> Tokenizer:
    """The tokenizer of a file. ids: of every byte and everything that a merge makes, and of nothing else.

    Raises ContractError where these do not fit together, InputError for a document token that is none of the special tokens.
    """
    if pattern not in PATTERNS:
        raise unsupported(path, "pattern", expected=f"one of {', '.join(PATTERNS)}", found=repr(pattern))
    _require_apart(path, ids, special_ids, merges)
    if missing := [byte for byte in range(256) if bytes([byte]) not in ids]:
        found = f"none for {len(missing)}: {shortened(', '.join(f'{byte:#04x}' for byte in missing))}"
        raise unsupported(path, "vocabulary", expected="an entry for every byte", found=found)
    for rank, (a, b) in enumerate(merges):
        if strange := [token for token in (a, b, a + b) if token not in ids]:
            raise damaged(path, f"merge {rank}", expected="tokens of the vocabulary", found=strange[0])
    merges = _in_order(path, merges)
    made = dict.fromkeys([*(bytes([byte]) for byte in range(256)), *(a + b for a, b in merges)])
    if orphans := [token for token in ids if token not in made]:
        found = f"{len(orphans)} that none makes, as {orphans[0]!r} with id {ids[orphans[0]]}"
        mend = "if it is a special token, the file has to say so, or special_tokens" if format != "tokenizer.json" else ""
        raise unsupported(path, "vocabulary", expected="entries that are bytes or made by merges", found=found, mend=mend)
    if single := [text for text in special_ids if len(text.encode(errors="surrogatepass")) == 1]:
        raise unsupported(path, "added tokens", expected="texts that are no single byte", found=repr(single[0]))
    special = opened_by(path, special_ids, document_token)
    provenance = {"read_from": format}
    try:
        return Tokenizer(merges, special, pattern, ids=[ids[token] for token in made], provenance=provenance)
    except (ValueError, OverflowError) as error:
        raise damaged(path, "vocabulary, merges or special tokens", expected="a tokenizer", found=str(error)) from None


def _require_apart(path: object, ids: Mapping[bytes, int], special_ids: Mapping[str, int], merges: Sequence[Merge]) -> None:
    """Added tokens that are entries for text too have one id in the file, and would need two."""
    made = {token for a, b in merges for token in (a, b, a + b)}
    for text in special_ids:
        token = byte_alphabet.read(text)
        if token is not None and token not in ids and (len(token) == 1 or token in made):
            found = f"{text!r}, which is how {token!r} is written"
            raise unsupported(path, "added tokens", expected="texts that are no other entry of the vocabulary", found=found)


def _in_order(path: object, merges: Sequence[Merge]) -> list[Merge]:
    """`merges` without those that join what is made later, which must never happen."""
    seen = {bytes([byte]) for byte in range(256)}
    early: set[int] = set()
    for rank, (a, b) in enumerate(merges):
        if a not in seen or b not in seen:
            early.add(rank)
        seen.add(a + b)
    if not early:
        return list(merges)
    kept = without_idle(merges, keep=lambda rank, _: rank not in early)
    seen = {bytes([byte]) for byte in range(256)}
    for a, b in kept:
        if a not in seen or b not in seen:
            raise unsupported(
                path, f"merge {list(merges).index((a, b))}", expected="bytes or earlier merges", found=f"{a!r} and {b!r}"
            )
        seen.add(a + b)
    return kept


def require_special(path: object, special_tokens: Sequence[str] | Mapping[str, int]) -> None:
    """Raises InputError for what a caller names as special tokens, and can be none."""
    try:  # the bytes have the last numbers here, out of the way
        Vocabulary.of((), special_tokens, ids=range(MAX_TOKENS - 256, MAX_TOKENS))
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def opened_by(path: object, special_ids: Mapping[str, int], document_token: str | None) -> dict[str, int]:
    """The special tokens by id, but the one that opens and closes documents first, as `Tokenizer` takes it.

    By default that is the first of `DOCUMENT_TOKENS` that is there, else the one of the lowest id.
    """
    by_id = dict(sorted(special_ids.items(), key=lambda item: item[1]))
    if document_token is None:
        document_token = next((text for text in DOCUMENT_TOKENS if text in by_id), next(iter(by_id), None))
    if document_token is None:
        return {}
    if document_token not in by_id:
        found = shortened(", ".join(map(repr, by_id)) or "none")
        raise InputError(f"{path}: expected the special token {document_token!r} for document_token, found {found}")
    return {document_token: by_id.pop(document_token), **by_id}
