'use strict';
// Messages for users who are away: kept, in order, and sent when they come.

const assert = require('node:assert/strict');
const { overAllClients, range } = require('./lib/suite');

overAllClients('fifty_dispatched_at_once_to_someone_away_all_arrive', {}, async ({ server, connect }) => {
  const results = await Promise.all(range(50).map((n) => server.number(n, 'alice')));
  for (const { recipients, offline, rejected } of results) {
    assert.deepEqual([recipients, offline, rejected], [1, 1, []]);
  }
  const alice = await connect();
  await alice.is('alice');
  await alice.waitFor(50);
  assert.deepEqual([...alice.numbers].sort((a, b) => a - b), range(50));
  assert.deepEqual(alice.messages.map((message) => message.s), range(50, 1));
});

overAllClients('fifty_dispatched_one_after_the_other_arrive_in_order', {}, async ({ server, connect }) => {
  await server.numbers(50, 'alice');
  const alice = await connect();
  await alice.is('alice');
  await alice.waitFor(50);
  assert.deepEqual(alice.numbers, range(50));
  assert.deepEqual(alice.messages.map((message) => message.s), range(50, 1));
});

overAllClients('the_kept_come_after_op_22_and_before_the_live_which_have_no_s', {}, async ({ server, connect }) => {
  await server.numbers(5, 'alice');
  const alice = await connect();
  await alice.is('alice');
  await alice.waitFor(5);
  await server.numbers(2, 'alice', 5);
  await alice.waitFor(7);
  assert.deepEqual(alice.numbers, range(7));
  assert.deepEqual(alice.messages.map((message) => message.s), [...range(5, 1), undefined, undefined]);
  const order = alice.frames.map((frame) => frame.op).filter((op) => op !== 1);
  assert.deepEqual(order, [10, 22, ...range(7).fill(0)]);
});

overAllClients('what_is_not_to_be_synced_is_sent_live_and_never_kept', {}, async ({ server, connect }) => {
  await server.number(0, 'alice', { sync: false });
  await server.number(1, 'alice');
  const alice = await connect();
  await alice.is('alice');
  await alice.waitForNumber(1);
  assert.deepEqual(alice.messages, [{ op: 0, d: { n: 1 }, t: 'NUMBER', s: 1 }]);
  await server.number(2, 'alice', { sync: false });
  await alice.waitForNumber(2);
  assert.deepEqual(alice.messages.at(-1), { op: 0, d: { n: 2 }, t: 'NUMBER' });
});

overAllClients('nothing_is_kept_where_sync_is_off', { sync: { enabled: false } }, async ({ server, connect }) => {
  await server.number(0, 'alice');
  const alice = await connect();
  await alice.is('alice');
  await server.number(1, 'alice');
  await alice.waitForNumber(1);
  assert.deepEqual(alice.messages, [{ op: 0, d: { n: 1 }, t: 'NUMBER' }]);
});

overAllClients('a_client_that_does_not_want_what_it_missed_never_gets_it', {}, async ({ server, connect }) => {
  await server.numbers(3, 'alice');
  const first = await connect();
  await first.is('alice', { shouldSync: false });
  await server.number(3, 'alice');
  await first.waitForNumber(3);
  assert.deepEqual(first.numbers, [3]);
  await server.allReceived('alice');
  await first.disconnect();

  const second = await connect();
  await second.is('alice');
  await server.number(4, 'alice');
  await second.waitForNumber(4);
  assert.deepEqual(second.numbers, [4]);
});

overAllClients('what_was_received_is_not_repeated', {}, async ({ server, connect }) => {
  await server.numbers(10, 'alice');
  const first = await connect();
  await first.is('alice');
  await first.waitFor(10);
  await server.numbers(10, 'alice', 10);
  await first.waitFor(20);
  await server.allReceived('alice');
  await first.disconnect();

  const second = await connect();
  await second.is('alice');
  await server.number(20, 'alice');
  await second.waitForNumber(20);
  assert.deepEqual(second.numbers, [20]);
});

overAllClients('each_recipient_gets_a_copy_and_nobody_else_does', {}, async ({ server, connect }) => {
  const result = await server.number(0, ['alice', 'bob', 'carol'], { excluding: ['carol'] });
  assert.deepEqual([result.recipients, result.offline], [2, 2]);
  await server.number(1, ['alice', 'bob', 'carol', 'dave']);
  const got = {};
  for (const user of ['alice', 'bob', 'carol', 'dave']) {
    const peer = await connect();
    await peer.is(user);
    await peer.waitForNumber(1);
    got[user] = peer.numbers;
  }
  assert.deepEqual(got, { alice: [0, 1], bob: [0, 1], carol: [1], dave: [1] });
});
