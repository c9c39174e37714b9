"""`jaxlm generate`: text for a person, ids and reasons for a script."""

from jaxlm.infer import Engine, Sampling
from jaxlm.run import Run


def test_json_has_text_ids_and_reason_and_equals_the_engine(cli, finished):
    words = ("generate", finished, "--prompt", "def ", "--max-new-tokens", "9", "--seed", "3")
    body = cli(*words, "--json").json()
    (wanted,) = Engine.of(Run.load(finished)).generate(["def "], max_new_tokens=9, sampling=Sampling(seed=3))
    assert (body["text"], body["token_ids"], body["finish_reason"]) == (wanted.text, wanted.token_ids, wanted.finish_reason)
    assert (body["prompt"], body["run"], body["step"]) == ("def ", str(finished), 12)
    said = cli(*words)
    assert (said.status, said.out, said.err) == (0, f"def {wanted.text}\n", "")


def test_steps_stops_and_limits_are_taken(cli, finished):
    words = ("generate", finished, "--prompt", "a", "--max-new-tokens", "9", "--temperature", "0", "--json")
    newest, older = cli(*words).json(), cli(*words, "--step", "8").json()
    assert (newest["step"], older["step"]) == (12, 8)
    assert len(newest["token_ids"]) <= 9
    text = older["text"]
    stopped = cli(*words, "--step", "8", "--stop", text[1:3]).json()
    assert (stopped["text"], stopped["finish_reason"]) == (text[: text.find(text[1:3])], "stop")
    assert len(cli("generate", finished, "--json").json()["token_ids"]) <= 31
