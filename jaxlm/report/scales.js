// Numbers for the page: decoding, ticks, words; colours from the page's style.

function decode(text, Kind) {
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return new Kind(bytes.buffer);
}

function words(value) {
  if (value === 0) return '0';
  if (!Number.isFinite(value)) return Number.isNaN(value) ? 'nan' : value > 0 ? 'inf' : '-inf';
  const size = Math.abs(value);
  if (size >= 1e15 || size < 1e-3) return value.toExponential(2).replace('e+', 'e').replace(/\.?0+e/, 'e');
  for (const [unit, letter] of [[1e12, 'T'], [1e9, 'G'], [1e6, 'M'], [1e4, 'k']])
    if (size >= unit) return Number((value / (unit === 1e4 ? 1e3 : unit)).toPrecision(4)) + letter;
  return String(Number(value.toPrecision(4)));
}

const count = step => Math.round(step).toLocaleString('en');

// About `most` round numbers between two, ascending; of a logarithmic axis powers of ten, or 1, 2 and 5 times those.
function ticks(low, high, most, log) {
  if (log) {
    const from = Math.floor(Math.log10(low)), to = Math.ceil(Math.log10(high));
    const every = Math.max(1, Math.ceil((to - from) / most)), found = [];
    const within = to - from <= 2 ? [1, 2, 5] : [1];
    for (let power = Math.ceil(from / every) * every; power <= to; power += every)
      for (const times of within) {
        const value = times * 10 ** power;
        if (value >= low && value <= high) found.push(value);
      }
    if (found.length > 1) return found;
  }
  const raw = (high - low) / most, unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(times => times * unit).find(one => one >= raw * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high * (1 + 1e-12); i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// Anchors of viridis, from dark to light: its lightness grows evenly, for every kind of colour vision and in grey.
const VIRIDIS = ['440154', '482878', '3e4989', '31688e', '26828e', '1f9e89', '35b779', '6ece58', 'b5de2b', 'fde725'].map(
  hex => [0, 2, 4].map(at => parseInt(hex.slice(at, at + 2), 16)));

const PALETTE = Array.from({length: 256}, (_, i) => {
  const at = i / 255 * (VIRIDIS.length - 1), low = Math.min(Math.floor(at), VIRIDIS.length - 2), share = at - low;
  return VIRIDIS[low].map((channel, c) => Math.round(channel + share * (VIRIDIS[low + 1][c] - channel)));
});

// A canvas as large as its element, in the pixels of the screen; the context draws in CSS pixels.
function prepared(canvas, height) {
  const width = canvas.clientWidth, ratio = window.devicePixelRatio || 1;
  if (height) canvas.style.height = height + 'px';
  const tall = height || canvas.clientHeight;
  canvas.width = Math.max(1, Math.round(width * ratio));
  canvas.height = Math.max(1, Math.round(tall * ratio));
  const context = canvas.getContext('2d');
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.font = '11px system-ui, sans-serif';
  return [context, width, tall];
}

function element(tag, attributes, ...inside) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
  made.append(...inside);
  return made;
}
