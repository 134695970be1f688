'use strict';
// Tests connections that break or stall, and several connections of one user.

const assert = require('node:assert/strict');
const { testWithEachClient, range } = require('./lib/suite');
const { startProxy } = require('./lib/proxy');

// covers: G2
testWithEachClient('backlog_of_broken_connection_continues_on_the_next_connection', {}, async ({ server, t, connect }) => {
  await server.dispatchNumbers(100, 'alice');
  const proxy = await startProxy(t, server);
  proxy.cutAfter(10);
  const first = await connect(proxy.url);
  await first.authenticateAs('alice');
  await proxy.waitUntilCut();
  await first.waitForClose();
  assert.deepEqual(first.numbers, range(10));

  const second = await connect();
  await second.authenticateAs('alice');
  await second.waitForNumber(99);
  const start = second.numbers[0];
  assert.ok(start <= 10, `expected the second connection to begin at 10 or before, got ${start}`);
  assert.deepEqual(second.numbers, range(100 - start, start));
  assert.deepEqual(second.messages.map((message) => message.s), range(100 - start, 1));
});

testWithEachClient('messages_sent_into_a_dead_network_arrive_on_the_next_connection', {}, async ({ server, t, connect }) => {
  const proxy = await startProxy(t, server);
  const first = await connect(proxy.url);
  await first.authenticateAs('alice');
  proxy.freeze();
  await server.dispatchNumbers(50, 'alice');

  const second = await connect();
  await second.authenticateAs('alice');
  await second.waitForCount(50);
  assert.deepEqual(second.numbers, range(50));
  assert.deepEqual(first.numbers, []);
});

testWithEachClient('closing_one_of_two_connections_leaves_the_other_connected', {}, async ({ server, connect }) => {
  const open = await connect();
  await open.authenticateAs('alice');
  const closing = await connect();
  await closing.authenticateAs('alice');
  await server.dispatchNumber(0, 'alice');
  await Promise.all([open.waitForNumber(0), closing.waitForNumber(0)]);
  await closing.disconnect();
  await server.waitForConnections('alice', 1);
  const result = await server.dispatchNumber(1, 'alice');
  assert.deepEqual([result.online, result.offline], [1, 0]);
  await open.waitForNumber(1);
  assert.deepEqual(open.numbers, [0, 1]);
});

// covers: G2
testWithEachClient('live_messages_of_broken_connection_arrive_on_the_next_connection', {}, async ({ server, t, connect }) => {
  const proxy = await startProxy(t, server);
  proxy.cutAfter(20);
  const first = await connect(proxy.url);
  await first.authenticateAs('alice');
  await server.dispatchNumbers(60, 'alice');
  await first.waitForClose();
  assert.deepEqual(first.numbers, range(20));

  const second = await connect();
  await second.authenticateAs('alice');
  await second.waitForNumber(59);
  const start = second.numbers[0];
  assert.ok(start <= 20, `expected the second connection to begin at 20 or before, got ${start}`);
  assert.deepEqual(second.numbers, range(60 - start, start));
});
