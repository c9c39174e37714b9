"""The rules of the house: rooms import upwards, everything public is described, importing is light, public names stay."""

import ast
import inspect
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import jaxlm
from jaxlm.config import schema

ROOT = Path(__file__).resolve().parent.parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("jaxlm", "pallas_kernels")
    for path in sorted((ROOT / package).rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}

# The rooms in the order in which the data flows: a room imports from itself and from rooms before it.
ROOMS = (
    "pallas_kernels", "jaxlm", "axes", "contract", "config", "tokenizer", "data", "parallel", "model", "optim", "watch",
    "checkpoint", "run", "train", "interop", "infer", "evaluate", "scaling", "align", "retrieve", "agent", "faults",
    "report", "cli", "__main__",
)  # fmt: skip


def room_of(module):
    """`jaxlm.data.shards` -> `data`; the package itself, which imports its names when they are asked for, is `jaxlm`."""
    package, *rest = module.split(".")
    return rest[0] if rest and package == "jaxlm" else package


def imports(tree):
    """Every module that a tree imports, wherever it does, TYPE_CHECKING and functions included; with the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"a relative import, line {node.lineno}"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield (name if name in MODULES else node.module), node.lineno


def upwards(module, tree):
    """The imports of `tree` that the order of the rooms forbids."""
    here = ROOMS.index(room_of(module))
    for name, line in imports(tree):
        if name.split(".")[0] in ("jaxlm", "pallas_kernels") and ROOMS.index(room_of(name)) > here:
            yield f"{module}:{line} imports {name}"


def undescribed(module, tree):
    """The module, and every public class, function and method of it, that has no docstring."""

    def below(node, path):
        if ast.get_docstring(node) is None:
            yield path
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for inner in node.body:
                if isinstance(inner, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and inner.name[0] != "_":
                    yield from below(inner, f"{path}.{inner.name}")

    return list(below(tree, module))


# ---- rooms -------------------------------------------------------------------------------------------------------


def test_every_module_belongs_to_a_room():
    assert {room_of(name) for name in MODULES} <= set(ROOMS)
    assert len(MODULES) > 80


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_from_rooms_above_it(module):
    assert list(upwards(module, TREES[module])) == []


@pytest.mark.parametrize(
    "source",
    [
        "import jaxlm.train",
        "from jaxlm import train",
        "from jaxlm.train.state import TrainState",
        "def f():\n    from jaxlm.train import fit",
        "if TYPE_CHECKING:\n    import jaxlm.cli.main as main",
    ],
)
def test_an_import_from_below_is_seen_wherever_it_stands(source):
    assert len(list(upwards("jaxlm.data.shards", ast.parse(source)))) == 1
    assert list(upwards("jaxlm.cli.train", ast.parse(source))) == []


def test_the_kernels_import_jax_and_numpy_only():
    allowed = {"jax", "numpy", "pallas_kernels", *sys.stdlib_module_names}
    found = {name for module in MODULES if room_of(module) == "pallas_kernels" for name, _ in imports(TREES[module])}
    assert {name.split(".")[0] for name in found} <= allowed
    assert "jax" in found


def test_no_module_is_a_grab_bag():
    parts = {part for name in MODULES for part in name.split(".")}
    assert parts & {"utils", "util", "common", "helpers", "helper", "misc", "tools", "lib"} == set()


# ---- docstrings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", MODULES)
def test_everything_public_is_described(module):
    assert undescribed(module, TREES[module]) == []


def test_what_is_not_described_is_seen():
    source = (
        '"""M."""\nclass A:\n  """A."""\n  def b(self): ...\n  def _c(self): ...\ndef d(): ...\ndef _e(): ...\nclass F: ...'
    )
    assert undescribed("m", ast.parse(source)) == ["m.A.b", "m.d", "m.F"]
    assert undescribed("m", ast.parse("x = 1")) == ["m"]


# ---- importing ---------------------------------------------------------------------------------------------------

HEAVY = ("jax", "jaxlib", "flax", "optax", "orbax", "tyro", "numba", "rich")


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("jaxlm", (*HEAVY, "numpy")),
        ("jaxlm.cli.main", (*HEAVY, "numpy")),
        ("jaxlm.contract", (*HEAVY, "numpy")),
        ("jaxlm.config", (*HEAVY, "numpy")),
        ("jaxlm.axes", (*HEAVY, "numpy")),
        ("jaxlm.tokenizer", HEAVY),
        ("jaxlm.data", HEAVY),
    ],
)
def test_importing_is_light(module, heavy):
    code = f"import sys, {module}; print(sorted({{name.split('.')[0] for name in sys.modules}} & set({heavy})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_importing_everything_touches_no_device():
    names = [name for name in MODULES if not name.endswith("__main__")]
    code = f"import importlib, jax\n[importlib.import_module(name) for name in {names}]\nprint('imported')\njax.devices()"
    none = os.environ | {"JAX_PLATFORMS": "no_such_platform"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=none)
    assert done.stdout == "imported\n", done.stderr
    assert "no_such_platform" in done.stderr


# ---- public names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", jaxlm.__all__)
def test_a_public_name_is_that_of_its_room(name):
    assert getattr(jaxlm, name) is getattr(import_module(jaxlm._HOMES[name]), name)
    assert name in dir(jaxlm)


def test_an_unknown_name_is_no_attribute():
    with pytest.raises(AttributeError, match="module 'jaxlm' has no attribute 'nothing'"):
        _ = jaxlm.nothing


@pytest.mark.parametrize("module", [name for name in MODULES if not name.endswith("__main__")])
def test_every_name_that_a_module_exports_exists(module):
    loaded = import_module(module)
    exported = getattr(loaded, "__all__", [])
    assert [name for name in exported if not hasattr(loaded, name)] == []
    assert len(set(exported)) == len(exported)


# Each name with the parameters that it takes by position, then, after a star, those by keyword.
PROMISED = {
    "tokenizer.Tokenizer.load": "directory * engine",
    "tokenizer.Tokenizer.save": "self directory",
    "tokenizer.Tokenizer.encode": "self text allowed_special",
    "tokenizer.Tokenizer.decode": "self ids",
    "tokenizer.train_tokenizer": "texts * vocab_size special_tokens pattern ties max_bytes threads progress",
    "model.init_params": "cfg key",
    "model.forward": "params tokens_BT cfg * mask policy rules dropout_key",
    "optim.adamw": "learning_rate b1 b2 eps weight_decay mask",
    "optim.cosine_schedule": "peak_value decay_steps warmup_steps * end_value init_value",
    "optim.clip_by_global_norm": "max_norm",
    "train.TrainState.create": "cfg",
    "train.train_step": "state batch",
    "train.fit": "cfg * out allow_older like declare say",
    "contract.ContractError": "contract * artifact expected found remedy",
    "contract.check": "upstream downstream",
    "run.Run.load": "path * step",
}


@pytest.mark.parametrize("name", PROMISED)
def test_a_promised_name_takes_the_promised_parameters(name):
    room, *path = name.split(".")
    found = import_module(f"jaxlm.{room}")
    for part in path:
        found = getattr(found, part)
    before, _, after = PROMISED[name].partition("* ")
    parameters = inspect.signature(found).parameters.values()
    by_position = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert (by_position, [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]) == (before.split(), after.split())


@pytest.mark.parametrize(
    ("room", "name"),
    [
        ("tokenizer", "TokenizerConfig"), ("data", "DataConfig"), ("model", "ModelConfig"), ("optim", "OptimConfig"),
        ("train", "TrainConfig"), ("watch", "WatchConfig"), ("checkpoint", "CheckpointConfig"), ("evaluate", "EvalConfig"),
    ],
)  # fmt: skip
def test_a_room_re_exports_its_config(room, name):
    assert getattr(import_module(f"jaxlm.{room}"), name) is getattr(schema, name)
