// Formats numbers, times and texts for people.

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat('en', { maximumSignificantDigits: 3, useGrouping: true });

/** What is shown for a value that this server does not have. */
export const NONE = '–';

const orNone = (format) => (value) => (value === null || value === undefined || Number.isNaN(value) ? NONE : format(value));

/** Formats a whole number. */
export const count = orNone((value) => whole.format(value));

/** Formats a rate or another number with few digits. */
export const number = orNone((value) => (Math.abs(value) >= 1000 ? whole.format(value) : short.format(value)));

/** Formats a number of bytes. */
export const bytes = orNone((value) => {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
  const power = value >= 1 ? Math.min(Math.floor(Math.log2(value) / 10), units.length - 1) : 0;
  return `${number(value / 1024 ** power)} ${units[power]}`;
});

/** Formats microseconds. */
export const micros = orNone((value) => (value >= 1e6 ? `${number(value / 1e6)} s` : value >= 1000 ? `${number(value / 1000)} ms` : `${number(value)} µs`));

/** Formats a number of seconds by its two largest units. */
export const duration = orNone((seconds) => {
  const parts = [['d', 86_400], ['h', 3600], ['min', 60], ['s', 1]];
  let rest = Math.floor(seconds);
  const found = parts.map(([unit, size]) => {
    const amount = Math.floor(rest / size);
    rest -= amount * size;
    return [amount, unit];
  });
  const first = Math.max(found.findIndex(([amount]) => amount > 0), 0);
  const used = found[first][0] === 0 ? [[0, 's']] : found.slice(first, first + 2).filter(([amount], at) => at === 0 || amount > 0);
  return used.map(([amount, unit]) => `${amount} ${unit}`).join(' ');
});

const pad = (value, length = 2) => String(value).padStart(length, '0');

/** Formats the time of day. */
export const clock = (date) => `${pad(date.getHours())}:${pad(date.getMinutes())}:${pad(date.getSeconds())}`;

/** Formats date and time, from RFC 3339. */
export const dateTime = orNone((text) => {
  const date = new Date(text);
  return `${date.getFullYear()}-${pad(date.getMonth() + 1)}-${pad(date.getDate())} ${clock(date)}`;
});

/** Formats a number with the singular or plural of its noun. */
export const plural = (value, noun) => `${count(value)} ${value === 1 ? noun : `${noun}s`}`;

// Control characters, invisible ones, those that change the direction of text, and halves of surrogate pairs.
const INVISIBLE = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu;

/** Makes each character visible: a character that has no picture, or changes how others look, becomes its escape. */
export const visible = (text) => String(text).replace(INVISIBLE, (each) => {
  const code = each.codePointAt(0);
  return code > 0xffff ? `\\u{${code.toString(16)}}` : `\\u${pad(code.toString(16), 4)}`;
});
