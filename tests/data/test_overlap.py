"""Windows that stand in both splits, or twice in one: counted like a brute-force count, and judged by the config."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest

from jaxlm.config.schema import ConfigError, DataConfig
from jaxlm.contract import ContractError, Manifest
from jaxlm.data import TokenStream, build_shards, open_shards
from jaxlm.data import overlap as module
from jaxlm.data.order import mix
from jaxlm.data.overlap import overlap, require_little_overlap, window_hashes, window_of, words_of

WINDOW = 32


def stream(*documents):
    """A stream of documents of ids, with 999 at their borders."""
    whole = [np.concatenate([[999], ids, [999]]).astype("<u2") for ids in documents]
    return TokenStream((np.concatenate(whole),), np.array([0]), np.cumsum([0, *map(len, whole)]))


def windows(split):
    """All windows of a split, as tuples, with their counts."""
    whole = [split.document(i)[1:-1].tolist() for i in range(split.documents)]
    return Counter(tuple(ids[at : at + WINDOW]) for ids in whole for at in range(len(ids) - WINDOW + 1))


def shares(train, val):
    """`overlap` by brute force."""
    ours, theirs = windows(train), windows(val)
    inside = sum(count for window, count in theirs.items() if window in ours)
    twice = sum(count for count in ours.values() if count > 1)
    return inside / max(theirs.total(), 1), twice / max(ours.total(), 1), theirs.total(), ours.total()


def texts(rng, count, length=400):
    return [rng.integers(0, 500, rng.integers(1, length)) for _ in range(count)]


@pytest.mark.parametrize("chunk", [33, 100, 1 << 16])
def test_shares_are_those_of_a_count_of_all_windows(monkeypatch, chunk):
    monkeypatch.setattr(module, "CHUNK", chunk)
    rng = np.random.default_rng(0)
    ours, theirs = texts(rng, 20), texts(rng, 8)
    for more, other in (([], []), (ours[:6], []), ([], ours[3:6]), ([ours[0][:40]] * 5, [ours[1][5:200], ours[2]])):
        train, val = stream(*ours, *more), stream(*theirs, *other)
        assert overlap(train, val, WINDOW) == pytest.approx(shares(train, val), abs=1e-6)


def test_a_window_does_not_cross_the_border_of_a_document():
    ids = np.arange(3 * WINDOW)
    apart = [ids[:WINDOW], ids[WINDOW : 2 * WINDOW - 1], ids[:5]]
    assert overlap(stream(*apart), stream(ids), WINDOW) == (round(1 / (2 * WINDOW + 1), 6), 0.0, 2 * WINDOW + 1, 1)
    assert overlap(stream([1, 2]), stream([1]), WINDOW) == (0.0, 0.0, 0, 0)


def test_a_window_that_differs_in_one_id_or_in_its_order_is_another():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 2, (3000, WINDOW))
    hashes = [int(window_hashes(mix(row.astype(np.uint64) + np.uint64(1)), WINDOW)[0]) for row in ids]
    assert len(set(hashes)) == len({tuple(row) for row in ids.tolist()})


def test_of_many_windows_some_are_kept_and_the_shares_are_near(monkeypatch):
    rng = np.random.default_rng(1)
    ours = texts(rng, 300)
    train, val = stream(*ours, *ours[:60]), stream(*texts(rng, 30), *ours[100:130])
    monkeypatch.setattr(module, "KEPT", 2000)
    found, true = overlap(train, val, WINDOW), shares(train, val)
    assert 500 < found.train_windows < 5000 < true[3]
    assert found[:2] == pytest.approx(true[:2], abs=0.1)
    assert overlap(train, val, WINDOW) == found


def test_shards_state_it_and_those_from_before_open_without(tmp_path, tokenizer):
    rng = np.random.default_rng(0)
    (tmp_path / "a.jsonl").write_text(
        "".join(
            json.dumps({"text": f"{number} " + " ".join(map(str, rng.integers(0, 10**6, 60)))}) + "\n" for number in range(30)
        )
    )
    cfg = DataConfig(source=(str(tmp_path / "a.jsonl"),), val_fraction=0.3)
    data = build_shards(cfg, tokenizer, tmp_path / "out")
    facts = data.manifest.facts["overlap"]
    size = data.manifest.facts["splits"]["train"]
    assert facts["window"] == window_of(size["tokens"], size["bytes"])
    assert facts == {"window": facts["window"], **overlap(data.train, data.val, facts["window"])._asdict()}
    assert (facts["val_in_train"], facts["train_repeated"]) == (0.0, 0.0)
    assert facts["val_windows"] > 1000
    require_little_overlap(data.manifest, cfg, artifact=data.path)

    old = {name: value for name, value in data.manifest.facts.items() if name != "overlap"}
    dataclasses.replace(data.manifest, facts=old).save(data.path)
    require_little_overlap(open_shards(data.path).manifest, cfg, artifact=data.path)

    twice = build_shards(dataclasses.replace(cfg, source=cfg.source * 2), tokenizer, tmp_path / "twice")
    with pytest.raises(
        ContractError, match=r"'data' is broken at .*twice: expected at most 50% of the training text there twice"
    ):
        require_little_overlap(twice.manifest, cfg, artifact=twice.path)
    require_little_overlap(twice.manifest, dataclasses.replace(cfg, max_repeated=1.0), artifact=twice.path)


def judged(cfg=DataConfig(), **facts):
    stated = {"window": 32, "val_in_train": 0.0, "train_repeated": 0.0, "val_windows": 5000, "train_windows": 9000, **facts}
    require_little_overlap(Manifest("data", {"overlap": stated}), cfg, artifact="shards")


def test_a_share_is_judged_where_it_is_known():
    judged(val_in_train=0.25, train_repeated=0.5)
    judged(val_in_train=0.9, val_windows=900)
    judged(DataConfig(max_overlap=1.0, max_repeated=1.0), val_in_train=1.0, train_repeated=1.0)
    with pytest.raises(
        ContractError, match=r"at most 25% of the validation text .* found 26\.0% of 5,000 .*--data\.max-overlap"
    ):
        judged(val_in_train=0.26)
    with pytest.raises(ContractError, match=r"at most 10% of the training text there twice.*--data\.max-repeated"):
        judged(DataConfig(max_repeated=0.1), train_repeated=0.2)
    with pytest.raises(ConfigError, match=r"--data\.max-overlap: expected a share from 0 to 1"):
        DataConfig(max_overlap=1.5)


def test_a_window_stands_for_as_many_bytes_whatever_the_vocabulary():
    assert [window_of(1000, size) for size in (1000, 1001, 1999, 2000, 4000, 4001, 6500)] == [128, 128, 128, 64, 32, 32, 32]
    assert window_of(1, 10_000) == 1
    for tokens, size in ((7, 9), (1000, 4321), (12_345_678, 55_555_555)):
        assert 128 <= window_of(tokens, size) * size / tokens < 256


def test_the_standard_library_has_little(tmp_path, tokenizer):
    cfg = DataConfig(max_bytes=2_000_000, val_fraction=0.2)
    data = build_shards(cfg, tokenizer, tmp_path / "out")
    require_little_overlap(data.manifest, DataConfig(max_overlap=0.15, max_repeated=0.3), artifact=data.path)


def test_a_run_refuses_what_its_config_does_not_allow(finished):
    from jaxlm.run import Run
    from jaxlm.train.prepare import prepare

    run = Run.load(finished)
    strict = dataclasses.replace(run.config, data=dataclasses.replace(run.config.data, max_repeated=0.0))
    with pytest.raises(ContractError, match="at most 0% of the training text there twice"):
        prepare(strict, run.layout, say=print)


def test_a_share_that_is_allowed_is_said_from_one_in_a_hundred_on():
    stated = {"window": 32, "val_in_train": 0.01, "train_repeated": 0.0, "val_windows": 5000, "train_windows": 9000}
    assert words_of(Manifest("data", {"overlap": stated})) == words_of(Manifest("data", {})) == []
    assert words_of(Manifest("data", {"overlap": {**stated, "val_in_train": 0.2, "val_windows": 999}})) == []
    assert words_of(Manifest("data", {"overlap": {**stated, "val_in_train": 0.123, "train_repeated": 0.02}})) == [
        "12.3% of the validation text stands in the training text too",
        "2.0% of the training text stands there twice",
    ]
