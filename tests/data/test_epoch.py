"""An epoch covers every token of a split; one that does not is refused."""

import json

import pytest

from jaxlm.config.schema import DataConfig
from jaxlm.contract import ContractError
from jaxlm.data import TokenStream, build_shards, require_whole_epoch


@pytest.fixture(scope="module")
def data(tmp_path_factory, texts, tokenizer):
    folder = tmp_path_factory.mktemp("epoch")
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    cfg = DataConfig(source=(str(folder / "a.jsonl"),), val_fraction=0.3, shard_tokens=1024)
    return build_shards(cfg, tokenizer, folder / "shards")


def test_the_rows_of_every_length_cover_the_split(data):
    assert len(data.train.shards) > 1
    for length in range(1, 200):
        require_whole_epoch(data, length)
    for length in (len(data.train) - 2, len(data.train) - 1, len(data.train), 10 * len(data.train)):
        require_whole_epoch(data, length)


@pytest.mark.parametrize("kind", ["first shard", "one row less", "one row more", "no row"])
def test_rows_that_leave_out_a_part_or_go_past_the_end_are_refused(data, kind, monkeypatch):
    real = TokenStream.rows
    rows = {
        "first shard": lambda self, length: len(self.shards[0]) // length,
        "one row less": lambda self, length: real(self, length) - 1,
        "one row more": lambda self, length: real(self, length) + 1,
        "no row": lambda self, length: 0,
    }[kind]
    monkeypatch.setattr(TokenStream, "rows", rows)
    tokens = f"{len(data.train):,}"
    with pytest.raises(
        ContractError, match=rf"expected an epoch of train that covers the {tokens} tokens .* found [\d,]+ rows"
    ):
        require_whole_epoch(data, 32)
