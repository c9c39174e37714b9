"""A base and its ablations: trained once; what ends a run is a result; where a loss leaves its level; table, curves, page."""

import dataclasses
import importlib
import json
import math
import re

import numpy as np
import pytest

from jaxlm.config.ablations import at_tokens
from jaxlm.contract import ContractError
from jaxlm.report.ablations import ablations_page, drawn, fate, levels, row
from jaxlm.run import Layout
from jaxlm.train.ablate import STOPPED, ablate, diverged_after, outcome_of, tokens_in
from jaxlm.watch import ChainedLog, number
from tests.conftest import tiny_config

module = importlib.import_module("jaxlm.train.ablate")
MADE = {"base": {}, "no-norm": {"model.norm": "none"}, "wild": {"optim.lr": 9.0}, "refused": {"model.pos": "none"}}
STEPS, TOKENS = 60, 60 * 4 * 32


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Outcomes, and the configs that were trained, with runs made up: of `wild` the loss leaves, and too many steps skip."""
    folder, calls = tmp_path_factory.mktemp("ablations"), []

    def fit(cfg, *, out, say):
        calls.append((out.name, cfg))
        prepare = importlib.import_module("jaxlm.train.prepare")
        cfg = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, vocab_size=300))
        layout = Layout(out)
        with layout.locked():
            prepare.claim(cfg, layout)
        if out.name == "refused":
            raise ContractError("probe initial_loss", artifact=out, expected="ln V", found="9")
        with ChainedLog(layout.telemetry) as log, ChainedLog(layout.events) as events:
            for step in range(1, cfg.train.steps + 1):
                wild = out.name == "wild" and step > 20
                if out.name == "wild" and step == 41:
                    events.append({"event": "alarm", "detector": "nonfinite", "step": 40})
                    raise ContractError("step", artifact=out, expected="fewer than 10", found="10")
                loss = number(math.nan if wild and step > 38 else 9.0 if wild else 5.7 - 0.02 * step)
                validation = {"validation": {"loss": loss}} if step % cfg.eval.every == 0 else {}
                log.append({"step": step, "loss": loss, **validation})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "fit", fit)
        base, seen = dataclasses.replace(tiny_config(steps=STEPS)), []
        first = ablate(base, MADE, folder, tokens=TOKENS, say=print, each=seen.append)
        assert [outcome.name for outcome in seen] == list(MADE)
        count = len(calls)
        again = ablate(base, MADE, folder, tokens=TOKENS, say=print, each=seen.append)
        assert len(calls) == count, "what is there is not done again"
    assert again == first or str(again) == str(first)  # NaN is unequal to itself
    return {outcome.name: outcome for outcome in first}, dict(calls), folder


def test_the_ablations_use_the_data_of_the_base(made):
    _, configs, folder = made
    assert (configs["base"].tokenizer.path, configs["base"].data.path) == ("", "")
    for name in ("no-norm", "wild"):
        assert configs[name].tokenizer.path == str(folder / "base" / "tokenizer")
        assert configs[name].data.path == str(folder / "base" / "data")
        assert configs[name].name == name


def test_what_ends_a_run_is_a_result_and_why_is_kept(made):
    outcomes, _, folder = made
    assert [outcome.ended for outcome in outcomes.values()] == [True] * 4
    assert set(json.loads((folder / STOPPED).read_text())) == {"wild", "refused"}
    assert outcomes["wild"].stopped == "step: expected fewer than 10, found 10"
    assert (outcomes["wild"].diverged, outcomes["wild"].alarms) == (20, {"nonfinite": 1})
    assert [fate(outcome) for outcome in outcomes.values()] == [
        "–", "–", "stopped at 40: step", "refused: probe initial_loss"
    ]  # fmt: skip
    assert outcomes["no-norm"].parameters < outcomes["base"].parameters == outcomes["wild"].parameters
    json.dumps([outcome.as_json() for outcome in outcomes.values()], allow_nan=False)


def test_what_is_broken_is_no_result(made, tmp_path, monkeypatch):
    def fit(cfg, *, out, say):
        raise ContractError("data", artifact=out, expected="a", found="b")

    monkeypatch.setattr(module, "fit", fit)
    with pytest.raises(ContractError, match="'data' is broken"):
        ablate(tiny_config(), {"base": {}}, tmp_path, tokens=TOKENS, say=print, each=print)
    assert not (tmp_path / STOPPED).exists()


def test_other_runs_of_the_same_name_are_not_taken_for_these(made):
    _, _, folder = made
    cfg = at_tokens(tiny_config(steps=STEPS), {"model.norm": "none"}, 2 * TOKENS)
    assert not module._same(outcome_of("no-norm", {}, folder / "no-norm").config, cfg)


FALLING = [6.0 - 3.0 * step / 99 for step in range(100)]


@pytest.mark.parametrize(
    ("losses", "steps", "after"),
    [
        ([], 100, None),
        (FALLING, 100, None),
        (FALLING[:50] + [9.0] * 20 + FALLING[50:80], 100, None),  # a spike that it came back from
        (FALLING[:50] + [9.0] * 50, 100, 50),
        (FALLING[:50] + [math.nan] * 50, 100, 50),
        ([math.nan] * 9, 9, 0),
        ([5.0] + [math.inf] * 8, 9, 1),
        ([6.0 + 0.05 * step for step in range(100)], 100, 12),  # up from the first step on
        ((np.array(FALLING) + np.tile([1.2, -1.2], 50)).tolist(), 100, None),  # the noise of small batches
        (np.repeat(FALLING[:50] + [9.0] * 50, 40).tolist(), 4000, 2000),
    ],
)
def test_where_a_loss_leaves_its_lowest_level_for_good(losses, steps, after):
    assert diverged_after(losses, steps=steps) == after


def test_the_table_the_curves_and_the_page_show_every_run_on_one_scale(made):
    outcomes = list(made[0].values())
    for width in (80, 60):
        lines = drawn(outcomes, width=width)
        assert len(lines) == len(outcomes) + 1
        assert max(map(len, lines[:-1])) <= width
    assert "█" in lines[2]
    assert "×" in lines[2]
    assert row(outcomes[1])[:2] == ("no-norm", "norm none")
    page = ablations_page(outcomes)
    assert page.count("<figure") == page.count("<svg") == len(outcomes)
    assert page.count('class="broke"') == 1
    assert "refused: probe initial_loss" in page
    assert not [points for points in re.findall(r'points="([^"]*)"', page) if re.search("[a-z]", points)]


def test_a_curve_runs_over_the_tokens_whatever_the_size_of_a_step(made):
    base = made[0]["base"]
    assert levels(base, 3) == pytest.approx([5.7 - 0.02 * 10.5, 5.7 - 0.02 * 30.5, 5.7 - 0.02 * 50.5])
    assert levels(dataclasses.replace(base, losses=base.losses[:30]), 2)[1] == math.inf
    assert len(levels(base, 200)) == 200


def test_minutes_become_tokens_once(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_seconds_of_a_step", lambda base: 0.1)
    base = tiny_config()
    assert tokens_in(base, 10.0, runs=10, folder=tmp_path) == 400 * base.tokens_per_step  # (600 s / 10 - 20 s) / 0.1 s
    monkeypatch.setattr(module, "_seconds_of_a_step", lambda base: 0.2)
    assert tokens_in(base, 10.0, runs=10, folder=tmp_path) == 400 * base.tokens_per_step
    assert tokens_in(base, 5.0, runs=10, folder=tmp_path) == 50 * base.tokens_per_step


def test_a_step_of_the_base_can_be_timed():
    assert 0.0 < module._seconds_of_a_step(tiny_config()) < 60.0
