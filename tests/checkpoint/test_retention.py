"""Which checkpoints stay, against a definition written another way."""

from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.checkpoint.retention import steps_to_keep

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
