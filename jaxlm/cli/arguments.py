"""The words of a command line: a verb's own options, and the fields of the config beside them.

A verb that takes fields states `SECTIONS`, those of the config that it uses (empty: all), and `CONFIG`, the installed config
that it starts from (empty: that of the command line). A verb of several actions states `ACTIONS`, the module of each by name;
such a module is to its action what a verb's is to the verb. Errors are one line, raised as UsageError.
"""

from __future__ import annotations

import argparse
import difflib
import itertools
import os
import typing
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any, NoReturn

from jaxlm.config.load import load_config
from jaxlm.config.overrides import collect, field_types, nearest
from jaxlm.config.schema import RunConfig
from jaxlm.contract import InputError

STRICT = "--data.strict"  # `--strict` is short for it

# Arguments of verbs that an empty word cannot be.
PATHS = ("out", "run", "config", "paths", "path", "tokenizer", "file", "html", "other", "target")

# Fields of the config that hold text; other words are paths, or say the same in every locale.
TEXTS = ("tokenizer.special_tokens", "data.separator", "data.text_field")


class UsageError(InputError):
    """Wrong usage of the command line."""


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected an integer, found {text!r}") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, found {text!r}") from None


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, raised as UsageError, and which takes no abbreviations."""

    def __init__(self, **options: Any):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)
        self.register("type", int, _whole)
        self.register("type", float, _number)

    def error(self, message: str) -> NoReturn:
        """Raise the message as UsageError; of what is required it lists what may be left out, too, and here does not."""
        said, _, names = message.partition("required: ")
        if names:
            optional = {action.metavar for action in self._actions if action.nargs == "*"}
            message = f"{said}required: {', '.join(name for name in names.split(', ') if name not in optional)}"
        raise UsageError(f"{message.removeprefix('argument ')}; `{self.prog} --help` shows the usage")


def utf8(word: str) -> str:
    """A word that is text: the UTF-8 that it is, whatever the locale takes it for. Paths stay as they came, to be found."""
    try:
        return os.fsencode(word).decode()
    except UnicodeError:
        return word


def parse(verb: str, module: ModuleType, words: Sequence[str]) -> argparse.Namespace:
    """The options of a verb; `overrides` holds the words that set fields of the config. `--help` raises SystemExit.

    Of a verb of several actions, those of the action that is named, whose name is `action`.
    """
    if hasattr(module, "ACTIONS"):
        return _parse_action(verb, module, words)
    parser = Parser(prog=f"jaxlm {verb}", description=module.__doc__)
    module.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    for word in words:
        if any("\udc80" <= letter <= "\udcff" for letter in utf8(word)):  # how Python holds bytes that are no UTF-8
            raise UsageError(f"{os.fsencode(word)!r}: expected words in UTF-8, found other bytes")
    types, overrides = _fields(module), list[str]()
    if STRICT.removeprefix("--") in types:
        parser.add_argument("--strict", action="store_true", help=f"the same as {STRICT}: refuse text that is no UTF-8")
        words = [STRICT if word == "--strict" else word for word in words]
    if types:
        words, overrides = split(words, types)
        collect(overrides, types)  # a misspelt field is named before anything else that it may have led to
        parser.usage = f"{parser.format_usage().removeprefix('usage: ').rstrip()}\n{' ' * 13}[--SECTION.FIELD VALUE ...]"
        if {"-h", "--help"}.intersection(words):
            parser.epilog = _fields_in_help(module)
    known = {option for action in parser._actions for option in action.option_strings}
    for word in itertools.takewhile(lambda word: word != "--", words):  # before argparse asks for what is missing
        if word.startswith("--") and word.partition("=")[0] not in known:
            raise UsageError(_unknown(word.partition("=")[0], parser, types))
    args, rest = parser.parse_known_intermixed_args(words)
    for name in PATHS:
        given = getattr(args, name, None)
        if given == "" or (isinstance(given, list) and "" in given):
            raise UsageError(f"{name}: expected a path, found an empty word")
    for word in rest:
        if word.startswith("-"):
            raise UsageError(_unknown(word.partition("=")[0], parser, types))
        raise UsageError(f"{word}: expected nothing more, found a word too many; `{parser.prog} --help` shows the usage")
    args.overrides = list(_spelt(overrides))
    return args


def _parse_action(verb: str, module: ModuleType, words: Sequence[str]) -> argparse.Namespace:
    """The action is the first word that names one and belongs to no field."""
    spelt, types = [STRICT if word == "--strict" else word for word in words], field_types()
    at = next(
        (i for i, word in enumerate(spelt) if word in module.ACTIONS and split(spelt[: i + 1], types)[0][-1:] == [word]), -1
    )
    if at < 0:
        parser = Parser(prog=f"jaxlm {verb}", description=module.__doc__, usage=f"jaxlm {verb} ACTION ...", add_help=False)
        if {"-h", "--help"}.intersection(words):
            parser.print_help()
            parser.exit()
        named = next((word for word in words if not word.startswith("-")), "")
        close = difflib.get_close_matches(named, module.ACTIONS, n=1, cutoff=0.6)
        found = f"{named!r}; the nearest is {close[0]}" if close else repr(named) if named else "none"
        parser.error(f"action: expected one of {', '.join(module.ACTIONS)}, found {found}")
    args = parse(f"{verb} {words[at]}", import_module(module.ACTIONS[words[at]]), [*words[:at], *words[at + 1 :]])
    args.action = words[at]
    return args


def split(words: Sequence[str], types: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """`words` in two: the verb's own, and those that name a field (anything with a dot does) and give it a value.

    types: of the fields, by dotted name; a field takes as many of the words after it as its type can hold.
    """
    own: list[str] = []
    ours: list[str] = []
    kind, room = None, 0
    for word in words:
        if word.startswith("--"):
            spelt, equals, _ = word[2:].partition("=")
            name = spelt.replace("-", "_")
            named = name in types or "." in name
            kind = types.get(name)
            negated = kind is None and (name.startswith("no_") or ".no_" in name)  # --no-model.qk-norm says it all
            room = (len(words) if typing.get_origin(kind) is tuple else 1) - bool(equals) if named and not negated else 0
            (ours if named else own).append(word)
        elif room and (kind is not bool or word in ("True", "False")):
            ours.append(word)
            room -= 1
        else:
            own.append(word)
            room = 0
    return own, ours


def _spelt(overrides: Sequence[str]) -> Iterator[str]:
    """The words that set fields, as text where a field holds text."""
    name = ""
    for word in overrides:
        if word.startswith("--"):
            name = word[2:].partition("=")[0].replace("-", "_")
        yield utf8(word) if name in TEXTS else word


def _fields(module: ModuleType) -> dict[str, Any]:
    if not hasattr(module, "SECTIONS"):
        return {}
    return {name: kind for name, kind in field_types().items() if not module.SECTIONS or name.split(".")[0] in module.SECTIONS}


def _fields_in_help(module: ModuleType) -> str:
    from jaxlm.cli.fields import listing

    config = load_config(module.CONFIG) if module.CONFIG else RunConfig()
    whose = f"here those of configs/{module.CONFIG}.py" if module.CONFIG else "where no config says otherwise"
    return f"fields of the config, in brackets their values,\n{whose}:\n\n{listing(config, module.SECTIONS)}"


def _unknown(option: str, parser: Parser, types: Mapping[str, Any]) -> str:
    known = [option for action in parser._actions for option in action.option_strings]
    hint = f"`{parser.prog} --help` lists what it takes"
    if close := difflib.get_close_matches(option, known, n=1, cutoff=0.6):
        hint = f"the nearest is {close[0]}"
    elif types and (field := nearest(option.removeprefix("--").replace("-", "_"), types)).startswith("the nearest"):
        hint = field
    return f"{option}: expected an option of `{parser.prog}`, found none of that name; {hint}"
