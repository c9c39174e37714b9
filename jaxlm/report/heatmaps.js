// Heat maps: a row for each layer, a column for some steps; where columns are narrower than a pixel, the one that tells most.

const BAD = 65534, NOTHING = 65535;

// Figures that have a map: an alarm that names one is framed there, another one in all.
const named = new Set(data.groups.flatMap(group => group.maps.map(map => map.name)));

class HeatMap {
  constructor(spec, index) {
    this.spec = spec;
    this.row = 0;
    this.canvas = element('canvas', {tabindex: 0, role: 'img'});
    this.readout = element('div', {class: 'readout', id: 'map-readout-' + index});
    this.canvas.setAttribute('aria-describedby', this.readout.id);
    this.low = element('span');
    this.high = element('span');
    const ramp = element('i');
    ramp.style.background = 'linear-gradient(to right,' + VIRIDIS.map(c => 'rgb(' + c + ')') + ')';
    const caption = element('figcaption', {}, element('b', {}, spec.title), element('span', {class: 'unit'}, spec.unit));
    const plot = element('div', {class: 'plot map'}, this.canvas);
    const scale = element('div', {class: 'scale'}, this.low, ramp, this.high);
    this.figure = element('figure', {class: 'card'}, caption, plot, scale, this.readout);
    this.rest = '';
    watched(this);
    this.choose(0);
  }

  choose(run) {
    this.run = run;
    this.map = data.runs[run].heats[this.spec.name] || null;
    this.figure.hidden = this.map === null;
    if (this.map === null) return;
    const {map} = this;
    this.row = Math.min(this.row, map.layers - 1);
    const said = level => words(map.log ? 10 ** level : level);
    this.low.textContent = said(map.from);
    this.high.textContent = said(map.to);
    this.rest = map.layers + ' layers; from ' + said(map.low) + ' to ' + said(map.high) + ' in all';
    this.readout.textContent = this.rest;
    this.canvas.setAttribute('aria-label', this.spec.title + ' by layer over the steps, ' + this.rest);
  }

  cells() {
    if (typeof this.map.cells === 'string') this.map.cells = decode(this.map.cells, Uint16Array);
    return this.map.cells;
  }

  tall() { return Math.max(5, Math.min(24, Math.floor(220 / this.map.layers))); }

  value(level) {
    const {map} = this, exact = map.low + level / (BAD - 1) * (map.high - map.low);
    return map.log ? 10 ** exact : exact;
  }

  draw() {
    if (this.map === null) return;
    const {map} = this, cells = this.cells(), each = this.tall(), body = each * map.layers;
    const [context, width, height] = prepared(this.canvas, body + TOP + BOTTOM);
    context.clearRect(0, 0, width, height);
    axis(context, width, height);
    const ratio = window.devicePixelRatio || 1, across = Math.max(1, Math.round((width - LEFT - RIGHT) * ratio));
    const image = new ImageData(across, map.layers), bad = colour('--bad-cell');
    const badly = [1, 3, 5].map(at => parseInt(bad.slice(at, at + 2), 16));
    const range = (map.to - map.from) || 1, unit = (map.high - map.low) / (BAD - 1);
    const least = this.spec.reduce === 'low';
    for (let x = 0; x < across; x++) {
      const from = view.from + x / across * (view.to - view.from), to = view.from + (x + 1) / across * (view.to - view.from);
      // A column reaches half a step beyond its first and last one, as the pointer takes the nearest step.
      const first = Math.floor((from - 0.5) / map.stride), last = Math.max(first, Math.ceil((to - 0.5) / map.stride) - 1);
      for (let row = 0; row < map.layers; row++) {
        let level = NOTHING;
        for (let column = first; column <= last && column < map.columns; column++) {
          const found = cells[column * map.layers + row];
          if (found === BAD) { level = BAD; break; }
          if (found !== NOTHING && (level === NOTHING || (least ? found < level : found > level))) level = found;
        }
        if (level === NOTHING) continue;
        const share = (map.low + level * unit - map.from) / range;
        const tint = level === BAD ? badly : PALETTE[Math.max(0, Math.min(255, Math.round(share * 255)))];
        image.data.set([tint[0], tint[1], tint[2], 255], (row * across + x) * 4);
      }
    }
    const small = element('canvas', {width: across, height: map.layers});
    small.getContext('2d').putImageData(image, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(small, LEFT, TOP, width - LEFT - RIGHT, body);
    context.fillStyle = colour('--soft');
    context.textAlign = 'right';
    context.textBaseline = 'middle';
    for (const row of ticks(0, map.layers - 1, Math.max(2, Math.floor(body / 30)), false))
      if (row === Math.round(row)) context.fillText(String(row), LEFT - 5, TOP + (row + 0.5) * each);
    this.alarms(context, width, each);
  }

  alarms(context, width, each) {
    context.fillStyle = context.strokeStyle = colour('--bad');
    for (const mark of data.runs[this.run].marks) {
      if (mark.kind === 'resumed' || mark.step < view.from || mark.step > view.to) continue;
      const x = xOf(mark.step, width);
      context.beginPath();
      context.moveTo(x - 4, 1);
      context.lineTo(x + 4, 1);
      context.lineTo(x, TOP - 1);
      context.fill();
      if (mark.layer === null || (mark.what !== this.spec.name && named.has(mark.what))) continue;
      context.lineWidth = 1.5;
      context.strokeRect(x - 3, TOP + mark.layer * each - 1, 6, each + 2);
    }
  }

  hover(y) { this.row = Math.max(0, Math.min(this.map.layers - 1, Math.floor((y - TOP) / this.tall()))); }

  layer(by) { this.row = Math.max(0, Math.min(this.map.layers - 1, this.row + by)); }

  read(step) {
    const {map} = this, column = Math.floor((step - 1) / map.stride), first = 1 + column * map.stride;
    const where = map.stride > 1 ? count(first) + '–' + count(Math.min(first + map.stride - 1, whole.to)) : count(first);
    const level = column < map.columns ? this.cells()[column * map.layers + this.row] : NOTHING;
    const found = level === BAD ? 'not finite' : level === NOTHING ? '–' : words(this.value(level));
    return ['layer ' + this.row + ': ' + found + ', step ' + where].concat(told(step)).join('; ');
  }
}
