"""Log-sum-exp of a head's logits in the interpreter: the vocabulary whole or in parts, some of which hold no id that counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

if jax.__version_info__ < (0, 11):
    pytest.skip("the interpreter of Mosaic GPU kernels needs jax 0.11", allow_module_level=True)

from pallas_kernels.hopper.logsumexp import logsumexp

T, V, D = 70, 1100, 128


@pytest.mark.parametrize("splits", [1, 2, 5, None])
def test_it_is_that_of_float64_however_the_vocabulary_is_split(splits, compiled):
    x, head = (
        jax.random.normal(key, (n, D), jnp.bfloat16) for key, n in zip(jax.random.split(jax.random.key(0)), (T, V), strict=True)
    )
    run = compiled(logsumexp, softcap=0.0, splits=splits, interpret=True)
    logits = np.asarray(x, np.float64) @ np.asarray(head, np.float64).T
    for vocab in (V, 700, 256, 1):  # read at run time: one program
        peak = logits[:, :vocab].max(1)
        exact = peak + np.log(np.exp(logits[:, :vocab] - peak[:, None]).sum(1))
        np.testing.assert_allclose(run(x, head, jnp.int32(vocab)), exact, rtol=1e-6, atol=1e-5)
    assert (np.asarray(run(x, head, jnp.int32(0))) == np.float32(-1e30)).all()


def test_a_width_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="multiple of 64, found 96"):
        logsumexp(jnp.zeros((8, 96), jnp.bfloat16), jnp.zeros((8, 96), jnp.bfloat16), 8, softcap=0.0)
