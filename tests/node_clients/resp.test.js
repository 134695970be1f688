'use strict';
// The frames themselves, as a stock server would have sent them.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const test = require('node:test');
const { overAllClients } = require('./lib/suite');
const { open } = require('./lib/raw');
const { start } = require('./lib/server');

/** Lines `← frame` (from the server) and `→ frame` (from the client), recorded at a stock server. */
const RECORDED = fs
  .readFileSync(path.join(__dirname, 'recorded', 'three-while-away.txt'), 'utf8')
  .split('\n')
  .filter(Boolean)
  .map((line) => ({ from: line[0] === '←' ? 'server' : 'client', frame: JSON.parse(line.slice(1)) }));

test('the_recorded_exchange_of_a_stock_server_is_repeated', async (t) => {
  const server = await start(t);
  const off = (n, o) => server.dispatch({ op: 0, d: { n }, t: 'OFF', ...(o && { o }) }, ['alice']);
  for (const n of [0, 1, 2]) await off(n);
  await off(3, { sync: false });

  const alice = await open(t, server);
  let heard = 0;
  for (const { from, frame } of RECORDED) {
    if (from === 'client') {
      alice.send(frame);
      continue;
    }
    // A receipt may be asked for at any time: stock clients answer it without the application noticing.
    const said = () => alice.frames.filter((each) => each.op !== 1);
    await alice.until(JSON.stringify(frame), () => said().length > heard);
    assert.deepEqual(said()[heard], frame);
    heard += 1;
  }
  assert.ok(Array.isArray(alice.frames[0].d.rules));
  // Nothing of the unsynced one: the next thing said is the next message.
  await off(4);
  await alice.until('a live message', () => alice.messages.length > 3);
  assert.deepEqual(alice.messages[3], { op: 0, d: { n: 4 }, t: 'OFF' });
});

/** Hello under `config`. */
async function hello(t, config) {
  const server = await start(t, config);
  const raw = await open(t, server);
  await raw.until('a hello', () => raw.texts.length > 0);
  const { op, d, ...rest } = raw.frames[0];
  assert.equal(op, 10);
  assert.deepEqual(rest, {});
  return d;
}

const PLAIN = { c_authentication_timeout: 10000, rules: ['sends_user_object'] };
const HELLOS = [
  ['heartbeats_without_an_interval_announce_ten_seconds', { heartbeat: { enabled: true } },
    { c_heartbeat_interval: 10000, ...PLAIN }],
  ['reconnects_without_an_interval_announce_five_seconds', { reconnect: { enabled: true } },
    { c_reconnect_interval: 5000, ...PLAIN }],
  ['intervals_of_what_is_off_are_not_announced', { heartbeat: { interval: 50 }, reconnect: { interval: 50 } }, PLAIN],
  ['rules_are_an_array_even_when_there_are_none', { authentication: { sendUserObject: false, timeout: 700 } },
    { c_authentication_timeout: 700, rules: [] }],
];
for (const [promise, config, expected] of HELLOS) {
  test(promise, async (t) => assert.deepEqual(await hello(t, config), expected));
}

test('every_rule_is_announced', async (t) => {
  const { rules } = await hello(t, { client: { enforceEqualVersions: true }, options: { storeMessages: true } });
  assert.deepEqual([...rules].sort(), ['enforce_equal_versions', 'sends_user_object', 'store_messages']);
});

overAllClients('the_user_object_is_what_the_client_learns', {}, async ({ connect }) => {
  const alice = await connect();
  assert.deepEqual(await alice.is('alice'), { id: 'alice' });
});

const unsaid = { authentication: { sendUserObject: false } };
overAllClients('the_user_object_is_empty_where_it_is_not_to_be_sent', unsaid, async ({ server, connect }) => {
  const alice = await connect();
  assert.deepEqual(await alice.is('alice'), {});
  assert.equal(alice.client.authenticated, true);
  await server.number(0, 'alice');
  await alice.waitForNumber(0);
});

const storing = { options: { storeMessages: true } };
overAllClients('clients_told_to_store_messages_do', storing, async ({ server, connect }) => {
  const alice = await connect();
  await alice.is('alice');
  await server.number(0, 'alice');
  await alice.waitForNumber(0);
  const { sent, received, recieved } = alice.client.messages;
  assert.equal((received ?? recieved).length, 1);
  assert.ok(sent.length >= 1);
});

const elsewhere = { namespace: 'app', path: '/socket' };
overAllClients('a_namespace_and_a_path_are_honoured', elsewhere, async ({ server, connect }) => {
  await server.number(0, 'alice');
  const alice = await connect();
  await alice.is('alice');
  await alice.waitForNumber(0);
  await assert.rejects(connect(`ws://127.0.0.1:${server.port}/`));
  await assert.rejects(connect(`ws://127.0.0.1:${server.port}/socket/else`));
});

overAllClients('data_arrives_to_the_letter', {}, async ({ server, connect }) => {
  const values = [{}, { a: [1, [2, { b: null }]] }, { text: 'Grüße, 世界 \u{1F600} "\\\n\u0000' }, { big: 2 ** 53 - 1, small: -0.5e-7 },
    { '': { '': '' } }, { long: 'x'.repeat(60_000) }];
  for (const d of values) await server.dispatch({ op: 0, d, t: 'VALUE' }, ['alice']);
  const alice = await connect();
  await alice.is('alice');
  await alice.waitFor(values.length);
  assert.deepEqual(alice.messages.map((message) => message.d), values);
  for (const d of values) await server.dispatch({ op: 77, d }, ['alice']);
  await alice.waitFor(2 * values.length);
  assert.deepEqual(alice.messages.slice(values.length), values.map((d) => ({ op: 77, d })));
});
