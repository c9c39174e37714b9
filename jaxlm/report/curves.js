// Curves over the steps: for each bucket a line through the mean, a band from the lowest to the highest value.

const DASHES = [[], [6, 4], [2, 3]];

function opened(curve) {
  if (curve.x instanceof Uint32Array) return curve;
  curve.x = decode(curve.x, Uint32Array);
  for (const name of ['mean', 'low', 'high']) if (curve[name]) curve[name] = decode(curve[name], Float32Array);
  const Kind = curve.stride < 65536 ? Uint16Array : Uint32Array;
  for (const name of ['low_step', 'high_step']) if (curve[name]) curve[name] = decode(curve[name], Kind);
  if (curve.bad) curve.bad = decode(curve.bad, Uint32Array);
  return curve;
}

// The last place whose step is not above `step`; -1 where there is none.
function before(steps, step) {
  let low = 0, high = steps.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= step) low = middle + 1; else high = middle;
  }
  return low - 1;
}

class CurveChart {
  constructor(spec, index) {
    this.spec = spec;
    this.log = spec.log;
    this.lines = [];
    data.runs.forEach((run, r) => spec.curves.forEach(([name, label], c) => {
      if (run.curves[name]) this.lines.push({
        run: r, curve: run.curves[name], name: data.runs.length === 1 ? label : spec.curves.length === 1 ? run.name : run.name + ' ' + label,
        tint: '--r' + (data.runs.length > 1 ? r : c) % 6, dash: DASHES[(c + (r > 5)) % 3]});
    }));
    this.canvas = element('canvas', {tabindex: 0, role: 'img'});
    this.readout = element('div', {class: 'readout', id: 'readout-' + index});
    this.canvas.setAttribute('aria-describedby', this.readout.id);
    this.rest = this.ends();
    this.readout.textContent = this.rest;
    this.canvas.setAttribute('aria-label', spec.title + ' over the steps. ' + this.rest);
    const button = element('button', {type: 'button', 'aria-pressed': String(this.log)}, 'log');
    button.addEventListener('click', () => {
      this.log = !this.log;
      button.setAttribute('aria-pressed', String(this.log));
      this.draw();
    });
    const caption = element('figcaption', {}, element('b', {}, spec.title), element('span', {class: 'unit'}, spec.unit), button);
    const keys = element('div', {class: 'keys'});
    if (spec.curves.length > 1) spec.curves.forEach(([name, label], c) => {
      if (!data.runs.some(run => run.curves[name])) return;
      const swatch = element('i', {class: 'swatch dash' + c % 3});
      if (data.runs.length === 1) swatch.style.borderTopColor = 'var(--r' + c % 6 + ')';
      keys.append(element('span', {}, swatch, label));
    });
    const plot = element('div', {class: 'plot'}, this.canvas);
    this.figure = element('figure', {class: 'card'}, caption, keys, plot, this.readout);
    watched(this);
  }

  visible() { return this.lines.filter(line => view.shown[line.run]); }

  ends() {
    return this.lines.map(line => {
      const {last} = opened(line.curve);
      return line.name + (last ? ' ' + words(last[1]) + ' at step ' + count(last[0]) : ' not finite at last');
    }).join('; ');
  }

  range() {
    let low = Infinity, high = -Infinity;
    for (const {curve} of this.visible()) {
      const {x, mean} = curve, below = curve.low || mean, above = curve.high || mean;
      const first = Math.max(0, before(x, view.from)), last = before(x, view.to);
      for (let i = first; i <= last; i++) {
        if (!this.log || below[i] > 0) low = Math.min(low, below[i]);
        else if (mean[i] > 0) low = Math.min(low, mean[i]);
        if (!this.log || above[i] > 0) high = Math.max(high, above[i]);
      }
    }
    if (low > high) return [this.log ? 0.1 : 0, 1];
    if (this.log) return high > low * 1.1 ? [low / 1.1, high * 1.1] : [low / 2, high * 2];
    const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
    return [low >= 0 && low < room ? 0 : low - room, high + room];
  }

  draw() {
    const [context, width, height] = prepared(this.canvas), [low, high] = this.range();
    const place = this.log ? Math.log : value => value, bottom = place(low), span = place(high) - bottom;
    const y = value => Math.max(TOP, Math.min(height - BOTTOM,
      height - BOTTOM - (this.log && value <= 0 ? 0 : (place(value) - bottom) / span) * (height - TOP - BOTTOM)));
    context.clearRect(0, 0, width, height);
    axis(context, width, height);
    context.textAlign = 'right';
    context.textBaseline = 'middle';
    for (const value of ticks(low, high, 4, this.log)) {
      const at = Math.round(y(value)) + 0.5;
      context.beginPath();
      context.moveTo(LEFT, at);
      context.lineTo(width - RIGHT, at);
      context.stroke();
      context.fillText(words(value), LEFT - 5, at);
    }
    context.save();
    context.beginPath();
    context.rect(LEFT, 0, width - LEFT - RIGHT, height);
    context.clip();
    marks(context, width, height);
    for (const line of this.visible()) this.line(context, line, width, height, y);
    context.restore();
  }

