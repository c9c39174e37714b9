"""Ranks as tiktoken's `.tiktoken` files have them: a token in base64 and its rank in each line, nothing else.

A rank is both the id and the order of merging: two neighbours whose bytes joined are a token are merged, those of the lowest
rank first, whatever parts they are. The merges are recovered by doing so for the bytes of every token with the tokens of lower
rank; where that leaves two parts, they are its merge, and by `last_merge` the only one that can ever happen, so that both ways
of merging give the same ids for every text. Where it leaves another number of parts, the file is refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlm.contract import InputError
from jaxlm.interop.assembling import assembled, require_special
from jaxlm.interop.last_merge import Merge, parts_by_rank, without_idle
from jaxlm.interop.patterns import FANCY
from jaxlm.interop.refusing import damaged, shortened, unsupported
from jaxlm.interop.strict_json import read_bytes
from jaxlm.interop.writing import new_file
from jaxlm.tokenizer import Tokenizer

FORMAT = "tiktoken"
_LINE = re.compile(rb"([A-Za-z0-9+/]+={0,2}) (0|[1-9][0-9]{0,8})")


def read_tiktoken(
    path: str | os.PathLike[str],
    *,
    pattern: str | None,
    special_tokens: Sequence[str] | Mapping[str, int] | None,
    document_token: str | None = None,
    gaps: bool = False,
    sha256: str | None = None,
) -> Tokenizer:
    """The tokenizer of a `.tiktoken` file, with its ranks as ids.

    pattern: a name in `PATTERNS`; special_tokens: texts with their ids, or texts, which get the ids after the largest, () for
    none. Both are needed, since the file holds neither. document_token: as for `tokenizer.json`. gaps: whether numbers between
    the ranks may be without a token; by default that is taken for lost lines. sha256: of the file, if it is known; a line that
    is changed into another sound one, or is lost at the end, cannot be found otherwise.
    Raises InputError for what no tokenizer here can do or where something is missing, ContractError for a damaged file.
    """
    path = Path(path)
    if pattern is None:
        raise unsupported(path, "pattern", expected=f"one of {', '.join(FANCY)}", found="none: the file holds no pattern")
    if special_tokens is None:
        expected = "the special tokens and their ids, () for none"
        raise unsupported(path, "special_tokens", expected=expected, found="none: the file holds no special tokens")
    require_special(path, special_tokens)
    content = read_bytes(path)
    if sha256 is not None and (found := hashlib.sha256(content).hexdigest()) != sha256.lower():
        raise damaged(path, "the file", expected=f"sha256 {sha256}", found=found)
    ranks = _ranks_of(path, content)
    special_ids = _special_ids(path, ranks, special_tokens)
    used = {*ranks.values(), *special_ids.values()}
    if not gaps and (lost := next((number for number in range(max(ranks.values())) if number not in used), None)) is not None:
        raise damaged(path, f"rank {lost}", expected="a token, or a special token of this id", found="none")
    return assembled(
        path,
        ids=ranks,
        merges=_recovered(path, ranks),
        special_ids=special_ids,
        pattern=pattern,
        document_token=document_token,
        format=FORMAT,
    )


def write_tiktoken(tokenizer: Tokenizer, path: str | os.PathLike[str]) -> None:
    """Write the ranks of a tokenizer to a `.tiktoken` file; what goes with it, `tiktoken_arguments` says.

    Raises InputError where merging by ranks would give other ids, or the file is there.
    """
    ranks = mergeable_ranks(tokenizer)
    new_file(path, b"".join(b"%b %d\n" % (base64.b64encode(token), rank) for token, rank in ranks.items()))


def tiktoken_arguments(tokenizer: Tokenizer, name: str = "jaxlm") -> dict[str, Any]:
    """What `tiktoken.Encoding(**arguments)` needs for the ids of `tokenizer`: name, pat_str, mergeable_ranks, special_tokens.

    Of special tokens that begin with another one tiktoken finds now the one and now the other; here it is the longest.
    Raises InputError where merging by ranks would give other ids.
    """
    return {
        "name": name,
        "pat_str": FANCY[tokenizer.pattern][0],
        "mergeable_ranks": mergeable_ranks(tokenizer),
        "special_tokens": dict(tokenizer.special_ids),
    }


def mergeable_ranks(tokenizer: Tokenizer) -> dict[bytes, int]:
    """Token -> id, in order of ids, without special tokens. Raises InputError where merging by them would give other ids."""
    special = set(tokenizer.special_ids.values())
    ranks = {token: number for number, token in sorted(tokenizer.vocab.items()) if number not in special}
    recovered = _recovered(FORMAT, ranks)
    made = Counter(a + b for a, b in tokenizer.merges)
    merges = without_idle(tokenizer.merges, keep=lambda _, merge: made[merge[0] + merge[1]] == 1)
    for rank, (ours, theirs) in enumerate(zip(merges, recovered, strict=False)):
        if ours != theirs:
            raise unsupported(
                FORMAT,
                f"the id of {theirs[0] + theirs[1]!r}",
                expected=f"ids in the order of merges, next {ours[0]!r} and {ours[1]!r}",
                found=f"{theirs[0]!r} and {theirs[1]!r} as number {rank} by ids",
                mend="write it as tokenizer.json",
            )
    if len(merges) != len(recovered):
        expected = f"{len(recovered)} merges that can happen, one for each token"
        raise unsupported(FORMAT, "merges", expected=expected, found=str(len(merges)), mend="write it as tokenizer.json")
    return ranks


def _ranks_of(path: Path, content: bytes) -> dict[bytes, int]:
    lines = content.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    ranks: dict[bytes, int] = {}
    lines_of: dict[int, int] = {}
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        token = _decoded(match[1]) if match else None
        if match is None or token is None:
            raise damaged(path, f"line {number}", expected="a token in base64, a space, its rank", found=repr(line))
        rank = int(match[2])
        if token in ranks:
            raise damaged(
                path, f"line {number}", expected="a new token", found=f"{token!r} again, whose rank is {ranks[token]}"
            )
        if rank in lines_of:
            raise damaged(path, f"line {number}", expected="a new rank", found=f"{rank}, as in line {lines_of[rank]}")
        ranks[token], lines_of[rank] = rank, number
    if not ranks:
        raise damaged(path, "line 1", expected="a token in base64, a space, its rank", found="an empty file")
    return ranks


def _decoded(text: bytes) -> bytes | None:
    """What base64 stands for; None where it is none, or could be written otherwise."""
    try:
        token = base64.b64decode(text, validate=True)
    except binascii.Error:
        return None
    return token if base64.b64encode(token) == text else None


def _recovered(path: object, ranks: Mapping[bytes, int]) -> list[Merge]:
    """The merges of all tokens of more than one byte, in order of rank."""
    merges: list[Merge] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        if len(token) == 1:
            continue
        parts = parts_by_rank(token, ranks)
        if len(parts) != 2:
            raise unsupported(
                path,
                f"the token {token!r} of rank {ranks[token]}",
                expected="two parts, to which the tokens of lower rank merge it",
                found=f"{len(parts)}: {shortened(repr(parts))}",
            )
        merges.append((parts[0], parts[1]))
    return merges


def _special_ids(path: Path, ranks: Mapping[bytes, int], special_tokens: Sequence[str] | Mapping[str, int]) -> dict[str, int]:
    if not isinstance(special_tokens, Mapping):
        following = max(ranks.values()) + 1
        return {text: following + at for at, text in enumerate(special_tokens)}
    owners = {rank: token for token, rank in ranks.items()}
    for text, number in special_tokens.items():
        if number in owners:
            found = f"{number}, which is the rank of {owners[number]!r}"
            raise InputError(f"{path}: expected an id of its own for the special token {text!r}, found {found}")
    return dict(special_tokens)
