"""What `transformers` puts beside the files of a tokenizer: options, and special tokens that these may not list.

`tokenizer_config.json` and `special_tokens_map.json` name special tokens by their roles, `added_tokens.json` has texts and ids.
A token that is named there and nowhere else is one for `transformers`: whoever reads the tokenizer takes it as one too, or
refuses it by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlm.interop.added_tokens import require_plain
from jaxlm.interop.refusing import damaged, unsupported
from jaxlm.interop.strict_json import read_object, typed

CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LISTS = ("additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True)
class Beside:
    """root: the directory. config: `tokenizer_config.json`. named: where each special token is named, and its text. added:
    texts and their ids. Empty where the files are not there."""

    root: Path
    config: Mapping[str, Any]
    named: tuple[tuple[Path, str, str], ...]
    added: Mapping[str, int]

    @classmethod
    def of(cls, root: Path) -> Beside:
        """What lies in a directory. Raises ContractError for damaged files, InputError for options that no token here has."""
        config, roles, added = (read_object(root / name) if (root / name).is_file() else {} for name in (CONFIG, MAP, ADDED))
        if config.get("add_prefix_space") not in (None, False):
            raise unsupported(root / CONFIG, "add_prefix_space", expected="false", found=repr(config["add_prefix_space"]))
        numbers = {text: typed(number, int, path=root / ADDED, place=repr(text)) for text, number in added.items()}
        return cls(root, config, (*_named(root / CONFIG, config), *_named(root / MAP, roles)), numbers)

    def listed(self) -> list[dict[str, Any]] | None:
        """The entries of `added_tokens_decoder` with their ids, by id; None where there is none."""
        if "added_tokens_decoder" not in self.config:
            return None
        path, place, tokens = self.root / CONFIG, "added_tokens_decoder", []
        for number, entry in typed(self.config[place], dict, path=path, place=place).items():
            if not (number.isascii() and number.isdigit() and len(number) < 10):
                raise damaged(path, place, expected="ids", found=repr(number))
            tokens.append({**typed(entry, dict, path=path, place=f"{place}[{number!r}]"), "id": int(number)})
        return sorted(tokens, key=lambda entry: entry["id"])

    def require_known(self, special_ids: Mapping[str, int], *, mend: str) -> None:
        """Raise InputError for a special token that these files name, and that is none of `special_ids` or has another id."""
        of_config = [(self.root / CONFIG, str(entry.get("content")), entry["id"]) for entry in self.listed() or ()]
        for path, text, number in [*of_config, *((self.root / ADDED, text, number) for text, number in self.added.items())]:
            if special_ids.get(text) != number:
                found = f"{special_ids[text]} in the other files" if text in special_ids else "no special token in them"
                raise unsupported(path, repr(text), expected=f"the special token of id {number}", found=found, mend=mend)
        for path, place, text in self.named:
            if text not in special_ids:
                found = f"{text!r}, which is none in them"
                raise unsupported(path, place, expected="a special token of the other files", found=found, mend=mend)

    def document_token(self) -> str | None:
        """The special token that is both bos_token and eos_token; None where they differ, or are none."""
        of = {place: text for _, place, text in reversed(self.named)}
        first = of.get("bos_token")
        return first if first is not None and first == of.get("eos_token") else None


def _named(path: Path, body: Mapping[str, Any]) -> Iterator[tuple[Path, str, str]]:
    """Every special token that a config or map names: file, place, text."""
    entries = [(role, body[role]) for role in ROLES if body.get(role) is not None]
    for name in LISTS:
        given = body.get(name) or []
        if not isinstance(given, dict):
            given = dict(enumerate(typed(given, list, path=path, place=name)))
        entries += [(f"{name}[{key!r}]", value) for key, value in given.items()]
    for place, value in entries:
        if isinstance(value, dict):
            text = typed(value.get("content"), str, path=path, place=f"{place}.content")
            require_plain(path, place, text, {key: flag for key, flag in value.items() if key != "__type"})
        else:
            text = typed(value, str, path=path, place=place)
        yield path, place, text
