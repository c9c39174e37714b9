"""What a `tokenizer.json` does before and after the model: the steps that are known here, and the refusal of all others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxlm.interop.patterns import ONIGURUMA, meaning
from jaxlm.interop.refusing import shortened, unsupported
from jaxlm.interop.strict_json import typed

_FIELDS = {
    "version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model",
}  # fmt: skip

_OPTIONS = {
    "ByteLevel": {"type", "add_prefix_space", "trim_offsets", "use_regex"},
    "Split": {"type", "pattern", "behavior", "invert"},
}


def require_known_steps(path: Path, body: Mapping[str, Any]) -> None:
    """Raises InputError for a version, a normalizer, a post-processor, a decoder or a field that is not known.

    Without a decoder there are no texts in `tokenizers`, but the ids are the same. ByteLevel and TemplateProcessing after the
    model are accepted: the first moves offsets, the second adds tokens around the text, for which documents here have a rule.
    """
    for name, value in body.items():
        if name not in _FIELDS:
            raise unsupported(path, name, expected="no such field", found=shortened(repr(value)))
    if body.get("version") != "1.0":
        raise unsupported(path, "version", expected="'1.0'", found=shortened(repr(body.get("version"))))
    for name in ("truncation", "padding", "normalizer"):
        if body.get(name) is not None:
            raise unsupported(path, name, expected="null", found=_named(body[name]), mend="it would change ids")
    for step in _flat(path, "decoder", body.get("decoder"), "decoders"):
        if _type(step) != "ByteLevel":
            raise unsupported(path, "decoder", expected="ByteLevel", found=_named(step))
    for step in _flat(path, "post_processor", body.get("post_processor"), "processors"):
        if _type(step) not in ("ByteLevel", "TemplateProcessing"):
            raise unsupported(path, "post_processor", expected="null, ByteLevel or TemplateProcessing", found=_named(step))


def pattern_of(path: Path, step: Any) -> str:
    """The name in `PATTERNS` of what a pre-tokenizer does. Raises InputError, quoting it, where that is none of them."""
    place = "pre_tokenizer"
    steps = _flat(path, place, step, "pretokenizers")
    if not steps or _type(steps[-1]) != "ByteLevel" or len(steps) > 2:
        found = ", ".join(map(_named, steps)) or "null"
        raise unsupported(path, place, expected="ByteLevel, or Split and then ByteLevel", found=found)
    last = steps[-1]
    if last.get("add_prefix_space", True) is not False:
        raise unsupported(path, place, expected="ByteLevel with add_prefix_space=false", found=_named(last))
    own_regex = last.get("use_regex", True)  # older files have no such field: the regular expression is always used
    if own_regex is not (len(steps) == 1):
        expected = f"ByteLevel with use_regex={'true' if len(steps) == 1 else 'false'}"
        raise unsupported(path, place, expected=expected, found=", ".join(map(_named, steps)))
    if len(steps) == 1:
        return "gpt2"
    return _pattern_of_split(path, steps[0])


def _pattern_of_split(path: Path, step: Mapping[str, Any]) -> str:
    """The pieces between matches are none, since every pattern matches everything: so it is no matter whether they, or
    nothing, or the matches are kept, as long as the matches are not joined with others."""
    place = "pre_tokenizer"
    how = (step.get("behavior"), step.get("invert"))
    if _type(step) != "Split" or how not in (("Isolated", False), ("Removed", True)):
        raise unsupported(path, place, expected="Split, Isolated, with invert=false", found=_named(step))
    pattern = step.get("pattern")
    text = pattern.get("Regex") if isinstance(pattern, dict) and set(pattern) == {"Regex"} else None
    name = meaning(text, ONIGURUMA) if isinstance(text, str) else None
    if name is None:
        expected = f"a regular expression known as {', '.join(ONIGURUMA)}"
        raise unsupported(path, place, expected=expected, found=repr(text if isinstance(text, str) else pattern))
    return name


def pre_tokenizer_of(pattern: str) -> dict[str, Any]:
    """The pre-tokenizer of a name in `PATTERNS`."""
    own = pattern == "gpt2"
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": own}
    if own:
        return level
    split = {"type": "Split", "pattern": {"Regex": ONIGURUMA[pattern][0]}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, level]}


def _flat(path: Path, place: str, step: Any, field: str) -> list[dict[str, Any]]:
    """A step, or those of a Sequence, as a list."""
    if step is None:
        return []
    step = typed(step, dict, path=path, place=place)
    if _type(step) != "Sequence":
        steps = [step]
    else:
        listed = typed(step.get(field), list, path=path, place=f"{place}.{field}")
        steps = [typed(one, dict, path=path, place=f"{place}.{field}") for one in listed]
    for one in steps:
        known = _OPTIONS.get(_type(one) or "", set(one))
        if unknown := sorted(set(one) - known):
            raise unsupported(path, f"{place}.{unknown[0]}", expected="no such field", found=_named(one))
    return steps


def _type(step: Any) -> str | None:
    found = step.get("type") if isinstance(step, dict) else None
    return found if isinstance(found, str) else None


def _named(step: Any) -> str:
    """A step by its type, with its plain options."""
    if not isinstance(step, dict):
        return shortened(repr(step))
    options = [f"{name}={value!r}" for name, value in step.items() if name != "type" and not isinstance(value, (dict, list))]
    return shortened(f"{step.get('type', 'no type')}({', '.join(options)})")
