// One user: state, devices, gaps, pending messages, and what can be done.

import { call, userPath } from './api.mjs';
import { askForMessage, confirmed } from './dialogs.mjs';
import { button, element, facts, table, toast } from './dom.mjs';
import { bytes, count, dateTime, plural, visible } from './format.mjs';

const ROWS = 50;

/** Characters of a payload that are shown at first. */
const PAYLOAD_MAX = 2000;

/** Creates the text of a payload. A long one is cut, and can be shown whole. */
export function payload(value) {
  if (value === undefined) return element('span', { class: 'quiet' }, 'no data');
  const text = visible(JSON.stringify(value));
  const shown = element('code', { class: 'payload' }, text.slice(0, PAYLOAD_MAX));
  if (text.length <= PAYLOAD_MAX) return shown;
  const all = button(`Show all ${plural(text.length, 'character')}`, () => {
    shown.textContent = text;
    all.remove();
  }, { class: 'plain' });
  return element('div', {}, shown, all);
}

const REASONS = {
  expired: 'expired', quota: 'dropped at the quota', cleared: 'cleared', collapsed: 'replaced by a newer message',
  received: 'received', lost: 'lost in Redis', restart: 'skipped after a restart',
};

const range = ({ from, to }) => (from === to ? count(from) : `${count(from)} to ${count(to)}`);

/** Returns the cards of a user's state. */
function state(user) {
  const cards = [element('section', { class: 'card' }, element('h2', {}, 'State'), facts([
    ['Connections', user.connections ? plural(user.connections, 'connection') : 'offline'],
    ['Last seen', dateTime(user.lastSeen)],
    ['Pending', `${plural(user.pending, 'message')}, ${bytes(user.pendingBytes)}`],
    ['Last sequence', count(user.lastSequence)],
    ['Acknowledged up to', count(user.acknowledged)],
    ...(user.damaged ? [['Damaged', 'some stored data cannot be read; run mesa inspect']] : []),
  ]))];
  if (user.devices.length) {
    const rows = user.devices.map(({ device, acknowledged, pending, lastSeen }) =>
      [element('span', { class: 'id' }, visible(device)), dateTime(lastSeen), count(acknowledged), count(pending)]);
    const columns = ['Device', ['Last seen', 'wide'], ['Cursor', 'number'], ['Pending', 'number']];
    cards.push(element('section', { class: 'card' }, element('h2', {}, 'Devices'), table('Devices', columns, rows).whole));
  }
  if (user.gaps.length) {
    const rows = user.gaps.map((gap) => [range(gap), REASONS[gap.reason] ?? gap.reason]);
    cards.push(element('section', { class: 'card' }, element('h2', {}, 'Gaps'), table('Gaps', ['Sequences', 'Reason'], rows).whole));
  }
  return cards;
}

/** Creates the view. */
export function user({ report, go }, id) {
  const name = visible(id);
  const cards = element('div', { class: 'columns' });
  const list = table('Pending messages', [['Sequence', 'time'], 'Type', 'Data'], []);
  list.whole.classList.add('stack');
  const none = element('p', { class: 'quiet', hidden: true }, 'No pending messages.');
  const more = button('Show more', () => loadMessages(false).catch(report), { hidden: true });
  let [after, lastSequence, isStopped] = [0, 0, false];

  async function loadMessages(isNew) {
    if (isNew) after = 0;
    const from = after;
    const page = await call('GET', userPath(id, `/messages?limit=${ROWS}&after=${from}`), { exact: true });
    // A later load has replaced this one.
    if (from !== after) return;
    if (isNew) list.body.replaceChildren();
    page.messages.forEach(({ op, d, t, s }) => list.addRow([
      count(s), visible(t ?? '') + (op ? ` (op ${op})` : ''), payload(d),
    ]));
    after = page.cursor ?? after;
    showRest(page.cursor === null);
    list.whole.hidden = !list.body.rows.length;
    none.hidden = Boolean(list.body.rows.length);
  }

  /** A page is bounded in bytes too, so only an empty one is the last for certain, or one with the last message. */
  function showRest(isEmpty) {
    more.hidden = isEmpty || after >= lastSequence;
  }

  async function refresh() {
    try {
      const [found] = await Promise.all([call('GET', userPath(id)), loadMessages(true)]);
      lastSequence = found.lastSequence;
      showRest(list.body.rows.length === 0);
      if (!isStopped) cards.replaceChildren(...state(found));
    } catch (error) {
      report(error);
    }
  }

  /** Asks, acts, and shows the result. */
  const act = async (title, text, action, run, result) => {
    const done = await confirmed(title, text, action, run);
    if (done) toast(result(done));
    return done;
  };
  const send = async () => {
    const outcome = await askForMessage(`Send a message to ${name}`, (type, data, isStored) => {
      const t = type && `,"t":${JSON.stringify(type)}`;
      const body = `{"message":{"op":0,"d":${data}${t},"o":{"sync":${isStored}}},"recipients":${JSON.stringify([id])}}`;
      return call('POST', 'dispatch', { body });
    });
    if (!outcome) return;
    const { online, stored, rejected } = outcome;
    toast(rejected.length ? `Not sent to ${name}: ${rejected[0].reason}` : `Sent to ${name}: ${online ? 'online' : 'offline'}, ${stored ? 'stored' : 'not stored'}`);
    refresh();
  };
  const clear = async () => (await act(`Clear the pending messages of ${name}?`,
    `They count as received by every device of ${name}, and cannot be brought back.`, 'Clear messages',
    () => call('DELETE', userPath(id, '/messages')), ({ cleared }) => `${plural(cleared, 'message')} of ${name} cleared`)) && refresh();
  const disconnect = async () => (await act(`Disconnect ${name}?`,
    `All connections of ${name} close. Most clients connect again.`, 'Disconnect',
    () => call('POST', userPath(id, '/disconnect')), ({ disconnected }) => `${plural(disconnected, 'connection')} of ${name} closed`)) && refresh();
  const erase = async () => (await act(`Erase ${name}?`,
    `Everything that the server has stored about ${name} is removed for good: messages, devices and events. Revoke the user's tokens first.`,
    'Erase the user', () => call('DELETE', userPath(id), { timeout: 30_000 }), () => `${name} is erased`)) && go('#/users');

  refresh();
  return {
    title: name,
    content: [
      element('p', { class: 'crumbs' }, element('a', { href: '#/users' }, 'Users')),
      element('div', { class: 'heading' }, element('h1', { tabindex: '-1', class: 'id' }, name),
        element('div', { class: 'actions' }, button('Refresh', refresh), button('Send a message', send),
          button('Clear messages', clear), button('Disconnect', disconnect), button('Erase', erase))),
      cards,
      element('section', { class: 'card flush' }, element('h2', {}, 'Pending messages'), none, list.whole),
      more,
    ].flat(),
    stop: () => { isStopped = true; },
  };
}
