"""Where the project's caches lie."""

from pathlib import Path

import pytest

from jaxlm.config.caches import cache_folder


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    monkeypatch.delenv("JAXLM_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)


def test_each_variable_goes_before_the_next(monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/home/someone"))
    assert cache_folder() == Path("/home/someone/.cache/jaxlm")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder() == Path("/caches/jaxlm")
    monkeypatch.setenv("JAXLM_CACHE_DIR", "/mine")
    assert cache_folder() == Path("/mine")


def test_a_user_without_a_home_directory_has_none(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert cache_folder() is None
