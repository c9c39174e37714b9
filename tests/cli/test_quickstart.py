"""`jaxlm quickstart`: every stage in one command, whatever the size of the model."""

from __future__ import annotations

from jaxlm.cli import quickstart
from jaxlm.cli.quickstart import PROMPTS


def test_a_context_shorter_than_the_prompts_and_the_text_is_no_obstacle(cli, tiny, run_copy, monkeypatch):
    monkeypatch.setattr(quickstart, "CONFIG", str(tiny))
    said = cli("quickstart", "--out", run_copy, "--json")
    assert said.status == 0
    body = said.json()
    assert [sample["prompt"] for sample in body["samples"]] == [prompt[:15] for prompt in PROMPTS]
    assert all(1 <= len(sample["token_ids"]) <= 16 for sample in body["samples"])
    assert body["broken"] == []
