// The page of runs: makes the charts, the legend and the heat maps, and draws what can be seen.

const legend = document.getElementById('legend');
data.runs.forEach((run, r) => {
  if (data.runs.length === 1) return;
  const swatch = element('i', {class: 'swatch' + (r > 5 ? ' dash1' : '')});
  swatch.style.borderTopColor = 'var(--r' + r % 6 + ')';
  const button = element('button', {type: 'button', 'aria-pressed': 'true'}, swatch, run.name);
  button.addEventListener('click', () => {
    view.shown[r] = !view.shown[r];
    button.setAttribute('aria-pressed', String(view.shown[r]));
    redraw();
  });
  legend.append(button);
});
document.getElementById('reset').addEventListener('click', () => zoom(whole.from, whole.to));

const curves = document.getElementById('curves');
data.charts.forEach((spec, i) => curves.append(new CurveChart(spec, i).figure));

const maps = [], groups = document.getElementById('heat-maps');
const choice = element('select', {'aria-label': 'the run whose heat maps are shown'});
data.runs.forEach((run, r) => choice.append(element('option', {value: r}, run.name)));
if (data.runs.length > 1 && groups) groups.append(choice);
choice.addEventListener('change', () => {
  for (const map of maps) map.choose(Number(choice.value));
  redraw();
});
for (const [g, group] of data.groups.entries()) {
  const inside = element('div', {class: 'charts'});
  for (const spec of group.maps) {
    const map = new HeatMap(spec, maps.length);
    maps.push(map);
    inside.append(map.figure);
  }
  const details = element('details', {}, element('summary', {}, group.title + ' (' + group.maps.length + ')'), inside);
  details.open = g === 0;
  details.addEventListener('toggle', () => {
    for (const chart of charts) if (details.contains(chart.canvas)) chart.draw();
  });
  groups.append(details);
}

for (const row of document.querySelectorAll('tr[data-step]')) row.addEventListener('click', event => {
  if (event.target.closest('a')) return;
  for (const other of document.querySelectorAll('tr.at')) other.classList.remove('at');
  row.classList.add('at');
  const step = Number(row.dataset.step), span = Math.max(20, (whole.to - whole.from) / 20);
  zoom(step - span, step + span);
  point(step);
  curves.scrollIntoView({block: 'start'});
});

let waiting = 0;
new ResizeObserver(() => {
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(redraw);
}).observe(curves);
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', redraw);

// A page that is served while the run goes on comes anew, and stays where it was.
if (data.live) {
  const kept = JSON.parse(sessionStorage.getItem('jaxlm-view') || 'null');
  const all = [...document.querySelectorAll('details')];
  if (kept) {
    if (kept.range) [view.from, view.to] = [kept.range[0], Math.min(kept.range[1], whole.to)];
    all.forEach((one, i) => { one.open = kept.open[i]; });
    kept.shown.forEach((shown, r) => { if (!shown && legend.children[r]) legend.children[r].click(); });
    requestAnimationFrame(() => scrollTo(0, kept.top));
  }
  setInterval(() => {
    if (document.hidden || view.cursor !== null) return;
    const range = view.from === whole.from && view.to === whole.to ? null : [view.from, view.to];
    sessionStorage.setItem('jaxlm-view', JSON.stringify(
      {range, open: all.map(one => one.open), shown: view.shown, top: scrollY}));
    location.reload();
  }, data.live * 1000);
}
redraw();
document.body.dataset.ready = 'yes';
