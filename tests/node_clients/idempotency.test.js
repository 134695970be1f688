'use strict';
// Dispatches with an id: said again, they are answered the same and not sent again.

const assert = require('node:assert/strict');
const test = require('node:test');
const { overAllClients } = require('./lib/suite');
const { start } = require('./lib/server');

/** The numbers that wait for a user. */
async function waiting(server, user) {
  const { messages } = await server.ask('GET', `/v1/users/${user}/messages`);
  return messages.map((message) => message.d.n);
}

const again = (result) => ({ ...result, duplicate: true });

overAllClients('what_is_said_twice_with_one_id_arrives_once', {}, async ({ server, connect }) => {
  const first = await server.number(0, ['alice', 'bob'], { id: 'order-7' });
  assert.equal(first.duplicate, false);
  assert.deepEqual(await server.number(0, ['alice', 'bob'], { id: 'order-7' }), again(first));
  // What counts is the id, whatever else is said.
  assert.deepEqual(await server.number(9, 'carol', { id: 'order-7' }), again(first));
  await server.number(1, 'alice', { id: 'order-8' });
  const alice = await connect();
  await alice.is('alice');
  await alice.waitForNumber(1);
  assert.deepEqual(alice.numbers, [0, 1]);
  assert.deepEqual(await waiting(server, 'carol'), []);
});

test('an_answer_is_remembered_over_a_kill', async (t) => {
  const server = await start(t);
  const first = await server.number(0, ['alice', ''], { id: 'order-7' });
  assert.deepEqual(first.rejected, [{ user: '', reason: 'invalid' }]);
  await server.kill();
  await server.restart();
  assert.deepEqual(await server.number(0, ['alice', ''], { id: 'order-7' }), again(first));
  assert.deepEqual(await waiting(server, 'alice'), [0]);
});

test('a_repeat_of_what_was_rejected_is_rejected_the_same', async (t) => {
  const server = await start(t, { sync: { maxMessages: 1 } });
  await server.number(0, 'alice');
  const first = await server.number(1, ['alice', 'bob'], { id: 'order-7' });
  assert.deepEqual(first.rejected, [{ user: 'alice', reason: 'quota' }]);
  await server.ask('DELETE', '/v1/users/alice/messages');
  assert.deepEqual(await server.number(1, ['alice', 'bob'], { id: 'order-7' }), again(first), 'although there is room now');
  assert.deepEqual(await waiting(server, 'alice'), []);
  assert.deepEqual(await waiting(server, 'bob'), [1]);
});

test('what_is_said_twice_at_once_is_sent_once', async (t) => {
  const server = await start(t);
  const results = await Promise.all(Array.from({ length: 20 }, () => server.number(0, 'alice', { id: 'order-7' })));
  assert.equal(results.filter((result) => !result.duplicate).length, 1);
  assert.deepEqual(await waiting(server, 'alice'), [0]);
});

overAllClients('what_is_not_kept_is_not_sent_twice_either', {}, async ({ server, connect }) => {
  const alice = await connect();
  await alice.is('alice');
  for (const repeat of [false, true, true]) {
    const result = await server.number(0, 'alice', { id: 'order-7', sync: false });
    assert.deepEqual([result.online, result.duplicate], [1, repeat]);
  }
  await server.number(1, 'alice');
  await alice.waitForNumber(1);
  assert.deepEqual(alice.numbers, [0, 1]);
});

test('an_id_that_makes_no_sense_is_refused', async (t) => {
  const server = await start(t);
  const code = async (body) => {
    const answer = await server.call('POST', '/v1/dispatch', body);
    return [answer.status, answer.body.error.code];
  };
  const disconnect = { op: 5, t: 'DISCONNECT_CLIENT' };
  for (const id of ['', 'x'.repeat(129), 'a\n', 7, {}]) {
    assert.deepEqual(await code({ message: {}, recipients: ['alice'], id }), [422, 'bad_dispatch'], JSON.stringify(id));
  }
  assert.deepEqual(await code({ message: disconnect, recipients: ['alice'], id: 'x' }), [422, 'bad_dispatch']);
});
