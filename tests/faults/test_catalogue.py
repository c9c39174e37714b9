"""The catalogue: whole, declarative, and read by nothing that detects."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlm.contract import InputError
from jaxlm.faults import CATALOGUE, LAYERS, STEPS, Disturbed, Patch, Program, Tampered, named
from jaxlm.faults.planting import _owner
from jaxlm.infer.probes import PROBES
from jaxlm.train.probes_forward import FORWARD
from jaxlm.train.probes_initial import INITIAL
from jaxlm.train.probes_update import UPDATE
from jaxlm.train.probes_whole import WHOLE
from jaxlm.watch.detect import BUDGETS

ROOT = Path(__file__).resolve().parents[2]
CONTRACTS = {
    "tokenizer", "data", "batch", "model", "run", "checkpoint", "restored", "evaluation", "telemetry", "replicas", "recompute",
    "manifest", "input", "config",
}  # fmt: skip
PROBED = {probe.__name__ for probe in (*FORWARD, *INITIAL, *UPDATE, *WHOLE, *PROBES)} | {"batch_is_pure", "order"}
READERS = {"jaxlm/cli/faults.py", "jaxlm/report/faults.py"}


def test_there_are_enough_and_every_layer_has_some():
    assert len(CATALOGUE) >= 60
    assert {fault.layer for fault in CATALOGUE.values()} == set(LAYERS)


@pytest.mark.parametrize("name", CATALOGUE)
def test_an_entry_says_what_it_must(name):
    fault = CATALOGUE[name]
    assert re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", fault.name)
    assert all(len(text) > 8 for text in (fault.mechanism, fault.incident))
    assert len(fault.symptom) > 8 or fault.symptom == "None."
    assert fault.mechanism.endswith(".")
    assert bool(fault.seen_by) != bool(fault.unseen)
    assert set(fault.seen_by) <= CONTRACTS | PROBED | set(BUDGETS), fault.seen_by
    assert fault.plant
    assert fault.at is None or 1 <= fault.at + fault.within <= STEPS
    assert fault.within == 0 or fault.at is not None


def patches(fault):
    for part in fault.plant:
        if isinstance(part, Patch):
            yield part
        if isinstance(part, Program):
            yield from part.patches


@pytest.mark.parametrize("name", CATALOGUE)
def test_what_is_patched_exists_and_nothing_is_patched_that_detects(name):
    fault = CATALOGUE[name]
    for patch in patches(fault):
        owner, attribute = _owner(patch.target)
        assert hasattr(owner, attribute), patch.target
        assert not patch.target.startswith(("jaxlm.watch", "jaxlm.run.audit", "jaxlm.contract"))
    assert all(isinstance(part, Patch | Program | Disturbed | Tampered) for part in fault.plant)


def test_names_and_layers_are_found_and_a_misspelt_one_is_answered():
    assert [fault.name for fault in named(["bos_dropped"])] == ["bos_dropped"]
    assert {fault.layer for fault in named(["batch", "bos_dropped"])} == {"batch", "tokenizer"}
    assert len(named([])) == len(CATALOGUE)
    with pytest.raises(InputError, match="the nearest is bos_dropped"):
        named(["bos_droped"])


# ---- nothing that detects knows of it ------------------------------------------------------------------------------------


def sources():
    found = [*(ROOT / "jaxlm").rglob("*.py"), *(ROOT / "pallas_kernels").rglob("*.py")]
    inside = [path.relative_to(ROOT).as_posix() for path in found]
    return [path for path in inside if not path.startswith("jaxlm/faults/") and path not in READERS]


@pytest.mark.parametrize("path", sources())
def test_no_other_module_imports_it_or_names_a_fault(path):
    text = (ROOT / path).read_text()
    for node in ast.walk(ast.parse(text)):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not any(name.startswith("jaxlm.faults") for name in names), path
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert node.value not in CATALOGUE or node.value in BUDGETS, (path, node.value)


def test_what_detects_is_imported_without_it():
    code = (
        "import sys, jaxlm.watch.detect, jaxlm.train, jaxlm.infer.probes, jaxlm.evaluate, jaxlm.run, jaxlm.train.replaying\n"
        "print([name for name in sys.modules if name.startswith('jaxlm.faults')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
