"""The page of runs: what stands on it, nothing of the data as markup; opened and used in a browser, where there is one."""

from __future__ import annotations

import base64
import json
import re

import numpy as np
import pytest

from jaxlm.config.load import read_resolved
from jaxlm.contract import ContractError, InputError
from jaxlm.report import history as history_of
from jaxlm.report.differences import differences, from_defaults
from jaxlm.report.run import run_page
from jaxlm.report.source import Source
from jaxlm.report.throughput import hardware_from
from jaxlm.scaling import flops_per_token, hardware_of
from jaxlm.watch import ChainedLog, read_log

from .chromium import CHROMIUM, opened
from .synthetic import synthetic
from .test_page import Tree

EVIL = "</script><script>document.title='run'</script>"
EVENT = '"><img src=x onerror="document.title=\'run\'">'


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two made-up runs, one under a name that would run if it could."""
    folder = tmp_path_factory.mktemp("made")
    first = synthetic(folder / "a run <img src=x onerror=alert(1)>", steps=60, layers=3, spike=40, bad=50, piece=EVIL)
    return first, synthetic(folder / "b", steps=40, layers=2, seed=1, lr=2e-3)


def source(path, **options):
    found = Source(path, **options)
    found.read()
    return found


def data_on(page):
    return json.loads(re.search(r'id="run-data">(.*?)</script>', page)[1])


def floats(text):
    return np.frombuffer(base64.b64decode(text), "<f4")


# ---- what stands on it -------------------------------------------------------------------------------------------


def test_every_figure_of_the_log_is_on_the_page(made):
    page = run_page([source(made[0])])
    (run,) = data_on(page)["runs"]
    records = [record for record, _ in read_log(made[0] / "telemetry.jsonl")]
    losses = np.array([record["loss"] for record in records], np.float32)
    np.testing.assert_array_equal(floats(run["curves"]["loss"]["mean"]), losses)
    validations = [record["validation"]["loss"] for record in records if "validation" in record]
    np.testing.assert_allclose(floats(run["curves"]["validation/loss"]["mean"]), validations, rtol=1e-6)
    ratio = [record["update_norm"] / record["param_norm"] for record in records]
    np.testing.assert_allclose(floats(run["curves"]["update_ratio"]["mean"]), ratio, rtol=1e-6)
    layered = {name for record in records[:1] for name in (f"activations/{n}" for n in record["activations"])}
    layered |= {f"{group}/blocks/{n}" for group in ("grad_norms", "param_norms", "update_ratios") for n in ("wq", "w_down")}
    assert layered | {"backward/residual_rms"} <= set(run["heats"])
    assert not any(name.startswith("nonfinite") for name in run["heats"])  # there were none: their maps would say nothing
    assert (run["curves"]["grad_norm"]["bad"], run["steps"]) == (base64.b64encode(b"\x32\x00\x00\x00").decode(), 60)


def test_alarms_are_marked_and_listed_with_links_to_their_bundles(made, tmp_path):
    page = run_page([source(made[0])], folder=made[0].parent)
    marks = data_on(page)["runs"][0]["marks"]
    assert [(mark["step"], mark["kind"], mark["layer"]) for mark in marks] == [
        (30, "resumed", None),
        (40, "alarm", None),
        (40, "alarm", 1),
        (50, "skipped", None),
    ]
    assert "a%20run%20%3Cimg%20src%3Dx%20onerror%3Dalert%281%29%3E/bundles/00000040" in page
    links = [a["href"] for tag, a in Tree(page).tags if tag == "a"]
    assert len(links) == 1
    assert "loss_spike 1; exploding_layer 1." in page
    assert "href=" not in run_page([source(made[0])])


def test_nothing_of_the_data_is_markup(made, tmp_path):
    told = {"detector": EVIL, "what": EVENT, "layer": EVIL, "expected": EVENT, "found": [EVIL], "action": EVIL}
    said = [
        {"event": "alarm", "step": 3, **told, "bundle": EVENT},
        {"event": "skipped", "step": 4, "nonfinite": EVIL},
        {"event": "sample", "step": 4, "prompt_ids": [], "ids": [1], "pieces": [EVENT]},
    ]
    hostile = synthetic(tmp_path / EVENT.replace("/", ""), steps=8, layers=2, said=said)
    page = run_page([source(made[0]), source(hostile)], folder=tmp_path)
    tree = Tree(page)
    assert [a for tag, a in tree.tags if tag == "img"] == []
    assert [a.get("type") for tag, a in tree.tags if tag == "script"] == ["application/json", None]
    assert not any(name.startswith("on") for _, attributes in tree.tags for name in attributes)
    assert not any(a["href"].lower().startswith(("javascript", "data", "http")) for tag, a in tree.tags if tag == "a")
    assert not re.search(r"https?:|url\(|@import|src=[\"']", page.replace(EVENT, ""))


def test_samples_show_their_tokens_and_their_prompt(made):
    page = run_page([source(made[0])])
    tree = Tree(page)
    tokens = [a for tag, a in tree.tags if tag == "span" and a.get("class", "").startswith("t c")]
    assert len(tokens) == 4 * 9
    assert [a["class"] for a in tokens[:3]] == ["t c0 prompt", "t c1 prompt", "t c2"]
    assert [a["title"] for a in tokens[:3]] == ["id 1", "id 2", "id 3"]
    assert "step 15" in "".join(tree.text)


def test_runs_are_told_apart_and_their_configs_compared(made):
    page = run_page([source(path) for path in made])
    assert [run["name"] for run in data_on(page)["runs"]] == [path.name for path in made]
    configs = [read_resolved(path / "resolved.json") for path in made]
    assert dict(differences(configs))["optim.lr"] == [1e-3, 2e-3]
    assert "model.d_model" not in dict(differences(configs))
    assert "<td>optim.lr</td><td>0.001</td><td>0.002</td>" in page
    assert dict(from_defaults(configs[1]))["optim.lr"] == [2e-3, 1e-3]
    twice = run_page([source(made[1]), source(made[1])])
    assert "All fields are equal." in twice
    assert [run["name"] for run in data_on(twice)["runs"]] == [str(made[1])] * 2


def test_speed_and_mfu_come_from_the_pace_and_the_devices(made):
    found = source(made[0], hardware=hardware_of("h100"))
    (pace,) = [r for r, _ in read_log(made[0] / "events.jsonl") if r["event"] == "pace" and r["step"] == 60]
    rate = pace["steps"] * 8 * 256 / pace["seconds"]
    mfu = rate * flops_per_token(found.config.model).model / 67e12
    assert found.history.pace["tokens_per_second"].last == (60, pytest.approx(rate))
    assert found.history.pace["mfu"].last == (60, pytest.approx(mfu))
    assert "of NVIDIA H100 SXM" in run_page([found])
    assert "mfu" not in source(made[0]).history.pace  # devices that no manifest names


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H200", "h200"), ("NVIDIA A100-SXM4-80GB", "a100"), ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"), ("TPU v5p", "v5p"), ("TPU v5", "v5p"), ("TPU v6 lite", "v6e"), ("cpu", "cpu"),
        ("NVIDIA GeForce RTX 4090", None), ("", None),
    ],
)  # fmt: skip
def test_devices_are_known_by_the_names_that_jax_gives_them(kind, name):
    found = hardware_from(kind)
    assert (found and found.name) == name


def test_a_log_is_read_on_and_from_its_start_where_it_was_cut_back(tmp_path):
    path = synthetic(tmp_path / "r", steps=8, layers=2)
    found = source(path)
    assert not found.history.changed()
    marks = [mark for _, mark in read_log(path / "telemetry.jsonl")]
    with ChainedLog(path / "telemetry.jsonl") as log:
        log.append({"step": 9, "loss": 1.0})
    assert found.history.changed()
    found.read()
    assert (found.history.steps, found.history.curves["loss"].buckets()["count"].sum()) == (9, 9)
    with ChainedLog(path / "telemetry.jsonl", keep=marks[3]) as log:
        log.append({"step": 5, "loss": 1.0})
    found.read()
    assert (found.history.steps, found.history.curves["loss"].buckets()["count"].sum()) == (5, 5)
    assert found.state == "stopped at step 5"


def test_a_broken_log_is_said(tmp_path):
    path = synthetic(tmp_path / "r", steps=8, layers=2)
    lines = (path / "telemetry.jsonl").read_bytes().splitlines(keepends=True)
    (path / "telemetry.jsonl").write_bytes(b"".join(lines[:5] + lines[6:]))
    found = source(path)
    assert found.history.steps == 5
    assert 'class="bad">r: a line of telemetry.jsonl breaks its chain' in run_page([found])


def test_a_run_that_has_only_begun_has_a_page_and_none_has_not(tmp_path, made):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "resolved.json").write_bytes((made[0] / "resolved.json").read_bytes())
    page = run_page([source(tmp_path / "r")])
    assert data_on(page)["charts"] == []
    Tree(page)
    with pytest.raises(InputError, match="expected a run directory, found none there"):
        Source(tmp_path)
    (tmp_path / "r" / "resolved.json").write_bytes(b"{}x")
    with pytest.raises(ContractError, match="JSON"):
        Source(tmp_path / "r")


def test_many_events_are_kept_from_both_ends_and_counted():
    kept, spread = history_of.Kept(10), history_of.Spread(8)
    for step in range(1, 101):
        kept.add({"step": step})
        spread.add({"step": step})
    assert [r["step"] for r in kept.all()] == [1, 2, 3, 4, 5, 96, 97, 98, 99, 100]
    assert (kept.count, spread.count) == (100, 100)
    steps = [r["step"] for r in spread.all()]
    assert (steps[0], steps[-1]) == (1, 100)
    assert len(steps) <= 9
    assert set(np.diff(steps[:-1]).tolist()) == {16}


def test_a_real_run_has_its_curves_and_an_unbroken_chain(finished):
    page = run_page([source(finished)])
    (run,) = data_on(page)["runs"]
    assert {"loss", "bits_per_byte", "validation/loss", "grad_norm", "lr"} <= set(run["curves"])
    assert "activations/residual_rms" in run["heats"]
    assert "of which agree" in page
    assert 'class="broken"' not in page
    Tree(page)


# ---- in a browser ------------------------------------------------------------------------------------------------

browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open the page in")

DRIVE = """
const body = document.body.dataset, plots = [...document.querySelectorAll('#curves figure')], first = plots[0];
const canvas = first.querySelector('canvas'), box = canvas.getBoundingClientRect();
const send = (kind, x) => canvas.dispatchEvent(new PointerEvent(kind, {bubbles: true, clientX: box.left + x,
  clientY: box.top + 50, pointerType: 'mouse', pointerId: 1}));
