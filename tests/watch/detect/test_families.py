"""The smaller detectors, each by itself: batches, scaler, rate, pace, validation, dead layers, bounds of the loss."""

import math

import jax
import numpy as np
import pytest

from jaxlm.config.schema import ModelConfig, OptimConfig, RunConfig, TrainConfig
from jaxlm.optim import schedule_of
from jaxlm.watch.detect import Expected, bank, batches, dead, loss, observe, pace, rate, scaler, validation
from jaxlm.watch.detect.expected import expected_of


def run(start, detector, records, expected=Expected()):
    """Steps and names of the alarms."""
    state, found = start(), []
    for record in records:
        state, alarms = detector(state, record, expected)
        found += [(alarm.step, alarm.detector) for alarm in alarms]
    return found


# ---- batches -----------------------------------------------------------------------------------------------------


def crcs(values):
    return [{"step": step, "batch_crc": value} for step, value in enumerate(values, 1)]


def test_a_batch_that_comes_again_is_found_at_once_or_by_two_in_a_row_when_it_is_old(monkeypatch):
    assert run(batches.batches, batches.observe, crcs([1, 2, 3, 2])) == [(4, "repeated_batch")]
    monkeypatch.setattr(batches, "NEAR", 5)
    assert run(batches.batches, batches.observe, crcs([*range(10), 0])) == []
    assert run(batches.batches, batches.observe, crcs([*range(10), 0, 1])) == [(12, "repeated_batch")]
    assert run(batches.batches, batches.observe, crcs([*range(10), 0, 3])) == []


