"""Shapes at public boundaries: every letter has one size, and an error names the array, what it should be and what it is."""

import string

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.axes import ALPHABET, check_shape

sized = st.dictionaries(st.sampled_from(sorted(ALPHABET)), st.integers(0, 7), min_size=1, max_size=5)


def shaped(*shape):
    return np.broadcast_to(np.float32(0), shape)


def test_every_letter_is_one_capital_with_one_meaning():
    assert all(len(letter) == 1 and letter in string.ascii_uppercase for letter in ALPHABET)
    assert len(set(ALPHABET.values())) == len(ALPHABET)


@settings(deadline=None, max_examples=50)
@given(sizes=sized)
def test_the_sizes_of_a_right_shape_come_back(sizes):
    assert check_shape("x", shaped(*sizes.values()), "".join(sizes)) == sizes
    assert check_shape("x", shaped(*sizes.values()), "".join(sizes), **sizes) == sizes


@settings(deadline=None, max_examples=50)
@given(sizes=sized, data=st.data())
def test_one_size_that_differs_is_refused_wherever_it_stands(sizes, data):
    letter = data.draw(st.sampled_from(sorted(sizes)))
    wrong = [size + (name == letter) for name, size in sizes.items()]
    with pytest.raises(ValueError, match=rf"^logits: expected shape \[.*{letter}={sizes[letter]}.*\], found \[{wrong[0]}"):
        check_shape("logits", shaped(*wrong), "".join(sizes), **sizes)


def test_a_letter_that_occurs_twice_has_one_size():
    assert check_shape("scores", shaped(2, 5, 5), "BTT") == {"B": 2, "T": 5}
    with pytest.raises(ValueError, match=r"^scores: expected shape \[B, T, T\], found \[2, 5, 6\]$"):
        check_shape("scores", shaped(2, 5, 6), "BTT")


@pytest.mark.parametrize("shape", [(), (2,), (2, 3, 4)])
def test_another_rank_is_refused(shape):
    with pytest.raises(ValueError, match=rf"^tokens: expected shape \[B, T=8\], found \[{', '.join(map(str, shape))}\]$"):
        check_shape("tokens", shaped(*shape), "BT", T=8)


def test_a_letter_outside_the_alphabet_is_named():
    with pytest.raises(ValueError, match=r"axis 'X' of q is not in the alphabet ABTSDNKGHFVL"):
        check_shape("q", shaped(2, 3), "BX")


def test_sizes_bind_one_array_to_the_next():
    sizes = check_shape("tokens", shaped(2, 3), "BT")
    assert check_shape("x", shaped(2, 3, 4), "BTD", **sizes) == {"B": 2, "T": 3, "D": 4}
    with pytest.raises(ValueError, match=r"x: expected shape \[B=2, T=3, D\], found \[3, 2, 4\]"):
        check_shape("x", shaped(3, 2, 4), "BTD", **sizes)


def test_whatever_has_a_shape_is_checked_tracers_too():
    assert check_shape("x", jax.ShapeDtypeStruct((2, 3), np.float32), "BT") == {"B": 2, "T": 3}
    assert jax.eval_shape(lambda x: x * check_shape("x", x, "BT")["T"], shaped(2, 3)).shape == (2, 3)
    with pytest.raises(ValueError, match="found"):
        jax.eval_shape(lambda x: check_shape("x", x, "BTD") and x, shaped(2, 3))
