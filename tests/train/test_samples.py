"""What a model writes while it is trained: as inference does, without a mark on the run, on every mesh."""

import dataclasses
import importlib

import jax
import pytest

from jaxlm.config import schema
from jaxlm.infer import Engine, Sampling
from jaxlm.parallel import make_mesh
from jaxlm.report.run import run_page
from jaxlm.report.source import Source
from jaxlm.run import Run
from jaxlm.train import fit
from jaxlm.train.samples import GIVEN, write
from jaxlm.train.state import abstract_state
from tests.conftest import tiny_config


def samples(path):
    return [event for event in Run.load(path).events() if event["event"] == "sample"]


def test_every_validation_comes_with_what_the_model_writes_then(finished):
    run = Run.load(finished)
    found = samples(finished)
    assert [event["step"] for event in found] == [4, 8, 12]
    last, context = found[-1], run.config.model.context_length
    assert last["prompt_ids"] == run.data.val.document(0)[: context // 3].tolist()
    assert last["pieces"] == [run.tokenizer.decode([token]) for token in (*last["prompt_ids"], *last["ids"])]
    assert (last["prompt"], last["text"]) == tuple(map(run.tokenizer.decode, (last["prompt_ids"][1:], last["ids"])))
    greedy = Engine.of(run, probes=False).generate([last["prompt"]], max_new_tokens=20, sampling=Sampling(temperature=0.0))
    assert greedy[0].token_ids[: len(last["ids"])] == [token for token in last["ids"] if token != run.tokenizer.eos_id][:20]


def test_the_page_shows_the_tokens_and_which_were_given(finished):
    source = Source(finished)
    source.read()
    page, last = run_page([source]), samples(finished)[-1]
    assert page.count(' prompt"') == 3 * len(last["prompt_ids"])
    assert page.count('<span class="t c') == sum(len(event["pieces"]) for event in samples(finished))


@pytest.mark.slow
@pytest.mark.parametrize("every", [0, 2])
def test_a_run_is_bit_by_bit_the_same_with_fewer_samples_or_none(every, finished, tmp_path):
    config = tiny_config()
    config = dataclasses.replace(config, watch=dataclasses.replace(config.watch, samples_every=every))
    fit(config, out=tmp_path / "run", say=lambda line: None)
    assert [event["step"] for event in samples(tmp_path / "run")] == {0: [], 2: [8, 12]}[every]
    assert (tmp_path / "run" / "telemetry.jsonl").read_bytes() == (finished / "telemetry.jsonl").read_bytes()
    leaves = [Run.load(path).checkpoint.facts["leaves"] for path in (tmp_path / "run", finished)]
    assert leaves[0] == leaves[1]


MESHES = {
    "rows": schema.MeshConfig(data=2, fsdp=4, rules="fsdp"),
    "heads and vocabulary": schema.MeshConfig(fsdp=2, tensor=2, rules="fsdp_tp"),
    "sequence": schema.MeshConfig(context=4, rules="dp"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_the_same_is_written_on_every_mesh(name, finished):
    run = Run.load(finished)
    cfg = dataclasses.replace(run.config, mesh=MESHES[name], train=dataclasses.replace(run.config.train, batch_size=8))
    mesh = make_mesh(cfg.mesh)
    with jax.set_mesh(mesh):
        layout = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(cfg, mesh).params)
        parts = importlib.import_module("jaxlm.train.prepare").Parts(cfg, run.tokenizer, run.data)
        written = write(jax.device_put(run.params, layout), parts, mesh)
    assert (written.prompt_ids, written.ids) == (samples(finished)[-1]["prompt_ids"], samples(finished)[-1]["ids"])


def test_a_document_that_ends_is_not_gone_on_with_and_a_long_context_is_not_filled(finished, monkeypatch):
    module = importlib.import_module("jaxlm.train.samples")
    run = Run.load(finished)
    cfg = dataclasses.replace(run.config, model=dataclasses.replace(run.config.model, context_length=4096))
    said = iter([7, 9, run.tokenizer.eos_id])
    monkeypatch.setattr(module, "_likeliest", lambda *_: [next(said)])
    monkeypatch.setattr(module.processes, "whole", lambda value: value)
    written = write(run.params, module.Parts(cfg, run.tokenizer, run.data), make_mesh(cfg.mesh))
    assert (len(written.prompt_ids), written.ids) == (GIVEN, [7, 9, run.tokenizer.eos_id])
    assert written.event(run.tokenizer)["pieces"][-1] == "<|endoftext|>"


def test_a_device_without_room_for_samples_trains_on(run_copy, finished, monkeypatch):
    import shutil

    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 12 bytes.\nmore")

    shutil.rmtree(run_copy / "checkpoints" / "00000012")
    monkeypatch.setattr(importlib.import_module("jaxlm.train.samples"), "write", full)
    fit(tiny_config(), out=run_copy, say=lambda line: None)
    assert (run_copy / "telemetry.jsonl").read_bytes() == (finished / "telemetry.jsonl").read_bytes()
    assert [event["step"] for event in samples(run_copy)] == [4, 8, 12]  # those of before
