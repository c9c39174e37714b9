"""What the layers keep: counts that can be made by hand, and the same program without a device."""

import os
import subprocess
import sys

import pytest

from jaxlm.scaling.residuals import kept_of

ROWS, LENGTH, WIDTH, HIDDEN, HEADS = 32, 128, 64, 192, 4
STREAM = ROWS * LENGTH * WIDTH  # numbers of one activation of the residual stream
FF = ROWS * LENGTH * HIDDEN


def test_a_block_that_is_computed_again_keeps_its_input_only(config_on):
    assert kept_of(config_on(remat="block")).activations == 4 * STREAM
    assert kept_of(config_on(remat="block", precision="bfloat16")).activations == 2 * STREAM
    assert kept_of(config_on("dp", remat="offload")).activations == 4 * STREAM // 8
    assert kept_of(config_on("context", remat="block")).activations == 4 * STREAM // 8


def test_dots_keeps_the_products_with_weights(config_on):
    # The input, q, k, v, what attention gives; gate and up. Nobody reads the last product, which adds to the stream.
    assert kept_of(config_on(remat="dots")).activations == 4 * (5 * STREAM + 2 * FF)
    cut = kept_of(config_on("fsdp_tp", remat="dots")).activations
    assert cut == 4 * (2 * STREAM + 3 * STREAM // 2 + 2 * FF // 2) // 4  # heads and hidden width in two, rows in four


def test_nothing_again_keeps_all_that_the_backward_pass_reads(config_on):
    # Of either norm its input, that normed, and that times the gain; q, k, v, what attention gives; six of the hidden width.
    # And a few numbers for each position: the log-sum-exp of each head, the range of keys, the scales of the norms.
    few = ROWS * LENGTH * 2 * (HEADS + 4) * 4
    wide = kept_of(config_on(), "nothing")
    least = 4 * (10 * STREAM + 6 * FF)
    assert least < wide.activations < least + few
    assert wide.narrow == 0.0


def test_none_keeps_no_elementwise_results_and_no_copies_of_weights(config_on):
    few = ROWS * LENGTH * 2 * (HEADS + 4) * 4
    # The input, q and k as they are rotated, v, what attention gives and what it adds to the stream; gate and up.
    least = 4 * (6 * STREAM + 2 * FF)
    assert least < kept_of(config_on()).activations < least + few
    narrow = kept_of(config_on(precision="bfloat16"))
    assert narrow.activations < 0.7 * kept_of(config_on()).activations
    assert 0.0 < narrow.narrow < 1.0
    for mesh in ("single", "fsdp"):  # weights are cast and gathered again
        assert kept_of(config_on(mesh, precision="bfloat16")).copies == kept_of(config_on(mesh)).copies == 0


def test_the_parts_of_an_accumulated_step_are_smaller(config_on):
    assert kept_of(config_on(grad_accum=4)).activations == pytest.approx(kept_of(config_on()).activations / 4, abs=1024)
    assert kept_of(config_on(), "block").activations == 4 * STREAM


def test_dropout_is_part_of_what_is_kept(config_on):
    dropped = kept_of(config_on(model={"dropout": 0.1}))
    assert dropped.activations > kept_of(config_on()).activations


@pytest.mark.parametrize("mesh", ["single", "fsdp_tp", "context"])
def test_no_device_is_looked_for(mesh):
    code = (
        "import importlib.util, sys; spec = importlib.util.spec_from_file_location('c', sys.argv[1])\n"
        "from jaxlm.config.schema import *\nfrom jaxlm.scaling.residuals import kept_of\n"
        "shape = dict(d_model=16, n_heads=4, n_layers=1, vocab_size=64, context_length=16)\n"
        f"mesh = dict(single=MeshConfig(), fsdp_tp=MeshConfig(fsdp=2, tensor=2, rules='fsdp_tp'), "
        f"context=MeshConfig(context=4, rules='dp'))[{mesh!r}]\n"
        "print(kept_of(RunConfig(model=ModelConfig(**shape), train=TrainConfig(batch_size=4), mesh=mesh)).activations > 0)"
    )
    none = os.environ | {"JAX_PLATFORMS": "no_such_platform"}
    done = subprocess.run([sys.executable, "-c", code, __file__], capture_output=True, text=True, env=none)
    assert done.stdout == "True\n", done.stderr
