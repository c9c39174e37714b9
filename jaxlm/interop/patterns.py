"""What each dialect of regular expressions writes for the `PATTERNS`: the texts that are known, none else.

A text of one dialect can mean something else in another. In Oniguruma, which `tokenizers` uses, `{1,3}+` repeats `{1,3}`, and
`$` is the end of every line; in fancy-regex, which tiktoken uses, `{1,3}+` gives nothing back, and `$` is the end of the text.
`\\s` is White_Space in both. So a text is looked up in the table of its dialect, never translated. The first text of each
pattern is the one that is written; those after it mean the same and are published by OpenAI, Meta or Hugging Face.
"""

from __future__ import annotations

from collections.abc import Mapping

_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_GPT2_FIRST = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_O200K = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)

ONIGURUMA: dict[str, tuple[str, ...]] = {
    "gpt2": (_GPT2, _GPT2_FIRST),
    "cl100k": (_CL100K,),
    "cl100k_base": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+\z|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+",
    ),
    "o200k": (_O200K,),
}

FANCY: dict[str, tuple[str, ...]] = {
    "gpt2": (
        _GPT2,
        _GPT2_FIRST,
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    ),
    "cl100k": (_CL100K,),
    "cl100k_base": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
        r"|\s+(?!\S)|\s",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+$|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+",
    ),
    "o200k": (_O200K,),
}


def meaning(text: str, dialect: Mapping[str, tuple[str, ...]]) -> str | None:
    """The name in `PATTERNS` of what `text` means in a dialect; None for a text that is not known."""
    return next((name for name, texts in dialect.items() if text in texts), None)
