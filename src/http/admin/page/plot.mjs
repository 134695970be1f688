// Plots the last five minutes of one or two values as an SVG.

import { element, svg } from './dom.mjs';
import { SAMPLES_MAX } from './poller.mjs';

const [WIDTH, HEIGHT] = [600, 120];

/** Time between two samples that are joined by a line, in milliseconds. */
const GAP_MIN = 3500;

/** Returns a round number that is at least `value`. `base` is 1024 for bytes. */
function roundUp(value, base) {
  if (value <= 0) return 1;
  const unit = base === 1024 ? 1024 ** Math.floor(Math.log2(value) / 10) : 1;
  const power = 10 ** Math.floor(Math.log10(value / unit));
  const step = [1, 2, 2.5, 5, 10].find((each) => each * power * unit >= value) ?? 10;
  return Math.max(step * power * unit, 1);
}

/** Returns the path of one value, in pieces where samples are missing. */
function line(samples, key, now, max) {
  let [path, last] = ['', undefined];
  for (const each of samples) {
    const value = each[key];
    if (value === null || value === undefined) {
      last = undefined;
      continue;
    }
    const x = WIDTH - ((now - each.at) / 1000) * (WIDTH / SAMPLES_MAX);
    const y = HEIGHT - (value / max) * (HEIGHT - 4);
    const at = `${x.toFixed(1)} ${y.toFixed(1)}`;
    // A line of no length is a dot, for a sample without a neighbour.
    path += last !== undefined && each.at - last < GAP_MIN ? `L${at}` : `M${at}h0`;
    last = each.at;
  }
  return path;
}

/**
 * Creates a plot. `series` are one or two of `{ name, key }`; the second one is dashed. `format` formats a value, and `base` is
 * 1024 for bytes. Returns its element, and a function that shows samples.
 */
export function plot(title, series, format, base = 10) {
  const paths = series.map((_, at) => svg('path', { class: at ? 'second' : 'first', 'vector-effect': 'non-scaling-stroke' }));
  const grid = [0.5, 1].map((part) => svg('line', {
    class: 'grid', x1: 0, x2: WIDTH, y1: HEIGHT - part * (HEIGHT - 4), y2: HEIGHT - part * (HEIGHT - 4), 'vector-effect': 'non-scaling-stroke',
  }));
  const picture = svg('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none', role: 'img' }, ...grid, ...paths);
  const values = series.map(() => element('output'));
  const swatch = (at) => svg('svg', { class: 'swatch', viewBox: '0 0 16 4', 'aria-hidden': 'true' },
    svg('path', { class: at ? 'second' : 'first', d: 'M0 2L16 2' }));
  const legend = series.map(({ name }, at) => element('span', {}, ...(series.length > 1 ? [swatch(at)] : []), `${name} `, values[at]));
  const top = element('span', { class: 'top' });
  const whole = element('figure', { class: 'plot' },
    element('figcaption', {}, element('h2', {}, title), element('p', { class: 'legend' }, ...legend)),
    element('div', { class: 'canvas' }, top, picture),
    element('p', { class: 'axis', 'aria-hidden': 'true' }, element('span', {}, '5 min ago'), element('span', {}, 'now')));
  const update = (samples) => {
    const now = performance.now();
    const of = (key) => samples.map((each) => each[key]).filter((value) => value !== null && value !== undefined);
    const highest = Math.max(0, ...series.flatMap(({ key }) => of(key)));
    const max = roundUp(highest, base);
    series.forEach(({ key }, at) => {
      paths[at].setAttribute('d', line(samples, key, now, max));
      values[at].textContent = format(samples.at(-1)?.[key]);
    });
    top.textContent = format(max);
    const current = series.map(({ name, key }) => `${name} ${format(samples.at(-1)?.[key])}`).join(', ');
    picture.setAttribute('aria-label', `${title} in the last 5 minutes: now ${current}; highest value ${format(highest)}`);
  };
  return { whole, update };
}
