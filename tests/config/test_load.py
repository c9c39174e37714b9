"""Configs from files and back: files that are none, the resolved config, tampering, the configs that come with the package."""

import ast
import dataclasses
import json
import shlex
import tomllib
from pathlib import Path

import pytest

import jaxlm.cli.main
from jaxlm.config import ConfigError, config_fingerprint, load, load_config, read_resolved, resolved_json
from jaxlm.config.load import describe, differing_fields, installed
from jaxlm.config.overrides import field_types
from jaxlm.config.schema import DataConfig, ModelConfig, OptimConfig, RunConfig, TokenizerConfig, TrainConfig
from jaxlm.contract import ContractError, InputError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.py"))
IMPORT = "from jaxlm.config.schema import *\n"


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def written(text, name="mine.py"):
        content = text if isinstance(text, bytes) else text.encode()
        (tmp_path / name).write_bytes(content)
        return name

    return written


# ---- the configs that come with the package ----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_an_installed_config_loads_and_opens_with_its_command(name, write):
    path = CONFIGS / f"{name}.py"
    config = load_config(path)
    assert config.name == name
    assert config == load_config(name) == load_config(f"{name}.py") == load_config(f"configs/{name}.py")
    command, empty, expectation = ast.get_docstring(ast.parse(path.read_text())).split("\n", 2)
    jaxlm_word, verb, *words = shlex.split(command)
    assert (jaxlm_word, empty) == ("jaxlm", "")
    assert verb in jaxlm.cli.main.VERBS
    assert words in ([], [f"configs/{name}.py"])
    assert "Expect" in expectation


@pytest.mark.parametrize("name", NAMES)
def test_an_installed_config_comes_back_from_its_resolved_json(name, tmp_path):
    config = load_config(name)
    (tmp_path / "resolved.json").write_bytes(resolved_json(config))
    again = read_resolved(tmp_path / "resolved.json")
    assert again == config == load_config(tmp_path / "resolved.json")
    assert hash(again) == hash(config)
    assert resolved_json(again) == resolved_json(config)


def test_the_installed_configs_are_those_of_the_folder_and_named_where_one_is_not_found():
    assert installed() == NAMES
    with pytest.raises(InputError, match=f"configs/none.py: expected a config, found no such file; .*configs/{NAMES[0]}.py"):
        load_config("configs/none.py")


def test_an_installed_package_has_its_configs_inside_it_and_a_checkout_beside_it(tmp_path, monkeypatch):
    assert load.folder() == CONFIGS
    monkeypatch.setattr(load, "__file__", str(tmp_path / "jaxlm" / "config" / "load.py"))
    (tmp_path / "jaxlm" / "_configs").mkdir(parents=True)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "foreign.py").write_text("")
    (tmp_path / "jaxlm" / "_configs" / "own.py").write_text(IMPORT + "config = lambda: RunConfig(name='own')")
    assert installed() == ["own"]
    assert load_config("configs/own.py").name == "own"


