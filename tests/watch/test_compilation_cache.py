"""The persistent compilation cache: where it lies, who may use it, how it is switched off."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jaxlm.config import caches
from jaxlm.watch.compilation_cache import LEAST_SECONDS, keep_programs

NAMES = ("jax_compilation_cache_dir", "jax_enable_compilation_cache", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture(autouse=True)
def plain(monkeypatch, tmp_path):
    """No variable of the caller's, no cache chosen yet; everything as it was afterwards."""
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAXLM_CACHE_DIR", str(tmp_path / "caches"))
    before = {name: getattr(jax.config, name) for name in NAMES}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_it_lies_with_the_other_caches_for_its_owner_alone(tmp_path):
    folder, words = keep_programs()
    assert folder == tmp_path / "caches" / "xla"
    assert words == str(folder) == jax.config.jax_compilation_cache_dir
    assert folder.stat().st_mode & 0o777 == 0o700
    assert jax.config.jax_persistent_cache_min_compile_time_secs == LEAST_SECONDS


def test_a_folder_that_others_may_enter_is_closed_to_them(tmp_path):
    folder = tmp_path / "caches" / "xla"
    folder.mkdir(parents=True, mode=0o755)
    folder.chmod(0o777)
    assert keep_programs()[0] == folder
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_of_another_user_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    folder, words = keep_programs()
    assert folder is None
    assert "xla belongs to another user, whose programs are not run; JAXLM_CACHE_DIR names another folder" in words
    assert jax.config.jax_compilation_cache_dir is None


def test_without_a_place_on_the_disk_it_is_off(tmp_path, monkeypatch):
    (tmp_path / "caches").write_text("")
    folder, words = keep_programs()
    assert folder is None
    assert str(tmp_path / "caches" / "xla") in words
    monkeypatch.delenv("JAXLM_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(caches.Path, "home", classmethod(lambda cls: (_ for _ in ()).throw(RuntimeError)))
    assert keep_programs() == (None, "off: this user has no home directory; JAXLM_CACHE_DIR names a folder")


def test_a_choice_of_the_user_stays(tmp_path, monkeypatch):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "chosen"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "7")
    assert keep_programs()[0] == tmp_path / "chosen"
    assert not (tmp_path / "caches").exists()
    assert jax.config.jax_persistent_cache_min_compile_time_secs != LEAST_SECONDS


def test_it_can_be_switched_off(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    assert keep_programs() == (None, "off, by an empty JAX_COMPILATION_CACHE_DIR")
    jax.config.update("jax_enable_compilation_cache", False)
    assert keep_programs() == (None, "off, by JAX_ENABLE_COMPILATION_CACHE")
    assert not (tmp_path / "caches").exists()


PROGRAM = """
import jax, sys
from jaxlm.watch.compilation_cache import keep_programs
before = jax.config.jax_compilation_cache_dir
jax.numpy.ones(3)  # a program that was compiled before does not stand in the way
print(before, keep_programs()[0] is not None)
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
jax.jit(lambda x: jax.lax.fori_loop(0, 3, lambda i, x: x @ x, x))(jax.numpy.ones((4, 4)))
print("/jax/compilation_cache/cache_hits" in hits)
"""


def test_the_next_process_finds_the_programs(tmp_path):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    clean |= {"JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    root = Path(__file__).resolve().parents[2]
    outputs = [
        subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=root, env=clean, check=True).stdout
        for _ in range(2)
    ]
    assert outputs == ["None True\nFalse\n", "None True\nTrue\n"]
