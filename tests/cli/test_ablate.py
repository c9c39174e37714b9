"""`jaxlm ablate`: what it lists, what it refuses, and a run beside a base that was there already."""

import shutil

import pytest

from jaxlm.run import Run


def test_the_list_says_what_each_changes_and_trains_nothing(cli, tmp_path):
    said = cli("ablate", "--list")
    assert said.status == 0
    assert "precision float16, loss_scaling False" in said.out
    assert max(map(len, said.out.splitlines())) <= 80
    assert cli("ablate", "--list", "silu", "--json").json()["ablations"]["silu"] == {"model.ffn": "silu", "model.d_ff": 288}
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["nothing"], "nothing: expected an ablation, no-norm"),
        (["--tokens", "0"], "--tokens: expected a number above 0, found 0"),
        (["--minutes", "1", "--tokens", "9"], "--minutes: expected no --tokens beside it"),
        (["--config", "nowhere.py"], "nowhere.py: expected a config"),
        (["--model.n-heads", "3"], "--model.n-heads: expected a divisor"),
    ],
)
def test_wrong_usage_is_one_line_before_anything_is_trained(words, why, cli, tmp_path):
    said = cli("ablate", *words)
    assert (said.status, said.out) == (2, "")
    assert why in said.err
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.slow
def test_a_base_that_is_there_is_not_trained_again_and_an_ablation_is_set_beside_it(cli, tiny, finished, tmp_path):
    out = tmp_path / "here" / "runs"
    shutil.copytree(finished, out / "base")
    before = (out / "base" / "events.jsonl").read_bytes()
    words = ("ablate", "no-positions", "--config", tiny, "--out", out)
    said = cli(*words, "--html", "page.html")
    assert said.status == 0
    assert (out / "base" / "events.jsonl").read_bytes() == before
    run, base = Run.load(out / "no-positions"), Run.load(out / "base")
    assert (run.step, run.config.model.pos, run.config.optim) == (12, "none", base.config.optim)
    assert run.manifest.parents == base.manifest.parents  # the base's tokenizer and data
    assert not (out / "no-positions" / "data").exists()
    shown = said.out[said.out.index("\nbase  ") :]
    assert max(map(len, shown.splitlines()[:-1])) <= 80
    assert "pos none" in shown
    assert (tmp_path / "here" / "page.html").read_text().count("<figure") == 2
    runs = cli(*words, "--json").json()["runs"]
    losses = [each.telemetry()[-1]["validation"]["loss"] for each in (base, run)]
    assert [(each["name"], each["step"], each["validation_loss"]) for each in runs] == [
        ("base", 12, losses[0]),
        ("no-positions", 12, losses[1]),
    ]
