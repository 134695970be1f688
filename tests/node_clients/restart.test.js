'use strict';
// Tests servers that are killed or stopped, and started again.

const assert = require('node:assert/strict');
const test = require('node:test');
const { testWithEachClient, range } = require('./lib/suite');
const { startProxy } = require('./lib/proxy');
const { connectRaw } = require('./lib/raw');
const { startServer } = require('./lib/server');

/** A backlog that lasts for 10 s, so that also on a busy machine the kill comes before its end. */
const PACED = { sync: { redeliveryInterval: 100 } };

// covers: G1, G2
testWithEachClient('backlog_interrupted_by_a_kill_continues_after_the_restart', PACED, async ({ server, connect }) => {
  await server.dispatchNumbers(100, 'alice');
  const first = await connect();
  await first.authenticateAs('alice');
  await first.waitForCount(5);
  await server.kill();
  await first.waitForClose();
  const receivedCount = first.numbers.length;
  assert.deepEqual(first.numbers, range(receivedCount));
  assert.ok(receivedCount < 100, 'expected the kill before the end of the backlog');

  await server.restart({ sync: { redeliveryInterval: 0 } });
  const second = await connect();
  await second.authenticateAs('alice');
  await second.waitForNumber(99);
  const start = second.numbers[0];
  assert.ok(start <= receivedCount, `expected the rest to begin at ${receivedCount} or before, got ${start}`);
  assert.deepEqual(second.numbers, range(100 - start, start));
});

// covers: G1
testWithEachClient('answered_dispatches_are_delivered_after_a_kill', {}, async ({ server, connect }) => {
  await server.dispatchNumbers(30, 'alice');
  await server.kill();
  await server.restart();
  await server.dispatchNumbers(10, 'alice', 30);
  const alice = await connect();
  await alice.authenticateAs('alice');
  await alice.waitForCount(40);
  assert.deepEqual(alice.numbers, range(40));
});

// covers: G5
testWithEachClient('sequence_of_acknowledged_log_continues_after_a_restart', {}, async ({ server, connect }) => {
  await server.dispatchNumbers(5, 'alice');
  const first = await connect();
  await first.authenticateAs('alice');
  await first.waitForCount(5);
  await server.waitForNoPending('alice');
  await first.disconnect();
  assert.equal((await server.userState('alice')).lastSequence, 5);
  assert.equal(await server.stop(), 0);
  await server.restart();
  await server.dispatchNumber(5, 'alice');
  assert.equal((await server.userState('alice')).lastSequence, 6);
  const second = await connect();
  await second.authenticateAs('alice');
  await second.waitForNumber(5);
  assert.deepEqual(second.numbers, [5]);
});

// covers: G1
testWithEachClient('server_stopped_during_dispatches_closes_with_1001_and_loses_nothing', {}, async ({ server, connect }) => {
  const alice = await connect();
  await alice.authenticateAs('alice');
  const answered = [];
  const backend = (async () => {
    for (let n = 0; ; n += 1) {
      await server.dispatchNumber(n, ['alice', 'bob']);
      answered.push(n);
    }
  })().catch(() => {});
  await alice.waitForCount(20);
  const code = await server.stop();
  await backend;
  assert.equal(code, 0);
  assert.equal(await alice.waitForClose(), 1001);

  await server.restart();
  const bob = await connect();
  await bob.authenticateAs('bob');
  await bob.waitForNumber(answered.at(-1));
  assert.deepEqual(bob.numbers, range(bob.numbers.length));
  const reconnected = await connect();
  await reconnected.authenticateAs('alice');
  await server.dispatchNumber(-1, 'alice');
  await reconnected.waitForNumber(-1);
  const all = new Set([...alice.numbers, ...reconnected.numbers]);
  assert.deepEqual(answered.filter((n) => !all.has(n)), []);
});

const RECONNECT = { reconnect: { enabled: true, interval: 200 } };

testWithEachClient('client_reconnects_by_itself_and_receives_missed_messages', RECONNECT, async ({ server, t, connect }) => {
  const proxy = await startProxy(t, server);
  const alice = await connect(proxy.url);
  await alice.authenticateAs('alice');
  assert.equal(typeof alice.hello.c_reconnect_interval, 'number');
  await server.dispatchNumber(0, 'alice');
  await alice.waitForCount(1);

  proxy.target = null;
  await server.kill();
  await alice.waitForClose();
  await server.restart();
  await server.dispatchNumbers(5, 'alice', 1);
  alice.onConnected = () => alice.client.authenticate({ token: 'alice' }).catch(() => {});
  proxy.target = server;
  await alice.waitForNumber(5);
  assert.equal(alice.connectionCount, 2);
  const withoutRepeat = alice.numbers.slice(alice.numbers[1] === 0 ? 1 : 0);
  assert.deepEqual(withoutRepeat, range(6));
});

test('store_of_another_namespace_is_not_opened', async (t) => {
  const server = await startServer(t, { namespace: 'one' });
  await server.dispatchNumber(0, 'alice');
  assert.equal(await server.stop(), 0);
  await assert.rejects(server.restart({ namespace: 'two' }), (error) => {
    assert.match(error.message, /ended at start-up/);
    assert.match(error.message, /namespace/);
    return true;
  });
  await server.restart({ namespace: 'one' });
  const alice = await connectRaw(t, server);
  await alice.authenticate('alice');
  await alice.waitUntil('the message', () => alice.messages.length === 1);
});
