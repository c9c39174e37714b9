"""The command line called in this process, and a config file of the tiny run."""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest

from jaxlm.cli.main import main
from jaxlm.config.load import resolved_json

CONFIG = """
from pathlib import Path
from jaxlm.config.load import read_resolved
def config():
    return read_resolved(Path(__file__).with_name("template.json"))
"""


class Said(NamedTuple):
    """Exit status, standard output, standard error."""

    status: int
    out: str
    err: str

    def json(self):
        """The one JSON object on standard output, which holds nothing else."""
        assert self.out.endswith("\n")
        assert self.out.count("\n") == 1
        return json.loads(self.out)


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    """Call `jaxlm WORDS` in an empty directory."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    capsys.readouterr()

    def call(*words) -> Said:
        status = main([str(word) for word in words])
        return Said(status, *capsys.readouterr())

    return call


@pytest.fixture
def tiny(tmp_path, config):
    """A config file that gives the tiny run of the tests."""
    folder = tmp_path / "configs of mine"
    folder.mkdir()
    (folder / "template.json").write_bytes(resolved_json(config))
    (folder / "mine.py").write_text(CONFIG)
    return folder / "mine.py"


def listing(folder):
    """Everything below a folder: name -> bytes, without the lock."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}