canvas.setPointerCapture = () => {};
const step = (at, width) => 50 + (at - 1) / 59 * (width - 58);
const drawn = of => {
  const pixels = of.getContext('2d').getImageData(0, 0, of.width, of.height).data;
  let count = 0;
  for (let i = 3; i < pixels.length; i += 4) if (pixels[i]) count++;
  return count;
};
body.blank = plots.filter(plot => drawn(plot.querySelector('canvas')) < 100).length;
body.charts = plots.length;
body.rest = first.querySelector('.readout').textContent;
body.aria = canvas.getAttribute('aria-label');
send('pointermove', step(40, box.width));
body.hovered = first.querySelector('.readout').textContent;
body.others = plots.filter(plot => plot.querySelector('.cross').style.display === 'block').length;
send('pointerdown', step(20, box.width));
send('pointermove', step(45, box.width));
send('pointerup', step(45, box.width));
body.zoomed = document.getElementById('range').textContent;
const press = (key, on) => (on || canvas).dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));
press('ArrowRight');
body.moved = first.querySelector('.readout').textContent;
press('Escape');
body.escaped = document.getElementById('range').textContent;
const before = drawn(canvas);
document.querySelector('#legend button').click();
body.hidden = before > drawn(canvas);
document.querySelector('#legend button').click();
first.querySelector('figcaption button').click();
body.log = first.querySelector('figcaption button').getAttribute('aria-pressed');
const map = document.querySelector('#heat-maps figure'), inside = map.querySelector('canvas');
const frame = inside.getBoundingClientRect();
body.map = drawn(inside) > 1000;
inside.dispatchEvent(new PointerEvent('pointermove', {bubbles: true, clientX: frame.left + step(40, frame.width),
  clientY: frame.top + 40, pointerType: 'mouse'}));