  line(context, {curve, tint, dash}, width, height, y) {
    const {x, mean} = curve, middle = (curve.stride - 1) / 2;
    const first = Math.max(0, before(x, view.from) - 1), last = Math.min(x.length - 1, before(x, view.to) + 1);
    const at = i => xOf(Math.min(x[i] + middle, whole.to), width);
    context.strokeStyle = context.fillStyle = colour(tint);
    if (curve.low) {
      context.globalAlpha = 0.28;
      context.beginPath();
      for (let i = first; i <= last; i++) context.lineTo(at(i), y(curve.high[i]) - 0.5);
      for (let i = last; i >= first; i--) context.lineTo(at(i), y(curve.low[i]) + 0.5);
      context.fill();
      context.globalAlpha = 1;
      this.outliers(context, curve, at, first, last, y);
    }
    context.setLineDash(dash);
    context.lineWidth = 1.6;
    context.lineJoin = 'round';
    context.beginPath();
    for (let i = first; i <= last; i++) context.lineTo(at(i), y(mean[i]));
    context.stroke();
    context.setLineDash([]);
    if (last - first < 30) for (let i = first; i <= last; i++) {
      context.beginPath();
      context.arc(at(i), y(mean[i]), 2.2, 0, 7);
      context.fill();
    }
    context.fillStyle = colour('--bad');
    for (const step of curve.bad || []) context.fillRect(xOf(step + middle, width) - 1, height - BOTTOM - 6, 2, 6);
  }

  // What sticks out of the band is drawn in full: it may be one step of many.
  outliers(context, curve, at, first, last, y) {
    const {low, high, mean} = curve, heights = [];
    for (let i = first; i <= last; i++) heights.push(Math.abs(y(low[i]) - y(high[i])));
    const usual = 2 + 2 * heights.sort((a, b) => a - b)[heights.length >> 1];
    context.lineWidth = 1.2;
    context.beginPath();
    for (let i = first; i <= last; i++) for (const end of [low[i], high[i]]) if (Math.abs(y(end) - y(mean[i])) > usual) {
      context.moveTo(at(i), y(mean[i]));
      context.lineTo(at(i), y(end));
    }
    context.stroke();
  }

  read(step) {
    const found = this.visible().map(({curve, name}) => {
      const {x, mean} = curve, i = before(x, step);
      if (i < 0) return name + ' –';
      const last = x[i] + curve.stride - 1, where = curve.stride > 1 ? count(x[i]) + '–' + count(Math.min(last, whole.to)) : count(x[i]);
      const band = curve.low && curve.low[i] !== curve.high[i]
        ? ' (low ' + words(curve.low[i]) + ' at ' + count(x[i] + curve.low_step[i]) + ', high ' + words(curve.high[i]) + ' at '
          + count(x[i] + curve.high_step[i]) + ')' : '';
      return name + ' ' + words(mean[i]) + band + ', step ' + where;
    });
    return found.concat(told(step)).join('; ');
  }
}

// Alarms, skipped steps and resumptions: a line each, and a sign at the top.
function marks(context, width, height) {
  data.runs.forEach((run, r) => {
    if (!view.shown[r]) return;
    for (const mark of run.marks) {
      if (mark.step < view.from || mark.step > view.to) continue;
      const x = xOf(mark.step, width), loud = mark.kind !== 'resumed';
      context.strokeStyle = context.fillStyle = colour(loud ? '--bad' : '--resumed');
      context.globalAlpha = loud ? 0.75 : 0.6;
      context.lineWidth = 1;
      context.setLineDash(loud ? [3, 3] : [1, 3]);
      context.beginPath();
      context.moveTo(x, TOP - 2);
      context.lineTo(x, height - BOTTOM);
      context.stroke();
      context.setLineDash([]);
      context.globalAlpha = 1;
      context.beginPath();
      context.moveTo(x - 4, 1);
      context.lineTo(x + 4, 1);
      context.lineTo(x, TOP - 1);
      context.fill();
    }
  });
}

// What happened near a step, in words.
function told(step) {
  const near = (view.to - view.from) / 120, found = [];
  data.runs.forEach((run, r) => {
    if (view.shown[r]) for (const mark of run.marks) if (Math.abs(mark.step - step) <= near) found.push(mark);
  });
  const said = found.slice(0, 3).map(mark => '▼ ' + mark.text + ' at step ' + count(mark.step));
  return found.length > 3 ? said.concat('and ' + (found.length - 3) + ' more') : said;
}
