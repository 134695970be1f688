'use strict';
// Tests TTL, collapse keys, and quotas.

const assert = require('node:assert/strict');
const test = require('node:test');
const { testWithEachClient, range } = require('./lib/suite');
const { connectRaw } = require('./lib/raw');
const { startServer } = require('./lib/server');
const { pollUntil } = require('./lib/wait');

testWithEachClient('message_past_its_ttl_is_not_delivered', {}, async ({ server, connect }) => {
  await server.dispatchNumber(0, 'alice');
  await server.dispatchNumber(1, 'alice', { ttl: 1 });
  await server.dispatchNumber(2, 'alice', { ttl: 3600 });
  await pollUntil('the message with a TTL of 1 s to expire', async () => {
    const { messages } = await server.request('GET', '/v1/users/alice/messages');
    return messages.length === 2;
  });
  const alice = await connect();
  await alice.authenticateAs('alice');
  await alice.waitForNumber(2);
  assert.deepEqual(alice.numbers, [0, 2]);
});

testWithEachClient('message_with_collapse_key_replaces_pending_message_with_that_key', {}, async ({ server, connect }) => {
  for (const [n, options] of [[0, { collapse: 'score' }], [1, {}], [2, { collapse: 'score' }], [3, { collapse: 'other' }]]) {
    await server.dispatchNumber(n, 'alice', options);
  }
  const alice = await connect();
  await alice.authenticateAs('alice');
  await alice.waitForNumber(3);
  assert.deepEqual(alice.numbers, [1, 2, 3]);
  // A message that the client has received cannot be replaced.
  await server.dispatchNumber(4, 'alice', { collapse: 'score' });
  await alice.waitForNumber(4);
});

// covers: G4
testWithEachClient('message_above_the_quota_is_rejected_in_the_result', { sync: { maxMessages: 3 } }, async ({ server, connect }) => {
  const results = [];
  for (const n of range(5)) results.push(await server.dispatchNumber(n, ['alice', 'bob'].slice(0, n < 3 ? 1 : 2)));
  const quota = [{ user: 'alice', reason: 'quota' }];
  assert.deepEqual(results.map(({ rejected }) => rejected), [[], [], [], quota, quota]);
  assert.deepEqual([results[3].recipients, results[3].online, results[3].offline], [2, 0, 1]);
  const alice = await connect();
  await alice.authenticateAs('alice');
  await alice.waitForCount(3);
  await server.waitForNoPending('alice');
  assert.deepEqual((await server.dispatchNumber(5, 'alice')).rejected, [], 'expected the quota to have room again');
  await alice.waitForNumber(5);
  assert.deepEqual(alice.numbers, [0, 1, 2, 5]);
});

const DROP_OLDEST = { sync: { maxMessages: 3, overflow: 'dropOldest' } };
testWithEachClient('message_above_the_quota_with_drop_oldest_evicts_the_oldest', DROP_OLDEST, async ({ server, connect }) => {
  for (const n of range(5)) assert.deepEqual((await server.dispatchNumber(n, 'alice')).rejected, []);
  const alice = await connect();
  await alice.authenticateAs('alice');
  await alice.waitForNumber(4);
  assert.deepEqual(alice.numbers, [2, 3, 4]);
});

test('message_above_the_byte_quota_is_rejected', async (t) => {
  const server = await startServer(t, { sync: { maxBytes: 65536 } });
  const fill = () => server.dispatch({ d: 'x'.repeat(30000) }, ['alice']);
  assert.deepEqual((await fill()).rejected, []);
  assert.deepEqual((await fill()).rejected, []);
  assert.deepEqual((await fill()).rejected, [{ user: 'alice', reason: 'quota' }]);
});

test('invalid_or_inapplicable_ttl_and_collapse_are_rejected', async (t) => {
  const server = await startServer(t);
  const assertRejected = async (o, recipients) => {
    const { status, body } = await server.call('POST', '/v1/dispatch', { message: { o }, recipients });
    assert.deepEqual([status, body.error.code], [422, 'bad_dispatch'], JSON.stringify([o, recipients]));
    return body.error.message;
  };
  assert.match(await assertRejected({ ttl: 1, sync: false }, ['alice']), /stored messages/);
  assert.match(await assertRejected({ collapse: 'x' }, ['*']), /stored messages/);
  for (const o of [{ ttl: 0 }, { ttl: -1 }, { ttl: 1.5 }, { ttl: '1' }, { ttl: 2 ** 32 }, { collapse: '' }, { collapse: 1 }]) {
    await assertRejected(o, ['alice']);
  }
});

// covers: G4
test('evicted_messages_are_reported_as_gap_on_resume', async (t) => {
  const server = await startServer(t, DROP_OLDEST);
  for (const n of range(5)) await server.dispatchNumber(n, 'alice');
  const raw = await connectRaw(t, server);
  await raw.authenticate('alice', { after: 0 });
  await raw.waitUntil('three messages', () => raw.messages.length === 3);
  assert.deepEqual(raw.messages.map(({ d, s }) => [d.n, s]), [[2, 3], [3, 4], [4, 5]]);
  const [resumed] = raw.frames.filter((frame) => frame.op === 13);
  assert.deepEqual(resumed.d, { first: 3, last: 5, missed: { from: 1, to: 2, reason: 'quota' } });
});