def test_the_wheel_takes_no_name_but_those_of_its_packages():
    wheel = tomllib.loads((CONFIGS.parent / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel == {"packages": ["jaxlm", "pallas_kernels"], "force-include": {"configs": "jaxlm/_configs"}}


def test_a_file_here_goes_before_an_installed_one(write):
    write(IMPORT + "config = lambda: RunConfig(name='here')", "tiny.py")
    assert load_config("tiny.py").name == "here"
    assert load_config("tiny").name == "tiny"


def test_overrides_are_applied_to_what_was_loaded(write):
    write(IMPORT + "def config(): return RunConfig(train=TrainConfig(steps=200, batch_size=6))")
    found = load_config("mine.py", ["--train.steps", "300", "--model.n-layers", "2"])
    assert (found.train.steps, found.train.batch_size, found.model.n_layers) == (300, 6, 2)
    with pytest.raises(ConfigError, match=r"--train\.steps: expected a number >= 1, found 0"):
        load_config("mine.py", ["--train.steps", "0"])


# ---- files that are no config ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\nraise KeyError('boom')", r"^mine\.py, line 2: expected a config, found KeyError: 'boom'$"),
        ("def config():\n  import json\n  return json.loads('{')", r"^mine\.py, line 3: .* found JSONDecodeError: Expecting"),
        ("def config():\n    return {]", r"^mine\.py, line 2: expected a config, found SyntaxError: "),
        ("import nowhere_to_be_found", r"^mine\.py, line 1: .* ModuleNotFoundError: No module named 'nowhere_to_be_found'$"),
        ("raise ValueError('two\\nlines')", r"^mine\.py, line 1: expected a config, found ValueError: two lines$"),
        ("import sys\nsys.exit(3)", r"^mine\.py, line 2: expected a config, found SystemExit: 3$"),
        ("def config():\n    return config()", r"^mine\.py, line 2: expected a config, found RecursionError: "),
        ("x = 1", r"^mine\.py: expected a function config\(\) that returns a RunConfig, found no such function$"),
        ("config = 5", r"^mine\.py: .* found no such function$"),
        ("def config(): return None", r"^mine\.py: .* found one that returns NoneType$"),
        ("def config(): return {'steps': 3}", r"^mine\.py: .* found one that returns dict$"),
        ("def config(size): return None", r"^mine\.py: expected a config, found TypeError: config\(\) missing 1 required"),
        (IMPORT + "config = lambda: RunConfig(steps=3)", r"^mine\.py, line 2: .* TypeError: .*unexpected .* 'steps'"),
        (IMPORT + "config = lambda: TrainConfig(steps='3')", r"^--train\.steps: expected an integer, found '3'$"),
        (IMPORT + "config = lambda: RunConfig(model={})", r"^--model: expected a ModelConfig, found \{\}$"),
        (b"\xff\xfe\x00", r"^mine\.py.*: expected a config, found SyntaxError: "),
        (b"", r"^mine\.py: .* found no such function$"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_config_is_one_line_without_a_traceback(write, text, message):
    with pytest.raises(InputError, match=message) as caught:
        load_config(write(text))
    assert "\n" not in str(caught.value)
    assert caught.value.__context__ is None


def test_an_interruption_is_the_users_and_no_error_of_the_file(write):
    with pytest.raises(KeyboardInterrupt):
        load_config(write("raise KeyboardInterrupt"))


@pytest.mark.parametrize("name", ["mine.yaml", "mine.txt", "mine"])
def test_another_suffix_is_refused(write, name):
    with pytest.raises(InputError, match=rf"^{name}: .* suffix \.py, .* found {Path(name).suffix or 'no suf'}"):
        load_config(write("", name))


def test_a_directory_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"expected a config .*, found a directory"):
        load_config(tmp_path)
    for name in ("none.py", "none.json", "deep/tiny.py", "tiny.yaml", "__init__.py"):
        with pytest.raises(InputError, match=f"{name}: expected a config, found no such file"):
            load_config(tmp_path / name)
    with pytest.raises(InputError, match="expected the resolved config of a run, found no such file"):
        read_resolved(tmp_path / "resolved.json")


# ---- resolved.json -----------------------------------------------------------------------------------------------

CONFIG = RunConfig(
    name="ünïcode",
    tokenizer=TokenizerConfig(special_tokens=("<|a|>", "<|b|>"), path="/somewhere/else"),
    data=DataConfig(source=("a.txt", "b/*.md"), val_fraction=0.1),
    model=ModelConfig(vocab_size=300),
    optim=OptimConfig(lr=3, eps=1e-30),
    train=TrainConfig(batch_size=64),
)


def body_of(config=CONFIG):
    return json.loads(resolved_json(config))


def read(tmp_path, body):
    (tmp_path / "resolved.json").write_bytes(body if isinstance(body, bytes) else json.dumps(body).encode())
    return read_resolved(tmp_path / "resolved.json")


def test_every_value_comes_back_with_its_type(tmp_path):
    assert read(tmp_path, resolved_json(CONFIG)) == CONFIG
    assert repr(read(tmp_path, resolved_json(CONFIG))) == repr(CONFIG)


@pytest.mark.parametrize("name", field_types())
def test_a_field_changed_removed_or_of_another_type_is_refused(tmp_path, name):
    section, _, field = name.rpartition(".")
    where = (lambda body: body["config"][section]) if section else (lambda body: body["config"])
    there = where(body_of())[field]
    for wrong in ({"a": 1}, None, [1], -1 if not isinstance(there, str) else 3):
        body = body_of()
        where(body)[field] = wrong
        with pytest.raises(ContractError, match=r"resolved\.json: expected") as caught:
            read(tmp_path, body)
        assert name.replace("_", "-") in str(caught.value)
        assert caught.value.remedy == "Restore it from a copy."
    body = body_of()
    del where(body)[field]
    with pytest.raises(ContractError, match=rf"expected the fields of this version's \w+Config, found no {name}\b"):
        read(tmp_path, body)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("model", "n_layers", 5), ("optim", "lr", 2.9999999999999996), ("tokenizer", "special_tokens", ["<|b|>", "<|a|>"]),
        ("data", "strict", True), ("model", "ffn", "gelu"), ("data", "source", ["a.txt"]), ("eval", "batches", 9),
    ],
)  # fmt: skip
def test_another_possible_value_differs_from_the_fingerprint(tmp_path, section, field, value):
    body = body_of()
    body["config"][section][field] = value
    with pytest.raises(ContractError, match=f"expected fingerprint {config_fingerprint(CONFIG)}, found [0-9a-f]{{64}}"):
        read(tmp_path, body)