body.cell = map.querySelector('.readout').textContent;
press('ArrowUp', inside);
body.above = map.querySelector('.readout').textContent;
const closed = [...document.querySelectorAll('#heat-maps details')].find(one => !one.open);
closed.open = true;
const select = document.querySelector('#heat-maps select');
select.value = '1';
select.dispatchEvent(new Event('change'));
body.other = inside.getAttribute('aria-label');
document.querySelector('tr[data-step]').click();
body.clicked = document.getElementById('range').textContent;
body.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
body.title = document.title;
"""


@browser
def test_in_a_browser_it_can_be_hovered_zoomed_and_clicked(made, tmp_path):
    page = run_page([source(path) for path in made])
    records = [record for record, _ in read_log(made[0] / "telemetry.jsonl")]
    _, told, errors = opened(page, tmp_path / "driven", script=DRIVE)
    assert errors == []
    assert told["ready"] == "yes"
    assert (told["charts"], told["blank"]) == (str(len(data_on(page)["charts"])), "0")
    assert f"{made[0].name} training {records[-1]['loss']:.4g} at step 60" in told["rest"]
    assert told["aria"].startswith("Loss over the steps. ")
    assert f"training {records[39]['loss']:.4g}, step 40" in told["hovered"]
    assert "▼ loss_spike at step 40" in told["hovered"]
    assert told["others"] == told["charts"]
    assert told["zoomed"] == "steps 20 to 45"
    assert "step 45" in told["moved"] or "step 44" in told["moved"]
    assert told["escaped"] == "steps 1 to 60"
    assert (told["hidden"], told["log"], told["map"]) == ("true", "true", "true")
    layers = records[39]["activations"]["residual_rms"]
    assert f"layer 1: {layers[1]:.4g}, step 40" in told["cell"]
    assert f"layer 0: {layers[0]:.4g}, step 40" in told["above"]
    assert "by layer over the steps, 2 layers; from" in told["other"]
    assert told["clicked"] == "steps 20 to 60"
    assert told["title"] == f"2 runs: {made[0].name}, {made[1].name}"


@browser
@pytest.mark.parametrize("size", ["500,844", "1400,900"])
def test_in_a_browser_its_own_script_runs_and_nothing_is_wider_than_the_window(made, tmp_path, size):
    page = run_page([source(made[0])])
    shown, told, errors = opened(page, tmp_path / "as it is", size=size)
    assert (told["ready"], errors) == ("yes", [])
    assert "<title>Run a run &lt;img" in shown
    wide = "document.body.dataset.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;"
    assert opened(page, tmp_path / "wide", size=size, script=wide)[1]["wide"] == "0"


@pytest.mark.slow
@browser
def test_ten_thousand_steps_of_24_layers_fit_5_mb_and_open_in_2_seconds(tmp_path):
    path = synthetic(tmp_path / "long", steps=10_000, layers=24, spike=4711, bad=7000)
    page = run_page([source(path)])
    assert len(page.encode()) < 5e6
    high = floats(data_on(page)["runs"][0]["curves"]["loss"]["high"])
    assert high.max() == pytest.approx(next(r["loss"] for r, _ in read_log(path / "telemetry.jsonl") if r["step"] == 4711))
    script = "document.body.dataset.milliseconds = performance.now();"
    _, told, errors = opened(page, tmp_path / "opened", virtual=False, script=script)
    assert errors == []
    assert float(told["milliseconds"]) < 2000
