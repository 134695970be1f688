'use strict';
// Tests idempotency: a retry with the same `id` returns the first result, and sends nothing.

const assert = require('node:assert/strict');
const test = require('node:test');
const { testWithEachClient } = require('./lib/suite');
const { startServer } = require('./lib/server');

/** Returns the numbers that are pending for a user. */
async function pendingNumbers(server, user) {
  const { messages } = await server.request('GET', `/v1/users/${user}/messages`);
  return messages.map((message) => message.d.n);
}

const asDuplicate = (result) => ({ ...result, duplicate: true });

testWithEachClient('dispatch_with_repeated_id_is_delivered_once_and_returns_first_result', {}, async ({ server, connect }) => {
  const first = await server.dispatchNumber(0, ['alice', 'bob'], { id: 'order-7' });
  assert.equal(first.duplicate, false);
  assert.deepEqual(await server.dispatchNumber(0, ['alice', 'bob'], { id: 'order-7' }), asDuplicate(first));
  // Only the id counts: the rest of the retry is ignored.
  assert.deepEqual(await server.dispatchNumber(9, 'carol', { id: 'order-7' }), asDuplicate(first));
  await server.dispatchNumber(1, 'alice', { id: 'order-8' });
  const alice = await connect();
  await alice.authenticateAs('alice');
  await alice.waitForNumber(1);
  assert.deepEqual(alice.numbers, [0, 1]);
  assert.deepEqual(await pendingNumbers(server, 'carol'), []);
});

// covers: G1
test('retry_after_a_kill_returns_first_result', async (t) => {
  const server = await startServer(t);
  const first = await server.dispatchNumber(0, ['alice', ''], { id: 'order-7' });
  assert.deepEqual(first.rejected, [{ user: '', reason: 'invalid' }]);
  await server.kill();
  await server.restart();
  assert.deepEqual(await server.dispatchNumber(0, ['alice', ''], { id: 'order-7' }), asDuplicate(first));
  assert.deepEqual(await pendingNumbers(server, 'alice'), [0]);
});

// covers: G4
test('retry_of_rejected_dispatch_returns_the_same_rejection', async (t) => {
  const server = await startServer(t, { sync: { maxMessages: 1 } });
  await server.dispatchNumber(0, 'alice');
  const first = await server.dispatchNumber(1, ['alice', 'bob'], { id: 'order-7' });
  assert.deepEqual(first.rejected, [{ user: 'alice', reason: 'quota' }]);
  await server.request('DELETE', '/v1/users/alice/messages');
  const retry = await server.dispatchNumber(1, ['alice', 'bob'], { id: 'order-7' });
  assert.deepEqual(retry, asDuplicate(first), 'expected the first result, although the quota has room again');
  assert.deepEqual(await pendingNumbers(server, 'alice'), []);
  assert.deepEqual(await pendingNumbers(server, 'bob'), [1]);
});

test('concurrent_dispatches_with_one_id_are_stored_once', async (t) => {
  const server = await startServer(t);
  const results = await Promise.all(Array.from({ length: 20 }, () => server.dispatchNumber(0, 'alice', { id: 'order-7' })));
  assert.equal(results.filter((result) => !result.duplicate).length, 1);
  assert.deepEqual(await pendingNumbers(server, 'alice'), [0]);
});

testWithEachClient('unsynced_dispatch_with_repeated_id_is_sent_once', {}, async ({ server, connect }) => {
  const alice = await connect();
  await alice.authenticateAs('alice');
  for (const duplicate of [false, true, true]) {
    const result = await server.dispatchNumber(0, 'alice', { id: 'order-7', sync: false });
    assert.deepEqual([result.online, result.duplicate], [1, duplicate]);
  }
  await server.dispatchNumber(1, 'alice');
  await alice.waitForNumber(1);
  assert.deepEqual(alice.numbers, [0, 1]);
});

test('invalid_id_is_rejected', async (t) => {
  const server = await startServer(t);
  const post = async (dispatch) => {
    const { status, body } = await server.call('POST', '/v1/dispatch', dispatch);
    return [status, body.error.code];
  };
  const disconnect = { op: 5, t: 'DISCONNECT_CLIENT' };
  for (const id of ['', 'x'.repeat(129), 'a\n', 7, {}]) {
    assert.deepEqual(await post({ message: {}, recipients: ['alice'], id }), [422, 'bad_dispatch'], JSON.stringify(id));
  }
  assert.deepEqual(await post({ message: disconnect, recipients: ['alice'], id: 'x' }), [422, 'bad_dispatch']);
});
