"""Sampling against a slow float64 filter, frequencies against the filtered distribution, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxlm.contract import InputError
from jaxlm.infer import Sampling, filtered, sample

V = 9
filter_step, draw = jax.jit(filtered), jax.jit(sample)


def slow_filter(logits, *, temperature, top_k, top_p, min_p):
    """Ids that stay, one filter after the other, and how near to a border the nearest decision was."""
    scaled = np.asarray(logits, np.float64) / temperature
    order = np.argsort(-scaled, kind="stable")
    order = order[:top_k] if top_k else order
    weights = np.exp(scaled[order] - scaled[order[0]])
    weights /= weights.sum()
    reached = np.cumsum(weights)
    nearest = min(np.abs(reached - top_p).min() if top_p < 1 else 1.0, np.abs(weights / weights[0] - min_p).min())
    last = next((i for i, total in enumerate(reached) if total >= top_p), len(order) - 1) if top_p < 1 else len(order) - 1
    kept = [i for i, weight in list(zip(order, weights, strict=True))[: last + 1] if weight >= min_p * weights[0]]
    return {i for i in range(len(scaled)) if scaled[i] >= scaled[kept[-1]]}, nearest


numbers = st.one_of(st.integers(-8, 8), st.integers(-20_000, 20_000).map(lambda i: i / 256)).map(lambda i: i / 4)


@settings(max_examples=300, deadline=None)
@given(
    logits=st.lists(numbers, min_size=V, max_size=V),
    temperature=st.sampled_from([0.25, 0.8, 1.0, 3.0]),
    top_k=st.integers(0, V + 2),
    top_p=st.one_of(st.just(1.0), st.floats(1e-3, 1.0)),
    min_p=st.one_of(st.just(0.0), st.floats(0.0, 0.99)),
)
def test_the_filters_keep_what_a_slow_filter_keeps(logits, temperature, top_k, top_p, min_p):
    expected, nearest = slow_filter(logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    assume(nearest > 1e-5)
    knobs = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p).knobs()
    found = np.asarray(filter_step(jnp.asarray([logits], jnp.float32), knobs))[0]
    assert {int(i) for i in np.flatnonzero(found > -np.inf)} == expected
    kept = sorted(expected)
    shifts = found[kept] - np.asarray(logits)[kept] / temperature
    np.testing.assert_allclose(shifts, shifts[0], atol=1e-4)


@pytest.mark.parametrize(
    ("knobs", "stay"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"top_k": 1}, [1]),
        ({"top_k": 3}, [1, 2, 3, 4]),  # 3 and 4 tie at the border
        ({"top_k": 99}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.4}, [1]),
        ({"top_p": 0.41}, [1, 2]),
        ({"top_p": 1e-6}, [1]),
        ({"min_p": 0.49}, [1, 2]),
        ({"min_p": 0.999}, [1]),
        ({"top_k": 2, "top_p": 0.65}, [1]),  # 0.4 of 0.6 is two thirds: the shares are those of what top-k left
        ({"top_k": 2, "top_p": 0.7}, [1, 2]),
    ],
)
def test_filters_on_shares_of_forty_twenty_fifteen_fifteen_and_ten(knobs, stay):
    logits = jnp.log(jnp.asarray([[0.1, 0.4, 0.2, 0.15, 0.15]]))
    logits = logits.at[0, 1].add(1e-4)  # off the border
    found = filter_step(logits, Sampling(temperature=1.0, **knobs).knobs())
    assert np.flatnonzero(np.asarray(found)[0] > -np.inf).tolist() == stay


@pytest.mark.parametrize("knobs", [{}, {"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.3}, {"temperature": 2.0, "top_k": 5}])
def test_frequencies_are_those_of_the_filtered_distribution(knobs):
    sampling = Sampling(**{"temperature": 1.0, **knobs})
    logits, size = np.random.default_rng(0).standard_normal(V).astype(np.float32), 20_000
    keys = jax.random.split(jax.random.key(7), size)
    counts = np.bincount(draw(jnp.tile(logits[None], (size, 1)), keys, sampling.knobs()), minlength=V)
    stay, _ = slow_filter(
        logits, temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p, min_p=sampling.min_p
    )
    shares = np.exp(np.asarray(logits, np.float64) / sampling.temperature) * [i in stay for i in range(V)]
    expected = size * shares / shares.sum()
    kept = sorted(stay)
    assert counts.sum() == counts[kept].sum() == size
    chi_square = ((counts[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    freedom = len(kept) - 1
    assert chi_square < freedom + 4 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("knobs", [{}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.5}])
def test_temperature_zero_takes_the_first_of_the_largest(knobs):
    logits = jnp.asarray([[1, 5, 5, 0], [7, 7, 7, 7], [-1e4, -1e30, -2, -3], [0, 0, 1e-6, 0]], jnp.float32)
    for seed in range(3):
        keys = jax.random.split(jax.random.key(seed), 4)
        assert draw(logits, keys, Sampling(temperature=0.0, **knobs).knobs()).tolist() == [1, 0, 2, 2]


@pytest.mark.parametrize("temperature", [1e-3, 1e-10, 1e-37, 1e-40, 1e-45, 1e-300])
def test_a_temperature_near_zero_takes_the_largest_however_large_the_logits(temperature):
    logits = jnp.asarray([[40.0, 50.0, 30.0, 10.0], [-400.0, -100.0, -200.0, -300.0]])
    keys = jax.random.split(jax.random.key(0), 2)
    for knobs in ({}, {"top_k": 2}, {"top_p": 0.9}, {"min_p": 0.1}):
        assert draw(logits, keys, Sampling(temperature=temperature, **knobs).knobs()).tolist() == [1, 1]


def test_a_draw_depends_on_its_row_and_its_key_alone():
    logits = jnp.asarray(np.random.default_rng(1).standard_normal((4, V)), jnp.float32)
    knobs = Sampling(temperature=2.0).knobs()
    with jax.debug_key_reuse(True):
        keys = jax.random.split(jax.random.key(5), 4)
        drawn = sample(logits, keys, knobs)
    assert drawn.dtype == jnp.int32
    np.testing.assert_array_equal(drawn, draw(logits, keys, knobs))
    changed = draw(logits.at[1:].multiply(-3), keys.at[1:].set(jax.random.split(jax.random.key(9), 3)), knobs)
    assert int(changed[0]) == int(drawn[0])
    assert len({int(draw(logits[:1], jax.random.split(jax.random.key(i), 1), knobs)[0]) for i in range(30)}) > 4


def test_other_values_compile_no_other_program():
    traces = []

    @jax.jit
    def traced(logits, keys, knobs):
        traces.append(1)
        return sample(logits, keys, knobs)

    keys = jax.random.split(jax.random.key(0), 2)
    for sampling in (Sampling(), Sampling(temperature=0), Sampling(top_k=4, top_p=0.5, min_p=0.1), Sampling(temperature=1.5)):
        traced(jnp.zeros((2, V)), keys, sampling.knobs())
    assert len(traces) == 1


NAN, INF = float("nan"), float("inf")
REFUSED = [
    ("temperature", -0.1), ("temperature", NAN), ("temperature", INF), ("top_k", -1), ("top_k", 2.5), ("top_k", NAN),
    ("top_p", 0.0), ("top_p", 1.01), ("top_p", -0.5), ("top_p", NAN), ("min_p", -0.1), ("min_p", 1.0),
    ("min_p", NAN), ("seed", -1), ("seed", 2**32), ("seed", 1.5),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_a_value_out_of_range_is_refused_by_the_name_of_its_flag(name, value):
    with pytest.raises(InputError, match=rf"--{name.replace('_', '-')}: expected .*, found {value!r}$"):
        Sampling(**{name: value})


@pytest.mark.parametrize(
    "fields", [{"temperature": 0}, {"top_p": 1}, {"top_k": 2**40}, {"seed": 2**32 - 1}, {"top_k": np.int64(3)}]
)
def test_values_at_the_border_are_taken(fields):
    knobs = Sampling(**fields).knobs()
    assert int(draw(jnp.asarray([[0.0, 50.0]]), jax.random.split(jax.random.key(0), 1), knobs)[0]) == 1
