'use strict';
// Tests the frames of the WebSocket protocol against those of the original.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const test = require('node:test');
const { testWithEachClient } = require('./lib/suite');
const { connectRaw } = require('./lib/raw');
const { startServer } = require('./lib/server');

/** Lines `← frame` (from the server) and `→ frame` (from the client), recorded at a server of the original. */
const RECORDED = fs
  .readFileSync(path.join(__dirname, 'recorded', 'three_offline_messages.txt'), 'utf8')
  .split('\n')
  .filter(Boolean)
  .map((line) => ({ sender: line[0] === '←' ? 'server' : 'client', frame: JSON.parse(line.slice(1)) }));

test('recorded_exchange_of_the_original_is_repeated', async (t) => {
  const server = await startServer(t);
  const dispatch = (n, o) => server.dispatch({ op: 0, d: { n }, t: 'OFF', ...(o && { o }) }, ['alice']);
  for (const n of [0, 1, 2]) await dispatch(n);
  await dispatch(3, { sync: false });

  const alice = await connectRaw(t, server);
  let received = 0;
  for (const { sender, frame } of RECORDED) {
    if (sender === 'client') {
      alice.send(frame);
      continue;
    }
    // The server may send op 1 at any time. Clients of the original answer it without their application.
    const frames = () => alice.frames.filter(({ op }) => op !== 1);
    await alice.waitUntil(JSON.stringify(frame), () => frames().length > received);
    assert.deepEqual(frames()[received], frame);
    received += 1;
  }
  assert.ok(Array.isArray(alice.frames[0].d.rules));
  // The unsynced message is not delivered: the next frame is the next message.
  await dispatch(4);
  await alice.waitUntil('a live message', () => alice.messages.length > 3);
  assert.deepEqual(alice.messages[3], { op: 0, d: { n: 4 }, t: 'OFF' });
});

/** Returns the `d` of the hello (op 10) of a server with `config`. */
async function hello(t, config) {
  const server = await startServer(t, config);
  const raw = await connectRaw(t, server);
  await raw.waitUntil('a hello', () => raw.texts.length > 0);
  const { op, d, ...rest } = raw.frames[0];
  assert.equal(op, 10);
  assert.deepEqual(rest, {});
  return d;
}

const DEFAULT_HELLO = { c_authentication_timeout: 10000, rules: ['sends_user_object'] };
const HELLOS = [
  ['hello_with_heartbeats_and_default_interval_announces_10_s', { heartbeat: { enabled: true } },
    { c_heartbeat_interval: 10000, ...DEFAULT_HELLO }],
  ['hello_with_reconnects_and_default_interval_announces_5_s', { reconnect: { enabled: true } },
    { c_reconnect_interval: 5000, ...DEFAULT_HELLO }],
  ['hello_with_features_off_announces_no_intervals', { heartbeat: { interval: 50 }, reconnect: { interval: 50 } }, DEFAULT_HELLO],
  ['hello_without_rules_has_an_empty_array', { authentication: { sendUserObject: false, timeout: 700 } },
    { c_authentication_timeout: 700, rules: [] }],
];
for (const [name, config, expected] of HELLOS) {
  test(name, async (t) => assert.deepEqual(await hello(t, config), expected));
}

test('hello_with_all_rules_announces_each', async (t) => {
  const { rules } = await hello(t, { client: { enforceEqualVersions: true }, options: { storeMessages: true } });
  assert.deepEqual([...rules].sort(), ['enforce_equal_versions', 'sends_user_object', 'store_messages']);
});

testWithEachClient('client_receives_the_user_object', {}, async ({ connect }) => {
  const alice = await connect();
  assert.deepEqual(await alice.authenticateAs('alice'), { id: 'alice' });
});

const NO_USER_OBJECT = { authentication: { sendUserObject: false } };
testWithEachClient('client_with_send_user_object_off_receives_an_empty_object', NO_USER_OBJECT, async ({ server, connect }) => {
  const alice = await connect();
  assert.deepEqual(await alice.authenticateAs('alice'), {});
  assert.equal(alice.client.authenticated, true);
  await server.dispatchNumber(0, 'alice');
  await alice.waitForNumber(0);
});

const STORE_MESSAGES = { options: { storeMessages: true } };
testWithEachClient('client_with_store_messages_on_stores_messages', STORE_MESSAGES, async ({ server, connect }) => {
  const alice = await connect();
  await alice.authenticateAs('alice');
  await server.dispatchNumber(0, 'alice');
  await alice.waitForNumber(0);
  const { sent, received, recieved } = alice.client.messages;
  assert.equal((received ?? recieved).length, 1);
  assert.ok(sent.length >= 1);
});

const NAMESPACE_AND_PATH = { namespace: 'app', path: '/socket' };
testWithEachClient('configured_path_is_served_and_other_paths_are_rejected', NAMESPACE_AND_PATH, async ({ server, connect }) => {
  await server.dispatchNumber(0, 'alice');
  const alice = await connect();
  await alice.authenticateAs('alice');
  await alice.waitForNumber(0);
  await assert.rejects(connect(`ws://127.0.0.1:${server.port}/`));
  await assert.rejects(connect(`ws://127.0.0.1:${server.port}/socket/else`));
});

testWithEachClient('data_arrives_unchanged', {}, async ({ server, connect }) => {
  const values = [{}, { a: [1, [2, { b: null }]] }, { text: 'Grüße, 世界 \u{1F600} "\\\n\u0000' }, { big: 2 ** 53 - 1, small: -0.5e-7 },
    { '': { '': '' } }, { long: 'x'.repeat(60_000) }];
  for (const d of values) await server.dispatch({ op: 0, d, t: 'VALUE' }, ['alice']);
  const alice = await connect();
  await alice.authenticateAs('alice');
  await alice.waitForCount(values.length);
  assert.deepEqual(alice.messages.map((message) => message.d), values);
  for (const d of values) await server.dispatch({ op: 77, d }, ['alice']);
  await alice.waitForCount(2 * values.length);
  assert.deepEqual(alice.messages.slice(values.length), values.map((d) => ({ op: 77, d })));
});