def epochs(rows, batch_size, count, *, seed=0, told=True):
    """The records of some epochs of a split of `rows` rows, in random orders."""
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(rows) for _ in range(count)])
    steps = order[: len(order) // batch_size * batch_size].reshape(-1, batch_size).tolist()
    records = [{"step": step, "batch_crc": hash(tuple(batch)) & 0xFFFFFFFF} for step, batch in enumerate(steps, 1)]
    return [r | ({"epoch": step * batch_size // rows} if told else {}) for step, r in enumerate(records)]


@pytest.mark.parametrize(("rows", "batch_size"), [(1, 1), (7, 1), (64, 1), (900, 1), (5, 2), (64, 2), (6, 4), (4, 4)])
def test_a_batch_that_comes_again_in_another_epoch_is_none(rows, batch_size):
    assert run(batches.batches, batches.observe, epochs(rows, batch_size, 4)) == []


def test_a_batch_that_comes_again_in_its_epoch_is_found_also_in_the_second():
    records = epochs(64, 1, 2)
    assert run(batches.batches, batches.observe, epochs(64, 1, 2, told=False))  # as records had no epoch
    records[100]["batch_crc"] = records[90]["batch_crc"]
    assert run(batches.batches, batches.observe, records)[0] == (101, "repeated_batch")


def test_only_so_many_batches_are_remembered(monkeypatch):
    monkeypatch.setattr(batches, "REMEMBERED", 4)
    assert run(batches.batches, batches.observe, crcs([1, 2, 3, 4, 5, 1])) == []
    assert run(batches.batches, batches.observe, crcs([1, 2, 3, 4, 1])) == [(5, "repeated_batch")]
    assert run(batches.batches, batches.observe, crcs([1, 2, 3, 4, 5, 6, 4])) == [(7, "repeated_batch")]


def test_neighbours_that_are_alike_are_found_and_shuffled_ones_are_not():
    rng = np.random.default_rng(0)
    shuffled = 1500 + 80 * rng.standard_normal(600)
    ordered = 1500 + 80 * np.sin(np.arange(600) / 15) + 30 * rng.standard_normal(600)
    for values, found in ((shuffled, False), (ordered, True), (np.full(600, 1500.0), False)):
        rows = [{"step": s, "labels": 500, "bytes": int(v)} for s, v in enumerate(values, 1)]
        alarms = run(batches.batches, batches.observe, rows)
        assert bool(alarms) == found
        assert {name for _, name in alarms} <= {"correlated_batches"}
    sides = np.where(shuffled[:256] > np.median(shuffled[:256]), 1, -1)
    assert batches.agreement(shuffled[:256]) == pytest.approx(np.sum(sides[1:] * sides[:-1]) / math.sqrt(255))


def shares(values):
    return [{"step": step, "repeated_rows": value} for step, value in enumerate(values, 1)]


def test_rows_of_a_batch_that_repeat_each_other_are_found_where_they_are_many_and_go_on():
    assert run(batches.batches, batches.observe, shares([0.0, 0.5, 0.5, 0.5, 0.5]))[0] == (5, "repeated_rows")
    assert run(batches.batches, batches.observe, shares([1 / 8] * 4)) == [(4, "repeated_rows")]  # two hosts of eight
    assert run(batches.batches, batches.observe, shares([0.05] * 50)) == []
    assert run(batches.batches, batches.observe, shares([0.25, 0.25, 0.25, 0.0] * 20)) == []  # a few equal rows, a small batch
    assert run(batches.batches, batches.observe, [{"step": step} for step in range(1, 20)]) == []


@pytest.mark.parametrize("rows", [4, 8, 64, 512])
def test_text_with_a_few_equal_rows_is_no_alarm(rows):
    rng = np.random.default_rng(rows)
    texts = np.where(rng.random(5000) < 0.02, 0, np.arange(5000))  # one row in fifty is the same
    made = [rng.choice(texts, rows, replace=False) for _ in range(2000)]
    assert run(batches.batches, batches.observe, shares([1 - len(np.unique(one)) / rows for one in made])) == []


def test_too_few_supervised_labels():
    known = Expected(min_supervised=0.3)
    assert run(batches.batches, batches.observe, [{"step": 1, "supervised": 0.2}], known) == [(1, "supervised_share")]
    assert run(batches.batches, batches.observe, [{"step": 1, "supervised": 0.4}], known) == []


# ---- scaler ------------------------------------------------------------------------------------------------------


def scales(values, finite=None):
    finite = finite or [True] * len(values)
    rows = zip(values, finite, strict=True)
    return [{"step": s, "loss_scale": v, "finite": f, "skipped": 0} for s, (v, f) in enumerate(rows, 100)]


@pytest.mark.parametrize(
    ("values", "finite", "scaled", "wrong"),
    [
        ([1024.0, 1024.0, 2048.0], [True, True, True], True, []),
        ([1024.0, 512.0], [False, True], True, []),
        ([1.0, 1.0], [False, True], True, []),
        ([1024.0, 512.0], [True, True], True, [101]),
        ([1024.0, 1024.0], [False, True], True, [101]),
        ([1024.0, 4096.0], [True, True], True, [101]),
        ([0.5], [True], True, [100]),
        ([2.0], [True], False, [100]),
    ],
)
def test_the_scale_has_a_rule(values, finite, scaled, wrong):
    found = run(scaler.scaler, scaler.observe, scales(values, finite), Expected(scaled=scaled))
    assert found == [(step, "loss_scale") for step in wrong]


def test_a_scaler_that_thrashes():
    values, finite = [2.0**20], []
    for step in range(60):
        finite.append(step % 5 != 4)
        values.append(values[-1] * (1.0 if finite[-1] else 0.5))
    found = run(scaler.scaler, scaler.observe, scales(values[:-1], finite), Expected(scaled=True))
    assert found[0] == (139, "scaler_thrashing")
    early = [record | {"step": record["step"] - 99} for record in scales(values[:20], [False] * 20)]
    early = [record | {"loss_scale": max(2.0 ** (16 - record["step"]), 1.0)} for record in early]
    assert run(scaler.scaler, scaler.observe, early, Expected(scaled=True)) == []


def test_clipping_that_sets_in():
    rows = [{"step": step, "clipped": step > 180} for step in range(1, 240)]
    assert run(scaler.scaler, scaler.observe, rows)[0] == (225, "clipping")
    assert run(scaler.scaler, scaler.observe, [row | {"clipped": not row["clipped"]} for row in rows]) == []


# ---- rate --------------------------------------------------------------------------------------------------------


def test_the_rate_is_that_of_the_schedule_of_the_updates_made(config):
    steps = 60
    table = np.asarray(schedule_of(config.optim, steps)(np.arange(steps)), np.float64)
    rows = [{"step": step, "lr": float(np.float32(table[step - 1])), "finite": True} for step in range(1, steps + 1)]
    known = Expected(lr=table)
    assert run(rate.rate, rate.observe, rows, known) == []
    late = [*rows[:10], rows[10] | {"finite": False}, *(row | {"step": row["step"] + 1} for row in rows[10:-1])]
    assert run(rate.rate, rate.observe, late, known) == []
    restarted = [*rows[:30], *(row | {"lr": rows[row["step"] - 31]["lr"]} for row in rows[30:])]
    assert run(rate.rate, rate.observe, restarted, known)[0] == (31, "learning_rate")


@pytest.mark.parametrize("ratio", [0.0, 0.1])
@pytest.mark.parametrize("name", ["cosine", "linear", "wsd", "constant"])
def test_the_compiled_rate_is_the_expected_one_to_the_last_step(name, ratio):
    steps = 300
    optim = OptimConfig(lr=3e-4, schedule=name, warmup_steps=20, min_lr_ratio=ratio)
    known = expected_of(RunConfig(model=ModelConfig(vocab_size=300), optim=optim, train=TrainConfig(steps=steps)))
    rates = np.asarray(jax.jit(schedule_of(optim, steps))(np.arange(steps)))
    rows = [{"step": step, "lr": float(value), "finite": True} for step, value in enumerate(rates, 1)]
    assert run(rate.rate, rate.observe, rows, known) == []
    rows[-1] = rows[-1] | {"lr": float(rates[-1]) + 1e-4 * optim.lr}
    assert run(rate.rate, rate.observe, rows, known) == ([(steps, "learning_rate")] if ratio < 1 and name != "constant" else [])


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
def test_a_schedule_that_never_decays_is_found_in_the_run(name, monkeypatch):
    from jaxlm.optim import schedules

    optim = OptimConfig(schedule=name, warmup_steps=10)
    monkeypatch.setattr(
        schedules, f"{name}_schedule", lambda peak, steps, warmup, **_: schedules.constant_schedule(peak, warmup)
    )
    rates = np.asarray(schedules.schedule_of(optim, 100)(np.arange(100)))
    rows = [{"step": step, "lr": float(value), "finite": True} for step, value in enumerate(rates, 1)]
    known = expected_of(RunConfig(model=ModelConfig(vocab_size=300), optim=optim, train=TrainConfig(steps=100)))
    assert run(rate.rate, rate.observe, rows, known)[0][1] == "learning_rate"


def test_without_a_schedule_a_jump_is_found_and_a_warm_up_is_none():
    rates = [1e-3 * min(1.0, step / 40) for step in range(1, 100)]
    rows = [{"step": step, "lr": value} for step, value in enumerate(rates, 1)]
    assert run(rate.rate, rate.observe, rows) == []
    rows[70] = rows[70] | {"lr": 3e-3}
    assert run(rate.rate, rate.observe, rows)[0] == (71, "learning_rate")


# ---- pace --------------------------------------------------------------------------------------------------------


def paces(seconds, waited=0.01):
    return [
        {"event": "pace", "step": 10 * n, "steps": 10, "seconds": each, "waited": waited * each}
        for n, each in enumerate(seconds, 1)
    ]


def test_a_run_that_slows_down_waits_or_compiles_again():
    assert run(pace.pace, pace.observe, paces([1.0] * 10 + [9.0, 1.0] * 3)) == []
    assert run(pace.pace, pace.observe, paces([60.0] + [1.0] * 10 + [4.0] * 4)) == [(140, "throughput")]
    assert run(pace.pace, pace.observe, paces([1.0] * 5, waited=0.7)) == [(30, "stalled_loader")]
    assert run(pace.pace, pace.observe, [{"event": "recompiled", "step": 9, "phase": "step", "found": "x"}]) == [
        (9, "recompilation")
    ]


def test_a_declared_mesh_may_compile_again_and_other_events_pass():
    again = {"event": "recompiled", "step": 8}
    state, _ = observe(bank(), {"event": "declared", "step": 7, "what": "mesh"})
    assert observe(state, again)[1] == []
    assert len(observe(bank(), again)[1]) == 1
    assert observe(bank(), {"event": "save", "step": 8, "seconds": 1.0})[1] == []


# ---- validation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratios", "found"), [([1.0, 1.1, 0.95], []), ([1.0, 0.5, 0.5], [90]), ([0.5, 1.0, 0.5], []), ([2.0, 2.1], [60])]
)
def test_validation_far_from_training(ratios, found):
    rows = [{"step": step, "bits_per_byte": 2.0} for step in range(1, 100)]
    for n, ratio in enumerate(ratios, 1):
        rows[30 * n - 1] |= {"validation": {"loss": 1.0, "bits_per_byte": 2.0 * ratio}}
    assert run(validation.gap, validation.observe, rows) == [(step, "validation_gap") for step in found]


# ---- dead layers and the bounds of the loss ----------------------------------------------------------------------


def test_exact_zeros_and_faint_layers():
    good = {"lr": 0.1, "finite": True, "grad_norms": {"blocks/wq": [1.0, 2.0, 3.0], "embed": 1.0}}
    zero = good | {"grad_norms": {"blocks/wq": [1.0, 2.0, 0.0], "embed": 1.0}}
    rows = [row | {"step": step} for step, row in enumerate([good, zero, good, zero, zero, zero], 1)]
    assert run(dead.dead, dead.observe, rows) == [(step, "dead_layer") for step in (4, 5, 6)]
    late = [(zero if step % 4 == 3 else good) | {"step": step} for step in range(1, 13)]
    assert run(dead.dead, dead.observe, late) == [(7, "dead_layer"), (11, "dead_layer")]
    rare = [(zero if step % 16 == 3 else good) | {"step": step} for step in range(1, 40)]
    assert run(dead.dead, dead.observe, rare) == []
    still = good | {"update_norms": {"embed": 0.0}}
    assert run(dead.dead, dead.observe, [still | {"step": s} for s in (1, 2)]) == [(2, "dead_layer")]
    assert run(dead.dead, dead.observe, [still | {"step": s, "lr": 0.0} for s in (1, 2, 3)]) == []
    assert run(dead.dead, dead.observe, [still | {"step": s, "finite": False} for s in (1, 2, 3)]) == []
    faint = [{"step": s, "activations": {"attn_rms": [1.0, 1e-4, 0.9], "mlp_rms": [1.0, 1.0, 1.0]}} for s in range(1, 20)]
    assert run(dead.dead, dead.observe, faint) == [(dead.FAINT_STEPS, "dead_layer")]


def test_the_loss_has_bounds(config):
    known = Expected(first_loss=(5.2, 6.2), uniform_loss=5.6)
    assert run(loss.loss, loss.observe, [{"step": 1, "loss": 5.8}], known) == []
    assert run(loss.loss, loss.observe, [{"step": 1, "loss": 6.4}], known) == [(1, "first_loss")]
    assert run(loss.loss, loss.observe, [{"step": 1, "loss": 5.1}], known) == [(1, "first_loss")]
    assert run(loss.loss, loss.observe, [{"step": 2, "loss": 5.1}], known) == []
    high = [{"step": step, "loss": 5.9} for step in range(2, 130)]
    assert run(loss.loss, loss.observe, high, known)[0] == (116, "loss_ceiling")
    once = [{"step": step, "loss": {50: 6.9, 130: 6.0, 140: 6.9}.get(step, 4.0)} for step in range(1, 150)]
    assert [found for found in run(loss.loss, loss.observe, once, known) if found[1] == "loss_ceiling"] == [
        (140, "loss_ceiling")
    ]


def test_what_is_expected_of_the_tiny_run_is_what_it_does(finished):
    from jaxlm.run import Run
    from jaxlm.watch import read_log
    from jaxlm.watch.detect import watch

    cfg = Run.load(finished).config
    known = expected_of(cfg)
    records = [record for record, _ in read_log(finished / "telemetry.jsonl")]
    assert abs(records[0]["loss"] - math.log(cfg.model.vocab_size) - cfg.model.d_model * cfg.model.init_std**2 / 2) < 0.2
    assert known.first_loss[0] < records[0]["loss"] < known.first_loss[1] < math.log(cfg.model.vocab_size) + 0.6
    assert [record["lr"] for record in records] == pytest.approx(known.lr.tolist(), rel=1e-6)
    assert set(known.sizes) == set(records[0]["grad_norms"])
    assert watch(records, known) == []


@pytest.mark.parametrize(
    ("fields", "balanced"), [({}, True), ({"norm": "none"}, True), ({"norm": "post"}, False), ({"residual": False}, False)]
)
def test_only_a_block_that_adds_to_its_input_is_held_to_that(fields, balanced):
    assert expected_of(RunConfig(model=ModelConfig(vocab_size=300, **fields))).balanced is balanced


FIRST_SCALES = [(1.0, True, 1), (2.0**15, True, 0), (1.0, False, 0), (2.0**14, True, 1)]


@pytest.mark.parametrize(("scale", "scaled", "alarms"), FIRST_SCALES)
def test_the_first_scale_is_that_of_every_run(scale, scaled, alarms):
    record = {"step": 1, "loss_scale": scale, "finite": True, "skipped": 0}
    found = scaler.observe(scaler.scaler(), record, Expected(scaled=scaled))[1]
    assert [alarm.detector for alarm in found] == ["loss_scale"] * alarms
