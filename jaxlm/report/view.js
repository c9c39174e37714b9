// What all charts share: the steps in view, the step under the pointer, and how both are changed.

const LEFT = 50, RIGHT = 8, TOP = 10, BOTTOM = 20;
const data = JSON.parse(document.getElementById('run-data').textContent);
const view = {from: 1, to: Math.max(2, ...data.runs.map(run => run.steps)), cursor: null, shown: data.runs.map(() => true)};
const whole = {from: view.from, to: view.to};
const charts = [];

const inView = step => (step - view.from) / (view.to - view.from);
const xOf = (step, width) => LEFT + inView(step) * (width - LEFT - RIGHT);
const stepAt = (x, width) => view.from + (x - LEFT) / (width - LEFT - RIGHT) * (view.to - view.from);

function zoom(from, to) {
  from = Math.max(whole.from, Math.min(from, whole.to - 1));
  to = Math.min(whole.to, Math.max(to, from + 1));
  view.from = from;
  view.to = to;
  redraw();
}

function redraw() {
  for (const chart of charts) if (chart.canvas.offsetParent) chart.draw();
  const all = view.from === whole.from && view.to === whole.to;
  document.getElementById('reset').disabled = all;
  document.getElementById('range').textContent = 'steps ' + count(view.from) + ' to ' + count(view.to);
  point(view.cursor);
}

// Show a step in every chart: a line, and what was measured there. null: none.
function point(step) {
  view.cursor = step === null ? null : Math.round(Math.max(view.from, Math.min(view.to, step)));
  for (const chart of charts) {
    if (!chart.canvas.offsetParent) continue;
    const seen = view.cursor !== null;
    chart.cross.style.display = seen ? 'block' : 'none';
    if (seen) chart.cross.style.left = xOf(view.cursor, chart.canvas.clientWidth) + 'px';
    chart.readout.textContent = seen ? chart.read(view.cursor) : chart.rest;
  }
}

// The pointer moves the step; dragged across, it zooms; a double click shows all. The keys do the same.
function watched(chart) {
  const {canvas} = chart, place = canvas.parentElement;
  chart.cross = element('div', {class: 'cross'});
  const chosen = element('div', {class: 'chosen'});
  place.append(chart.cross, chosen);
  let start = null;
  const at = event => Math.max(LEFT, Math.min(canvas.clientWidth - RIGHT, event.clientX - canvas.getBoundingClientRect().left));
  canvas.addEventListener('pointerdown', event => {
    if (event.button) return;
    start = at(event);
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener('pointermove', event => {
    const x = at(event);
    if (chart.hover) chart.hover(event.clientY - canvas.getBoundingClientRect().top);
    point(stepAt(x, canvas.clientWidth));
    if (start === null) return;
    chosen.style.display = 'block';
    chosen.style.left = Math.min(start, x) + 'px';
    chosen.style.width = Math.abs(x - start) + 'px';
  });
  const end = event => {
    chosen.style.display = 'none';
    if (start === null) return;
    const [low, high] = [start, at(event)].sort((a, b) => a - b), width = canvas.clientWidth;
    start = null;
    if (event.type === 'pointerup' && high - low > 5) zoom(stepAt(low, width), stepAt(high, width));
  };
  canvas.addEventListener('pointerup', end);
  canvas.addEventListener('pointercancel', end);
  canvas.addEventListener('pointerleave', event => {
    if (start === null) setTimeout(() => point(null), event.pointerType === 'mouse' ? 0 : 8000); // a finger covers what it shows
  });
  canvas.addEventListener('dblclick', () => zoom(whole.from, whole.to));
  canvas.addEventListener('keydown', event => {
    const span = view.to - view.from, now = view.cursor === null ? (view.from + view.to) / 2 : view.cursor;
    const jump = Math.max(1, span / (event.shiftKey ? 10 : 100));
    const moves = {ArrowLeft: now - jump, ArrowRight: now + jump, Home: view.from, End: view.to};
    const zooms = {'+': 0.5, '=': 0.5, '-': 2};
    if (event.key in moves) point(moves[event.key]);
    else if (chart.layer && (event.key === 'ArrowUp' || event.key === 'ArrowDown')) {
      chart.layer(event.key === 'ArrowUp' ? -1 : 1);
      point(now);
    } else if (event.key in zooms) zoom(now - (now - view.from) * zooms[event.key], now + (view.to - now) * zooms[event.key]);
    else if (event.key === 'Escape') zoom(whole.from, whole.to);
    else return;
    event.preventDefault();
  });
  charts.push(chart);
}

function axis(context, width, height) {
  context.fillStyle = colour('--soft');
  context.strokeStyle = colour('--grid');
  context.lineWidth = 1;
  context.textAlign = 'center';
  context.textBaseline = 'top';
  for (const step of ticks(view.from, view.to, Math.max(2, Math.floor((width - LEFT) / 90)), false)) {
    if (step !== Math.round(step)) continue;
    const x = Math.round(xOf(step, width)) + 0.5;
    context.beginPath();
    context.moveTo(x, TOP);
    context.lineTo(x, height - BOTTOM);
    context.stroke();
    context.fillText(words(step), Math.min(x, width - 16), height - BOTTOM + 5);
  }
}
