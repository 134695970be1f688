'use strict';
// Tests `sync.redeliveryInterval`: the backlog is paced, live messages are sent at once.

const assert = require('node:assert/strict');
const { testWithEachClient, range } = require('./lib/suite');

const paced = (redeliveryInterval) => ({ sync: { redeliveryInterval } });

/** A backlog of twenty or more messages lasts for 10 s, so that a busy machine does not sleep through it. */
const SLOW = paced(500);

testWithEachClient('live_message_overtakes_paced_backlog', SLOW, async ({ server, connect }) => {
  await server.dispatchNumbers(20, 'alice');
  const alice = await connect();
  const began = Date.now();
  await alice.authenticateAs('alice');
  await alice.waitForCount(1);
  await server.dispatchNumber(1000, 'alice');
  await alice.waitForCount(21);
  const took = Date.now() - began;

  const backlog = alice.messages.filter((message) => message.s !== undefined);
  assert.deepEqual(backlog.map((message) => message.d.n), range(20));
  assert.deepEqual(backlog.map((message) => message.s), range(20, 1));
  const live = alice.numbers.indexOf(1000);
  assert.equal(alice.messages[live].s, undefined);
  const last = alice.numbers.indexOf(19);
  assert.ok(live < last, `expected the live message before the end of the backlog, got position ${live + 1} of 21`);
  assert.ok(took >= 19 * 500 * 0.8, `expected twenty messages at intervals of 500 ms, got all after ${took} ms`);
});

testWithEachClient('live_message_during_paced_backlog_is_not_repeated', paced(20), async ({ server, connect }) => {
  await server.dispatchNumbers(10, 'alice');
  const first = await connect();
  await first.authenticateAs('alice');
  await first.waitForCount(1);
  await server.dispatchNumber(10, 'alice');
  await first.waitForCount(11);
  await server.waitForNoPending('alice');
  await first.disconnect();

  const second = await connect();
  await second.authenticateAs('alice');
  await server.dispatchNumber(11, 'alice');
  await second.waitForNumber(11);
  assert.deepEqual(second.numbers, [11]);
});

// covers: G2
testWithEachClient('paced_backlog_that_breaks_off_continues_on_reconnect', SLOW, async ({ server, connect }) => {
  await server.dispatchNumbers(20, 'alice');
  const first = await connect();
  await first.authenticateAs('alice');
  await first.waitForCount(3);
  await server.dispatchNumber(20, 'alice');
  await first.waitForNumber(20);
  await first.disconnect();

  const second = await connect();
  await second.authenticateAs('alice');
  await second.waitForNumber(19);
  const all = new Set([...first.numbers, ...second.numbers]);
  assert.deepEqual([...all].sort((a, b) => a - b), range(21));
  const backlog = second.numbers.filter((n) => n < 20);
  assert.deepEqual(backlog, range(20 - backlog[0], backlog[0]));
});
