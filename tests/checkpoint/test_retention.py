"""Which checkpoints stay, against a definition written another way."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.checkpoint.retention import require_kept, steps_to_keep
from jaxlm.contract import ContractError

metrics = st.dictionaries(st.integers(0, 40), st.one_of(st.none(), st.sampled_from([0.5, 1.0, 1.5, 2.0])), min_size=1)


@settings(max_examples=300, deadline=None)
@given(metrics=metrics, last=st.integers(1, 6), best=st.integers(0, 6), draw=st.data())
def test_a_step_stays_if_few_are_newer_or_few_are_better_or_it_was_just_saved(metrics, last, best, draw):
    always = draw.draw(st.sampled_from(sorted(metrics)))
    kept = steps_to_keep(metrics, keep_last=last, keep_best=best, always=always)
    for step, metric in metrics.items():
        newer = sum(other > step for other in metrics)
        better = sum(
            value is not None and (value < metric or (value == metric and other < step))
            for other, value in metrics.items()
            if metric is not None
        )
        assert (step in kept) == (step == always or newer < last or (metric is not None and better < best))


def test_of_equal_metrics_the_older_step_is_the_best():
    assert steps_to_keep({1: 2.0, 2: 2.0, 3: 3.0, 4: None}, keep_last=1, keep_best=1, always=4) == {1, 4}


@settings(max_examples=300, deadline=None)
@given(metrics=metrics, last=st.integers(1, 6), best=st.integers(0, 6), draw=st.data())
def test_the_right_choice_is_let_through_and_any_other_is_not(metrics, last, best, draw):
    rule = {"keep_last": last, "keep_best": best, "always": draw.draw(st.sampled_from(sorted(metrics)))}
    kept = steps_to_keep(metrics, **rule)
    require_kept(metrics, kept, **rule, artifact="checkpoints")
    other = kept ^ {draw.draw(st.sampled_from(sorted(metrics)))}
    with pytest.raises(ContractError):
        require_kept(metrics, other, **rule, artifact="checkpoints")


@pytest.mark.parametrize(
    ("kept", "expected", "found"),
    [
        ({30, 40}, "step 20 to stay, 2 newer, 0 better, loss 1.5", "go"),
        ({20}, "step 40 to stay, 0 newer, 2 better, loss 2.5", "go"),
        ({10, 20, 40}, "step 10 to go, 3 newer, 3 better, loss 3", "stay"),
    ],
)
def test_what_stays_or_goes_against_the_rule_is_named(kept, expected, found):
    losses = {10: 3.0, 20: 1.5, 30: 2.0, 40: 2.5}
    with pytest.raises(ContractError, match=f"'checkpoint' is broken at c: .* {expected}, found it among those that {found}"):
        require_kept(losses, kept, keep_last=1, keep_best=1, always=40, artifact="c")
