// A live list of client events.

import { streamEvents } from './api.mjs';
import { button, element, table } from './dom.mjs';
import { clock, count, visible } from './format.mjs';
import { payload } from './user.mjs';
import { userLink } from './users.mjs';

/** Rows that are kept. One more removes the oldest. */
const ROWS_MAX = 500;

/** Delay before the stream is opened again, in milliseconds. */
const RETRY_DELAY = 1000;

const TYPES = ['connection', 'authentication', 'message', 'disconnection'];

/** Creates the view. */
export function events({ report }) {
  const list = table('Client events, the newest first', [['Time', 'time'], 'Event', 'User', ['Connection', 'wide'], 'Message'], []);
  list.whole.classList.add('stack');
  const none = element('p', { class: 'quiet' }, 'Events appear here as they happen.');
  // Not spoken: it changes with each event.
  const summary = element('p', { class: 'summary' });
  const text = element('input', { type: 'search', id: 'filter', autocomplete: 'off', spellcheck: 'false' });
  const kind = element('select', { id: 'kind' }, element('option', { value: '' }, 'all'),
    ...TYPES.map((type) => element('option', { value: type }, type)));
  const pause = button('Pause', () => {
    isPaused = !isPaused;
    pause.textContent = isPaused ? 'Continue' : 'Pause';
    draw();
  });
  const abort = new AbortController();
  // The newest last. Rows that wait for the next frame, or for the end of a pause, are in `waiting`.
  let [rows, waiting, seen, isPaused, isOpen, isDrawing] = [[], [], 0, false, false, false];

  const matches = ({ event, searched }) => (!kind.value || event.type === kind.value) && searched.includes(text.value.toLowerCase());

  function create({ event, at }) {
    const { type, user, connection, message, count: missed, reason } = event;
    if (type === 'dropped') {
      const sentence = `${count(missed)} events were too many for this page, and are missing here`;
      return element('tr', {}, element('td', { class: 'time' }, clock(at)), element('td', { colspan: '4' }, sentence));
    }
    const shown = message && element('div', { class: 'event' },
      element('b', {}, visible(message.t ?? '') + (message.op ? ` (op ${message.op})` : '')), ' ', payload(message.d));
    const cells = [['time', clock(at)], ['', type], ['', user === undefined ? '' : userLink(user)], ['wide', visible(connection)],
      ['', shown ?? visible(reason ?? '')]];
    return element('tr', {}, ...cells.map(([name, cell]) => element('td', { class: name || null }, cell)));
  }

  /** Adds the waiting events to the list. */
  function draw() {
    if (!isPaused) {
      const added = waiting.filter(matches);
      waiting = [];
      added.forEach((each) => { each.row = create(each); });
      rows = rows.concat(added);
      rows.splice(0, Math.max(0, rows.length - ROWS_MAX)).forEach(({ row }) => row.remove());
      // Not those that were removed at once.
      list.body.prepend(...added.filter((each) => rows.includes(each)).reverse().map(({ row }) => row));
    }
    list.whole.hidden = !rows.length;
    none.hidden = Boolean(rows.length);
    const connected = isOpen ? '' : ', not connected';
    const held = isPaused ? `, paused with ${count(waiting.length)} waiting` : '';
    summary.textContent = `${count(seen)} events seen, ${count(rows.length)} shown${held}${connected}`;
  }

  function schedule() {
    if (isDrawing) return;
    isDrawing = true;
    // In a hidden tab there are no frames. What waits is bounded.
    requestAnimationFrame(() => {
      isDrawing = false;
      draw();
    });
  }

  function receive(event) {
    if (event.type !== 'dropped') seen += 1;
    const searched = `${event.user ?? ''}\n${event.type}\n${event.message ? JSON.stringify(event.message) : ''}`.toLowerCase();
    const each = { event, at: new Date(), searched };
    if (!matches(each)) return schedule();
    waiting.push(each);
    if (waiting.length > ROWS_MAX) waiting.shift();
    schedule();
  }

  async function follow() {
    while (!abort.signal.aborted) {
      try {
        for await (const event of streamEvents(abort.signal, () => { isOpen = true; schedule(); })) receive(event);
      } catch (error) {
        if (!abort.signal.aborted) report(error);
      }
      isOpen = false;
      schedule();
      await new Promise((resolve) => setTimeout(resolve, RETRY_DELAY));
    }
  }

  function filter() {
    const removed = rows.filter((each) => !matches(each));
    removed.forEach(({ row }) => row.remove());
    rows = rows.filter((each) => !removed.includes(each));
    draw();
  }
  text.addEventListener('input', filter);
  kind.addEventListener('change', filter);
  follow();
  draw();
  return {
    title: 'Events',
    content: [
      element('div', { class: 'heading' }, element('h1', { tabindex: '-1' }, 'Events'),
        element('div', { class: 'actions' }, pause, button('Clear', () => {
          list.body.replaceChildren();
          [rows, waiting, seen] = [[], [], 0];
          draw();
        }))),
      element('div', { class: 'tools' }, element('label', { for: 'filter' }, 'Contains'), text,
        element('label', { for: 'kind' }, 'Type'), kind, summary),
      element('div', { class: 'card flush' }, none, list.whole),
    ],
    stop: () => abort.abort(),
  };
}
