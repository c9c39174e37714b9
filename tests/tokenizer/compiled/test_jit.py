"""Machine code is kept on the disk, and made anew when any source of the room changes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jaxlm.tokenizer
from jaxlm.tokenizer.compiled import jit
from jaxlm.tokenizer.compiled.jit import compiled, is_ready

PACKAGE = Path(jaxlm.tokenizer.__file__).parent.parent
USE = """
import sys
from jaxlm.tokenizer.compiled.jit import is_ready
from jaxlm.tokenizer.compiled.decode import decode_ids, decoded_length
print(is_ready(decoded_length), end=" ")
decoded_length(0, 0, 0, 0)
print(is_ready(decoded_length), is_ready(decode_ids))
"""


def used(root: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(root), "NUMBA_CACHE_DIR": str(root / "cache")}
    done = subprocess.run([sys.executable, "-c", USE], cwd=root, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_code_on_the_disk_is_found_until_a_helper_changes(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "jaxlm", ignore=shutil.ignore_patterns("__pycache__"))
    assert used(tmp_path) == "False True False"
    assert used(tmp_path) == "True True False"
    with (tmp_path / "jaxlm/tokenizer/compiled/memory.py").open("a") as file:
        file.write("\n# changed\n")
    assert used(tmp_path) == "False True False"


def test_without_a_place_on_the_disk_it_works_all_the_same(monkeypatch):
    monkeypatch.setattr(jit._Cache._impl_class, "_locator_classes", [])

    @compiled
    def twice(number):
        return 2 * number

    assert not is_ready(twice)
    assert twice(4) == 8
    assert is_ready(twice)
