// Builds elements. Every text becomes a text node, so nothing that a user or a backend has sent is read as HTML.

const SVG = 'http://www.w3.org/2000/svg';

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === 'function') node.addEventListener(name, value);
    else node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.flat().filter((child) => child !== undefined && child !== null));
  return node;
}

/** Creates an element. An attribute that is a function listens to the event of its name. Children are nodes or texts. */
export const element = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);

/** Creates an element of an SVG. */
export const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

/** Creates a button. */
export const button = (text, click, attributes = {}) => element('button', { type: 'button', click, ...attributes }, text);

/** Creates a table. A column is its heading, or its heading and a class of its cells. */
export function table(caption, columns, rows) {
  const named = columns.map((column) => (Array.isArray(column) ? column : [column, undefined]));
  const cells = (row) => row.map((cell, at) => element('td', { class: named[at][1] }, cell));
  const body = element('tbody', {}, ...rows.map((row) => element('tr', {}, ...cells(row))));
  const head = named.map(([text, kind]) => element('th', { scope: 'col', class: kind }, text));
  const whole = element('table', {}, element('caption', { class: 'hidden' }, caption),
    element('thead', {}, element('tr', {}, ...head)), body);
  return { whole, body, addRow: (row) => body.append(element('tr', {}, ...cells(row))) };
}

/** Creates a list of names and values. */
export function facts(pairs) {
  const fact = ([name, value]) => element('div', {}, element('dt', {}, name), element('dd', {}, value));
  return element('dl', { class: 'facts' }, ...pairs.map(fact));
}

let toastTimer;

/** Shows a short message, which is also spoken. */
export function toast(text) {
  const shown = document.getElementById('toast');
  shown.textContent = text;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { shown.textContent = ''; }, 8000);
}
