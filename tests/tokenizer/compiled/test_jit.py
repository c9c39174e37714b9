"""Machine code is kept on the disk, is loaded without numba, and is made anew when any source of the room changes."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import jaxlm.tokenizer
from jaxlm.tokenizer.compiled import jit
from jaxlm.tokenizer.compiled.jit import compiled, helper, inlined

PACKAGE = Path(jaxlm.tokenizer.__file__).parent.parent
ROOM = PACKAGE / "tokenizer" / "compiled"
USE = """
import sys
from jaxlm.tokenizer.compiled.decode import decoded_length
print(decoded_length.load(make=False), end=" ")
decoded_length(0, 0, 0, 0)
print(decoded_length.is_loaded, "numba" in sys.modules)
"""


EDITED = """
from jaxlm.tokenizer.compiled import decode, jit
with open(jit._ROOM / "memory.py", "a") as file:
    file.write("\\n# changed while this process runs\\n")
print(decode.decoded_length(0, 0, 0, 0), end=" ")
"""


def used(root: Path, script: str = USE, **settings: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(root), "JAXLM_CACHE_DIR": str(root / "cache"), **settings}
    done = subprocess.run([sys.executable, "-c", script], cwd=root, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_code_on_the_disk_is_used_without_numba_until_a_source_changes(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "jaxlm", ignore=shutil.ignore_patterns("__pycache__"))
    assert used(tmp_path) == "False True True"
    assert used(tmp_path) == "True True False"
    for name in ("compiled/memory.py", "unicode.py"):
        with (tmp_path / "jaxlm/tokenizer" / name).open("a") as file:
            file.write("\n# changed\n")
        assert used(tmp_path) == "False True True"


def test_code_of_sources_that_were_edited_meanwhile_is_not_kept_and_other_settings_make_other_code(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "jaxlm", ignore=shutil.ignore_patterns("__pycache__"))
    assert used(tmp_path, EDITED) == "0"
    assert not list(tmp_path.glob("cache/**/*.o"))
    assert used(tmp_path) == "False True True"
    assert used(tmp_path, NUMBA_NUM_THREADS="1") == "True True False"
    assert used(tmp_path, NUMBA_OPT="0") == "False True True"


def test_what_older_sources_left_beside_them_is_removed(monkeypatch, tmp_path):
    monkeypatch.delenv("JAXLM_CACHE_DIR", raising=False)
    monkeypatch.setattr(jit, "_folders", lambda: [tmp_path / "__pycache__"])
    monkeypatch.setattr(jit, "_ROOM", tmp_path)
    monkeypatch.setattr(jit, "_sources", lambda: jit._SOURCES)
    for file in ("f-00000001-a.o", "f-00000001-b.o", "f-00000002-a.o", "f-g-00000001-a.o", "f-00000001-c.o"):
        jit._keep(file, "symbol", b"code")
    assert {path.name for path in (tmp_path / "__pycache__").iterdir()} == {
        "f-00000002-a.o",
        "f-g-00000001-a.o",
        "f-00000001-c.o",
    }


def test_the_key_covers_every_module_whose_constants_are_compiled_in():
    """Those above the room that its kernels' globals come from: numbers of other modules are parts of the machine code."""
    above = set()
    for path in ROOM.glob("*.py"):
        module = import_module(f"jaxlm.tokenizer.compiled.{path.stem}") if path.stem != "__init__" else None
        for node in ast.walk(ast.parse(path.read_text())) if module else ():
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("jaxlm."):
                for alias in node.names:
                    value = getattr(module, alias.asname or alias.name, None)
                    is_number = isinstance(value, int) or (isinstance(value, ModuleType) and "compiled" not in value.__name__)
                    where = f"{node.module}.{alias.name}" if isinstance(value, ModuleType) else str(node.module)
                    if is_number and not where.startswith("jaxlm.tokenizer.compiled"):
                        above.add(f"{where.removeprefix('jaxlm.tokenizer.')}.py")
    assert above == set(jit.CONSTANTS)


def test_code_of_another_function_is_not_run(cache):
    assert fresh()(1, 20) == 41
    other = compiled(always.function)
    other.load(make=True)
    shutil.copy(cache / other.file, cache / fresh().file)
    assert not fresh().load(make=False)
    assert fresh()(1, 20) == 41


def test_a_write_that_fails_leaves_nothing(cache, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert fresh()(1, 20) == 41
    assert list(cache.iterdir()) == []


def test_a_user_without_a_home_directory_has_one_place_less(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("JAXLM_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert jit._folders() == [Path(jit.__file__).parent / "__pycache__"]


@inlined
def _doubled(number):
    return 2 * number


@helper
def _sum(first, second):
    return first + _doubled(second)


@compiled
def combined(first, second):
    return _sum(first, second)


@compiled
def nothing(number):
    pass


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("JAXLM_CACHE_DIR", str(tmp_path))
    return tmp_path


def fresh() -> compiled:
    """`combined`, as another process finds it."""
    return compiled(combined.function)


def test_a_changed_file_is_not_run(cache):
    assert not fresh().load(make=False)
    assert fresh()(1, 20) == 41
    (file,) = cache.iterdir()
    content = bytearray(file.read_bytes())
    for at in (0, len(content) // 2, len(content) - 1):
        changed = content.copy()
        changed[at] ^= 1
        file.write_bytes(changed)
        assert jit._load(file.name) is None
        assert fresh()(3, -2) == -1
        assert jit._load(file.name) is not None
    for useless in (b"", b"\n", b"one\n", b"\xff \n"):
        file.write_bytes(useless)
        assert jit._load(file.name) is None


def test_without_a_place_on_the_disk_it_works_all_the_same(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAXLM_CACHE_DIR", str(tmp_path / "file"))
    function = fresh()
    assert function(1, 2) == 5
    assert function.is_loaded
    assert not fresh().load(make=False)


def test_what_returns_no_integer_is_refused(cache):
    with pytest.raises(AssertionError, match="nothing returns none"):
        nothing(1)


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (OSError("Could not load shared object"), "OSError: Could not load shared object"),
        (AttributeError("module numpy has no x"), "AttributeError: module numpy has no x"),
        (ImportError("Numba needs NumPy 2.3 or less."), "ImportError: Numba needs NumPy 2.3 or less"),
    ],
)
def test_libraries_that_are_there_and_do_not_work_are_an_import_error_that_says_why(cache, monkeypatch, error, found):
    def broken(*_):
        raise error

    fresh()(1, 20)
    for name in ("_made_for", "_link"):
        with monkeypatch.context() as patch:
            patch.setattr(jit, name, broken)
            with pytest.raises(ImportError, match=f"numba or llvmlite failed with {found}; install versions of them that"):
                fresh().load(make=False)


def test_an_interrupt_while_a_library_is_imported_is_an_interrupt(cache, monkeypatch):
    def interrupted():
        raise ImportError("initialization failed") from KeyboardInterrupt()

    monkeypatch.setattr(jit, "_made_for", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fresh().load(make=False)


@compiled
def always(number):
    return 7


def test_a_constant_may_be_returned(cache):
    assert always(1) == 7