def test_fields_of_another_version_are_named(tmp_path):
    for where, named in [((), "also experts"), (("model",), r"also model\.experts")]:
        body = body_of()
        inner = body["config"]
        for part in where:
            inner = inner[part]
        inner["experts"] = 8
        with pytest.raises(ContractError, match=f"expected the fields of this version's .*Config, found {named}"):
            read(tmp_path, body)
    body = body_of()
    del body["config"]["optim"]
    with pytest.raises(ContractError, match="found no optim"):
        read(tmp_path, body)
    body = body_of()
    body["config"]["optim"] = [1]
    with pytest.raises(ContractError, match=r"expected a section optim, found \[1\]"):
        read(tmp_path, body)
    with pytest.raises(ContractError, match="expected format 1, found format 2"):
        read(tmp_path, body_of() | {"format": 2})


def test_fields_that_no_longer_go_together_are_refused_with_the_file(tmp_path):
    body = body_of()
    body["config"]["model"]["n_heads"] = 7
    with pytest.raises(ContractError, match=r"resolved\.json: expected --model\.n-heads to be a divisor of .*, found 7"):
        read(tmp_path, body)


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b'{"a": 1'])
def test_a_resolved_config_that_is_no_json_is_refused(tmp_path, raw):
    with pytest.raises(ContractError, match=r"contract 'config' is broken at .*resolved\.json: expected JSON, found"):
        read(tmp_path, raw)


@pytest.mark.parametrize("body", [[], {}, 3, {"config": {}}, body_of() | {"more": 1}, body_of() | {"config": []}])
def test_other_json_is_no_resolved_config(tmp_path, body):
    with pytest.raises(InputError, match="expected the resolved config of a run, found other JSON"):
        read(tmp_path, body)


# ---- comparing and describing ------------------------------------------------------------------------------------


def test_differing_fields_are_listed_with_both_values_and_runtime_fields_are_not():
    other = dataclasses.replace(
        CONFIG, name="b", optim=OptimConfig(lr=2, eps=1e-30), train=TrainConfig(batch_size=64, steps=2000)
    )
    assert differing_fields(CONFIG, other) == ["--optim.lr: 3.0 there, 2.0 here", "--train.steps: 1000 there, 2000 here"]
    assert differing_fields(CONFIG, dataclasses.replace(CONFIG, name="b")) == []


def test_derived_numbers_are_described():
    model = ModelConfig(d_model=64, n_heads=4, n_kv_heads=2, n_layers=3, context_length=32)
    text = "\n".join(describe(RunConfig(model=model, train=TrainConfig(batch_size=12, grad_accum=3))))
    for words in ("3 layers, width 64, 4 heads x 16 over 2 key/value heads, swiglu 192", "12 rows = 384 tokens a step, in 3"):
        assert words in text
