// The overview: plots of the last five minutes, and what has happened since the start.

import { element, facts } from './dom.mjs';
import { bytes, count, dateTime, duration, micros, number, plural } from './format.mjs';
import { plot } from './plot.mjs';

const perSecond = (value) => (typeof value === 'number' ? `${number(value)}/s` : number(value));

const plots = () => [
  plot('Connections', [{ name: 'open', key: 'connections' }], count),
  plot('Messages per second', [{ name: 'dispatched', key: 'dispatches' }, { name: 'delivered', key: 'deliveries' }], perSecond),
  plot('Pending messages', [{ name: 'pending', key: 'pending' }], count),
  plot('Commit latency', [{ name: 'p99', key: 'p99' }, { name: 'p50', key: 'p50' }], micros),
  plot('Disk', [{ name: 'store', key: 'disk' }, { name: 'WAL', key: 'wal' }], bytes, 1024),
  plot('Memory', [{ name: 'process', key: 'processMemory' }, { name: 'store', key: 'storeMemory' }], bytes, 1024),
];

/** Returns the groups of figures below the plots. */
function figures({ startedAt, uptimeSeconds, version, connections, users, messages, pending, store, process, webhooks }) {
  const latency = store.commitLatencyMicros ?? {};
  return [
    ['Now', [
      ['Users online', count(users.online)],
      ['Authenticated', count(connections.authenticated)],
      ['Pending', bytes(pending.bytes)],
      ['Disk free', bytes(store.diskFreeBytes)],
      ['Flush lag', store.flushLagSeconds === null ? count(null) : `${number(store.flushLagSeconds)} s`],
      ['Slowest commit', micros(latency.max)],
      ['Webhook outbox', webhooks ? `${plural(webhooks.outboxEvents, 'event')}, ${bytes(webhooks.outboxBytes)}` : 'off'],
    ]],
    ['Messages since the start', [
      ['Dispatches', count(messages.dispatches)],
      ['Stored', count(messages.appended)],
      ['Delivered', count(messages.delivered)],
      ['Delivered again', count(messages.redelivered)],
      ['Acknowledged', count(messages.acknowledged)],
      ['Rejected', count(messages.rejected)],
      ['Dropped', count(messages.dropped)],
    ]],
    ['Server', [
      ['Version', version],
      ['Started', dateTime(startedAt)],
      ['Up for', duration(uptimeSeconds)],
      ['Store', store.kind],
      ['Connections accepted', count(connections.accepted)],
      ['Connections rejected', count(connections.rejected)],
      ['CPU, open files', `${duration(process?.cpuSeconds)}, ${count(process?.openFiles)}`],
    ]],
  ];
}

/** Creates the view. */
export function overview({ poller }) {
  const shown = plots();
  const below = element('div', { class: 'columns' });
  const update = () => {
    shown.forEach((each) => each.update(poller.samples));
    if (!poller.status) return;
    below.replaceChildren(...figures(poller.status).map(([title, pairs]) =>
      element('section', { class: 'card' }, element('h2', {}, title), facts(pairs))));
  };
  poller.addEventListener('change', update);
  update();
  return {
    title: 'Overview',
    content: [element('h1', { tabindex: '-1', class: 'hidden' }, 'Overview'),
      element('div', { class: 'plots' }, ...shown.map(({ whole }) => whole)), below],
    stop: () => poller.removeEventListener('change', update),
  };
}
