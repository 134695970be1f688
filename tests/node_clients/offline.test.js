'use strict';
// Tests messages for offline users: stored in order, and delivered when the user connects.

const assert = require('node:assert/strict');
const { testWithEachClient, range } = require('./lib/suite');

testWithEachClient('concurrent_dispatches_to_offline_user_all_arrive_on_connect', {}, async ({ server, connect }) => {
  const results = await Promise.all(range(50).map((n) => server.dispatchNumber(n, 'alice')));
  for (const { recipients, offline, rejected } of results) {
    assert.deepEqual([recipients, offline, rejected], [1, 1, []]);
  }
  const alice = await connect();
  await alice.authenticateAs('alice');
  await alice.waitForCount(50);
  assert.deepEqual([...alice.numbers].sort((a, b) => a - b), range(50));
  assert.deepEqual(alice.messages.map((message) => message.s), range(50, 1));
});

// covers: G2
testWithEachClient('sequential_dispatches_to_offline_user_arrive_in_order_on_connect', {}, async ({ server, connect }) => {
  await server.dispatchNumbers(50, 'alice');
  const alice = await connect();
  await alice.authenticateAs('alice');
  await alice.waitForCount(50);
  assert.deepEqual(alice.numbers, range(50));
  assert.deepEqual(alice.messages.map((message) => message.s), range(50, 1));
});

testWithEachClient('backlog_arrives_after_op_22_and_before_live_messages_which_have_no_s', {}, async ({ server, connect }) => {
  await server.dispatchNumbers(5, 'alice');
  const alice = await connect();
  await alice.authenticateAs('alice');
  await alice.waitForCount(5);
  await server.dispatchNumbers(2, 'alice', 5);
  await alice.waitForCount(7);
  assert.deepEqual(alice.numbers, range(7));
  assert.deepEqual(alice.messages.map((message) => message.s), [...range(5, 1), undefined, undefined]);
  const order = alice.frames.map((frame) => frame.op).filter((op) => op !== 1);
  assert.deepEqual(order, [10, 22, ...range(7).fill(0)]);
});

testWithEachClient('unsynced_message_is_sent_to_online_user_and_never_stored', {}, async ({ server, connect }) => {
  await server.dispatchNumber(0, 'alice', { sync: false });
  await server.dispatchNumber(1, 'alice');
  const alice = await connect();
  await alice.authenticateAs('alice');
  await alice.waitForNumber(1);
  assert.deepEqual(alice.messages, [{ op: 0, d: { n: 1 }, t: 'NUMBER', s: 1 }]);
  await server.dispatchNumber(2, 'alice', { sync: false });
  await alice.waitForNumber(2);
  assert.deepEqual(alice.messages.at(-1), { op: 0, d: { n: 2 }, t: 'NUMBER' });
});

testWithEachClient('message_with_sync_off_is_not_stored', { sync: { enabled: false } }, async ({ server, connect }) => {
  await server.dispatchNumber(0, 'alice');
  const alice = await connect();
  await alice.authenticateAs('alice');
  await server.dispatchNumber(1, 'alice');
  await alice.waitForNumber(1);
  assert.deepEqual(alice.messages, [{ op: 0, d: { n: 1 }, t: 'NUMBER' }]);
});

testWithEachClient('client_with_should_sync_off_discards_its_backlog', {}, async ({ server, connect }) => {
  await server.dispatchNumbers(3, 'alice');
  const first = await connect();
  await first.authenticateAs('alice', { shouldSync: false });
  await server.dispatchNumber(3, 'alice');
  await first.waitForNumber(3);
  assert.deepEqual(first.numbers, [3]);
  await server.waitForNoPending('alice');
  await first.disconnect();

  const second = await connect();
  await second.authenticateAs('alice');
  await server.dispatchNumber(4, 'alice');
  await second.waitForNumber(4);
  assert.deepEqual(second.numbers, [4]);
});

// covers: G2
testWithEachClient('acknowledged_messages_are_not_repeated_on_reconnect', {}, async ({ server, connect }) => {
  await server.dispatchNumbers(10, 'alice');
  const first = await connect();
  await first.authenticateAs('alice');
  await first.waitForCount(10);
  await server.dispatchNumbers(10, 'alice', 10);
  await first.waitForCount(20);
  await server.waitForNoPending('alice');
  await first.disconnect();

  const second = await connect();
  await second.authenticateAs('alice');
  await server.dispatchNumber(20, 'alice');
  await second.waitForNumber(20);
  assert.deepEqual(second.numbers, [20]);
});

// covers: G3
testWithEachClient('message_reaches_each_recipient_and_no_other_user', {}, async ({ server, connect }) => {
  const result = await server.dispatchNumber(0, ['alice', 'bob', 'carol'], { excluding: ['carol'] });
  assert.deepEqual([result.recipients, result.offline], [2, 2]);
  await server.dispatchNumber(1, ['alice', 'bob', 'carol', 'dave']);
  const received = {};
  for (const user of ['alice', 'bob', 'carol', 'dave']) {
    const client = await connect();
    await client.authenticateAs(user);
    await client.waitForNumber(1);
    received[user] = client.numbers;
  }
  assert.deepEqual(received, { alice: [0, 1], bob: [0, 1], carol: [1], dave: [1] });
});
