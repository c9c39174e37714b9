"""Validation during training: sums over tokens, whatever the batch size."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest

from jaxlm.contract import ContractError
from jaxlm.data import validation_batches
from jaxlm.parallel import make_mesh
from jaxlm.run import Run
from jaxlm.train.prepare import Parts
from jaxlm.train.step import score_step
from jaxlm.train.validate import label_bytes, require_validation, validate


@pytest.fixture(scope="module")
def parts(finished):
    run = Run.load(finished)
    cfg = dataclasses.replace(run.config, eval=dataclasses.replace(run.config.eval, batches=0))
    return run.params, Parts(cfg, run.tokenizer, run.data)


def validation(params, parts, batch_size):
    train = dataclasses.replace(parts.cfg.train, batch_size=batch_size)
    mesh = make_mesh(parts.cfg.mesh)
    with jax.set_mesh(mesh):
        return validate(params, dataclasses.replace(parts, cfg=dataclasses.replace(parts.cfg, train=train)), mesh)


def test_the_loss_is_the_mean_over_all_labels_of_the_split_for_every_batch_size(parts):
    params, made = parts
    nll, labels, size = 0.0, 0, 0
    for row in validation_batches(made.data.val, batch_size=1, context_length=made.cfg.model.context_length):
        nll += float(np.asarray(score_step(params, row, made.cfg), np.float64).sum())
        labels += int(row.loss_mask.sum())
        size += sum(len(made.tokenizer.decode_bytes([i])) for i in row.labels[row.loss_mask] if i != made.tokenizer.eos_id)
    for batch_size in (4, 6):
        found = validation(params, made, batch_size)
        assert found.labels == labels
        assert found.loss == pytest.approx(nll / labels, rel=1e-6)
        assert found.bits_per_byte == pytest.approx(nll / math.log(2) / size, rel=1e-6)


def test_labels_count_with_the_bytes_that_they_stand_for_and_special_tokens_with_none():
    labels, mask = np.array([[0, 1, 2], [2, 2, 1]]), np.array([[True, True, False], [True, False, True]])
    assert label_bytes(labels, mask, np.array([5, 0, 3])) == 5 + 0 + 3 + 0


@pytest.mark.parametrize("batches", [0, 1, 3, 10_000])
def test_a_validation_is_over_the_labels_and_bytes_of_its_rows(parts, batches):
    params, made = parts
    cut = dataclasses.replace(made, cfg=dataclasses.replace(made.cfg, eval=dataclasses.replace(made.cfg.eval, batches=batches)))
    found = validation(params, cut, 4)
    mesh = make_mesh(cut.cfg.mesh)
    required = functools.partial(require_validation, params=params, parts=cut, mesh=mesh, artifact="run")
    with jax.set_mesh(mesh):
        _refuse(required, found, params)


def _refuse(required, found, params):
    """A validation that is as it should be, and several that are not."""
    required(found)
    others = (found._replace(labels=found.labels + 1), found._replace(loss=found.loss * 1.001))
    for other in (*others, found._replace(bits_per_byte=found.bits_per_byte / 1.01)):
        with pytest.raises(ContractError, match=rf"expected a validation over {found.labels} labels"):
            required(other)
    required(found._replace(loss=math.nan, bits_per_byte=math.nan))
    larger = jax.tree.map(lambda leaf: leaf * 1.01, params)
    for other in (found._replace(first=found.first * 1.001), found._replace(first=math.nan)):
        with pytest.raises(ContractError, match="expected the loss of the parameters of this step, in the first"):
            required(other)
    with pytest.raises(ContractError, match="Other parameters were scored than those that train"):
        required(found, params=larger)
