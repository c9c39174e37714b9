"""The check between two neighbouring artifacts: parents, every relation, what the error says."""

import dataclasses

import pytest

from jaxlm.contract import PARENTS, RELATIONS, ContractError, Finding, InputError, Manifest, check, compare

# For every pair of kinds and every relation: two values that agree, and one of the downstream side that does not.
CASES = {
    ("tokenizer", "data"): [(300, 300, 299), ("p", "p", "q"), (300, 299, 300), ("bos", "bos", "eos")],
    ("tokenizer", "model"): [(300, 300, 301)],
    ("data", "model"): [(299, 300, 299)],
    ("model", "checkpoint"): [("s", "s", "t")],
    ("tokenizer", "evaluation"): [("bos", "bos", "eos")],
}
EACH = [(pair, at) for pair, cases in CASES.items() for at in range(len(cases))]


def neighbours(pair):
    """Two manifests in whose relations everything agrees."""
    up, down = {}, {}
    for relation, (above, below, _) in zip(RELATIONS[pair], CASES[pair], strict=True):
        up[relation.upstream], down[relation.downstream] = above, below
    upstream = Manifest(pair[0], up)
    return upstream, Manifest(pair[1], down, {pair[0]: upstream.fingerprint})


def changed(manifest, name, value):
    return dataclasses.replace(manifest, facts={**manifest.facts, name: value})


def test_every_relation_has_a_case():
    assert {pair: len(relations) for pair, relations in RELATIONS.items()} == {pair: len(c) for pair, c in CASES.items()}


@pytest.mark.parametrize("pair", CASES)
def test_neighbours_that_agree_give_kept_findings(pair):
    upstream, downstream = neighbours(pair)
    findings = check(upstream, downstream)
    assert len(findings) == 1 + len(CASES[pair])
    assert all(f.kept and f.contract == pair[1] for f in findings)


@pytest.mark.parametrize(("pair", "at"), EACH)
def test_each_relation_that_breaks_is_named_with_both_values(pair, at):
    upstream, downstream = neighbours(pair)
    relation, (above, _, wrong) = RELATIONS[pair][at], CASES[pair][at]
    downstream = changed(downstream, relation.downstream, wrong)
    assert sum(not f.kept for f in compare(upstream, downstream)) == 1
    with pytest.raises(ContractError) as caught:
        check(upstream, downstream)
    error = caught.value
    stated = f"{pair[0]}.{relation.upstream} {relation.words} {pair[1]}.{relation.downstream}: {above!r}"
    assert (error.contract, error.artifact, error.expected, error.found) == (pair[1], pair[1], stated, repr(wrong))
    assert error.remedy == f"Use the {pair[0]} that it was made with, or make it again with this one."
    assert str(error) == f"contract '{pair[1]}' is broken at {pair[1]}: expected {stated}, found {wrong!r}. {error.remedy}"


@pytest.mark.parametrize(("pair", "at"), EACH)
@pytest.mark.parametrize("side", [0, 1])
def test_a_fact_that_one_side_does_not_state_breaks_the_contract(pair, at, side):
    sides = list(neighbours(pair))
    name = (RELATIONS[pair][at].upstream, RELATIONS[pair][at].downstream)[side]
    sides[side] = dataclasses.replace(sides[side], facts={k: v for k, v in sides[side].facts.items() if k != name})
    assert (f"the fact {name!r}", "none") in {(f.expected, f.found) for f in compare(*sides) if not f.kept}
    with pytest.raises(ContractError):
        check(*sides)


@pytest.mark.parametrize("pair", [(up, down) for down, parents in PARENTS.items() for up in parents])
def test_a_parent_that_is_not_recorded_breaks_the_contract(pair):
    upstream, downstream = neighbours(pair) if pair in CASES else (Manifest(pair[0], {}), Manifest(pair[1], {}))
    with pytest.raises(ContractError, match=f"a parent of kind {pair[0]}, found none"):
        check(upstream, dataclasses.replace(downstream, parents={}))


@pytest.mark.parametrize("pair", CASES)
def test_another_parent_is_refused_though_every_fact_agrees(pair):
    upstream, downstream = neighbours(pair)
    other = changed(upstream, "unrelated", 1)
    with pytest.raises(ContractError) as caught:
        check(other, downstream)
    assert caught.value.expected == f"{pair[0]} {upstream.fingerprint}"
    assert caught.value.found == f"{pair[0]} {other.fingerprint}"


def test_strangers_have_no_contract():
    with pytest.raises(ContractError, match=r"expected a contract with evaluation, found none\. They are not neighbours"):
        check(Manifest("evaluation", {}), Manifest("tokenizer", {}))


def test_a_check_takes_manifests_artifacts_and_paths(tmp_path):
    upstream, downstream = neighbours(("tokenizer", "model"))
    for manifest in (upstream, downstream):
        (tmp_path / manifest.kind).mkdir()
        manifest.save(tmp_path / manifest.kind)

    @dataclasses.dataclass
    class Loaded:
        manifest: Manifest

    for up in (upstream, Loaded(upstream), tmp_path / "tokenizer", str(tmp_path / "tokenizer")):
        assert check(up, downstream) == check(upstream, Loaded(downstream))
    changed(downstream, "vocab_size", 7).save(tmp_path / "model")
    with pytest.raises(ContractError, match=f"broken at {tmp_path / 'model'}: expected tokenizer.vocab_size equal"):
        check(upstream, tmp_path / "model")
    with pytest.raises(TypeError, match="expected a Manifest, an artifact or a path, found int"):
        check(upstream, 3)


def test_an_error_without_a_remedy_ends_with_what_was_found():
    error = Finding("data", "here", False, 1, 2).error()
    assert str(error) == "contract 'data' is broken at here: expected 1, found 2"
    assert (error.contract, error.artifact, error.expected, error.found, error.remedy) == ("data", "here", 1, 2, "")
    assert not isinstance(error, ValueError)
    assert issubclass(InputError, ValueError)
