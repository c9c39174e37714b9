"""`jaxlm generate`: text for a person, ids and reasons for a script."""

from jaxlm.infer import Engine, Sampling
from jaxlm.run import Run

from .conftest import listing


def test_json_has_text_ids_and_reason_and_equals_the_engine(cli, finished):
    words = ("generate", finished, "--prompt", "def ", "--max-new-tokens", "9", "--seed", "3", "--no-probes")
    body = cli(*words, "--json").json()
    (wanted,) = Engine.of(Run.load(finished), probes=False).generate(["def "], max_new_tokens=9, sampling=Sampling(seed=3))
    assert (body["text"], body["token_ids"], body["finish_reason"]) == (wanted.text, wanted.token_ids, wanted.finish_reason)
    assert (body["prompt"], body["run"], body["step"]) == ("def ", str(finished), 12)
    said = cli(*words)
    assert (said.status, said.out, said.err) == (0, f"def {wanted.text}\n", "")


def test_steps_stops_and_limits_are_taken(cli, finished):
    words = ("generate", finished, "--prompt", "a", "--max-new-tokens", "9", "--temperature", "0", "--json", "--no-probes")
    newest, older = cli(*words).json(), cli(*words, "--step", "8").json()
    assert (newest["step"], older["step"]) == (12, 8)
    assert len(newest["token_ids"]) <= 9
    text = older["text"]
    stopped = cli(*words, "--step", "8", "--stop", text[1:3]).json()
    assert (stopped["text"], stopped["finish_reason"]) == (text[: text.find(text[1:3])], "stop")
    assert len(cli("generate", finished, "--json", "--no-probes").json()["token_ids"]) <= 31


def test_a_run_is_probed_before_it_writes_and_nothing_is_shown_where_that_fails(cli, finished, monkeypatch):
    from jaxlm.infer import probes

    words = ("generate", finished, "--prompt", "a", "--max-new-tokens", "2")
    monkeypatch.setattr(probes, "PROBES", (probes.prompt,))
    before = listing(finished)
    assert cli(*words).status == 0
    monkeypatch.setattr(Engine, "prompt_ids", lambda self, prompt: self.tokenizer.encode_ordinary(prompt))
    said = cli(*words)
    assert (said.status, said.out) == (1, "")
    assert "probe prompt" in said.err
    assert cli(*words, "--no-probes").status == 0
    assert listing(finished) == before
