"""`jaxlm faults`: its list, its answers to mistakes, and, slow, a small campaign."""

import json

import pytest

from jaxlm.cli.faults import drawn
from jaxlm.cli.main import main


def test_the_list_names_all_and_plants_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["faults", "--list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["faults"]
    assert len(found) >= 60
    assert {"name", "layer", "mechanism", "incident", "seen_by"} <= set(found[0])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["mask_one_ahed"], "the nearest is mask_one_ahead"),
        (["explain"], "expected the name of a fault after it"),
        (["model", "explain"], "explain: expected it before all names, found it after one; `jaxlm faults explain model`"),
        (["--seeds", "0"], "--seeds: expected a number >= 1, found 0"),
        (["--clean", "-1"], "--clean: expected a number >= 0, found -1"),
    ],
)
def test_a_mistake_is_one_line(words, match, capsys):
    assert main(["faults", *words]) == 2
    error = capsys.readouterr().err
    assert match in error
    assert error.count("\n") == 1


def test_curves_in_letters():
    lines = drawn([4.0, 3.0, None, 9.0], [4.0, 3.0, 2.0, 1.0], width=4, height=9)
    assert lines[0] == "loss 9.00"
    assert lines[-1].startswith("1.00, step 1 to 4")
    assert sum(line.count("*") for line in lines[1:-1]) == 2
    assert sum(line.count("#") for line in lines[1:-1]) == 1
    assert drawn([None], [], width=4) == []


@pytest.mark.slow
def test_a_small_campaign(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["truncated_shard", "mask_one_ahead", "overflow_forward", "eos_ignored", "--jobs", "2", "--html", "page.html"]
    assert main(["faults", *words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    found = {each["fault"]: each for each in result["faults"]}
    assert found["truncated_shard"]["by"] == "data"
    assert found["mask_one_ahead"]["by"] == "causality"
    assert found["mask_one_ahead"]["stage"] == "probe"
    assert found["mask_one_ahead"]["damage"] > 0.2
    where = {name: found["overflow_forward"][name] for name in ("by", "layer", "operation", "step_planted", "step_detected")}
    assert where == {"by": "nonfinite", "layer": 1, "operation": "mul", "step_planted": 141, "step_detected": 141}
    assert "nan_loss" in found["overflow_forward"]["public_rules"]
    page = (tmp_path / "page.html").read_text()
    assert "overflow_forward" in page
    assert "<polyline" in page
    assert main(["faults", "explain", "mask_one_ahead"]) == 0  # from what is there
    said = capsys.readouterr().out
    assert "mechanism: The causal mask is off by one" in said
    assert "# with the fault" in said
