"""The split: by the hash of the text, whatever stands around it."""

import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.config.schema import DataConfig
from jaxlm.data import split_of, training_texts


@settings(deadline=None, max_examples=100)
@given(st.text(), st.floats(0.001, 0.999))
def test_the_split_is_the_written_rule(text, share):
    head = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert split_of(text, share) == ("val" if int(head, 16) / 2**64 < share else "train")


def test_the_share_is_what_was_asked_for_and_grows_without_exchange():
    texts = [f"document {i}" for i in range(4000)]
    sides = {share: {t for t in texts if split_of(t, share) == "val"} for share in (0.02, 0.1, 0.5)}
    for share, found in sides.items():
        assert abs(len(found) / 4000 - share) < 4 * (share * (1 - share) / 4000) ** 0.5
    assert sides[0.02] < sides[0.1] < sides[0.5]


def test_known_texts_keep_their_side():
    # sha256("") begins with e3b0c442, sha256("abc") with ba7816bf.
    assert [split_of("", share) for share in (0.889, 0.89)] == ["train", "val"]
    assert [split_of("abc", share) for share in (0.728, 0.729)] == ["train", "val"]


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1), slice(0, None, 3)])
def test_training_texts_do_not_depend_on_their_neighbours(tmp_path, texts, order):
    chosen = texts[order]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in chosen))
    found = list(training_texts(DataConfig(source=(str(tmp_path),), val_fraction=0.3)))
    assert found == [t for t in chosen if split_of(t, 0.3) == "train"]
    assert 0 < len(found) < len(chosen)
