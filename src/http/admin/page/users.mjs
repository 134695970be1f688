// Lists of users: those online, those with pending messages, and all.

import { call } from './api.mjs';
import { button, element, table } from './dom.mjs';
import { bytes, clock, count, dateTime, plural, visible } from './format.mjs';

const ROWS = 50;

/** Requests for one page. The server filters within its pages, so one may be empty and not the last. */
const REQUESTS_MAX = 20;

const LISTS = [['online', 'Online', 'online=true'], ['pending', 'Pending', 'pending=true'], ['all', 'All', '']];

/** Returns the link to a user's view. */
export const userLink = (id) => element('a', { href: `#/users/${encodeURIComponent(id)}`, class: 'id' }, visible(id));

const row = ({ id, connections, pending, pendingBytes, lastSeen, damaged }) => [
  userLink(id),
  connections ? count(connections) : element('span', { class: 'quiet' }, 'offline'),
  `${dateTime(lastSeen)}${damaged ? ', damaged' : ''}`,
  bytes(pendingBytes),
  count(pending),
];

/** Creates the view. */
export function users({ report, memory }) {
  memory.list ??= 'online';
  memory.prefix ??= '';
  const list = table('Users', ['User', ['Connections', 'number'], ['Last seen', 'wide'], ['Bytes', 'number wide'], ['Pending', 'number']], []);
  const summary = element('p', { class: 'summary', role: 'status' });
  const more = button('Show more', () => load(false), { hidden: true });
  const search = element('input', { type: 'search', id: 'prefix', value: memory.prefix, autocomplete: 'off', spellcheck: 'false' });
  let [cursor, shown, number] = [null, 0, 0];

  async function load(isNew) {
    // A later load replaces this one.
    number += 1;
    const own = number;
    const filter = LISTS.find(([name]) => name === memory.list)[2];
    let [next, found] = [isNew ? null : cursor, []];
    more.disabled = true;
    try {
      for (let n = 0; n < REQUESTS_MAX && found.length < ROWS; n += 1) {
        const parameters = [filter, memory.prefix && `prefix=${encodeURIComponent(memory.prefix)}`, `limit=${ROWS}`,
          next !== null && `cursor=${encodeURIComponent(next)}`].filter(Boolean);
        const page = await call('GET', `users?${parameters.join('&')}`);
        if (own !== number) return;
        found = found.concat(page.users);
        next = page.cursor;
        if (next === null) break;
      }
    } catch (error) {
      if (own === number) report(error);
      return;
    } finally {
      more.disabled = false;
    }
    if (isNew) {
      list.body.replaceChildren();
      shown = 0;
    }
    found.forEach((user) => list.addRow(row(user)));
    [cursor, shown] = [next, shown + found.length];
    more.hidden = next === null;
    list.whole.hidden = shown === 0;
    summary.textContent = `${shown ? plural(shown, 'user') : 'No users'}${next === null ? '' : ', and maybe more'} at ${clock(new Date())}`;
  }

  const choice = LISTS.map(([name, text]) => button(text, () => {
    memory.list = name;
    mark();
    load(true);
  }, { 'data-list': name }));
  const mark = () => choice.forEach((each) => each.setAttribute('aria-pressed', String(each.dataset.list === memory.list)));
  let typing;
  search.addEventListener('input', () => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      memory.prefix = search.value;
      load(true);
    }, 200);
  });
  mark();
  load(true);
  return {
    title: 'Users',
    content: [
      element('div', { class: 'heading' }, element('h1', { tabindex: '-1' }, 'Users'),
        element('div', { class: 'choice', role: 'group', 'aria-label': 'Which users' }, ...choice)),
      element('div', { class: 'tools' },
        element('label', { for: 'prefix' }, 'Id begins with'), search, button('Refresh', () => load(true)), summary),
      element('div', { class: 'card flush' }, list.whole),
      more,
    ],
    stop: () => clearTimeout(typing),
  };
}
