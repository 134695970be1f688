'use strict';
// How long and how much is kept: ttl, collapse, quotas.

const assert = require('node:assert/strict');
const test = require('node:test');
const { overAllClients, range } = require('./lib/suite');
const { open } = require('./lib/raw');
const { start } = require('./lib/server');
const { eventually } = require('./lib/wait');

overAllClients('what_is_older_than_its_ttl_is_not_sent_any_more', {}, async ({ server, connect }) => {
  await server.number(0, 'alice');
  await server.number(1, 'alice', { ttl: 1 });
  await server.number(2, 'alice', { ttl: 3600 });
  await eventually('a second to pass', async () => {
    const { messages } = await server.ask('GET', '/v1/users/alice/messages');
    return messages.length === 2;
  });
  const alice = await connect();
  await alice.is('alice');
  await alice.waitForNumber(2);
  assert.deepEqual(alice.numbers, [0, 2]);
});

overAllClients('a_newer_message_takes_the_place_of_one_with_its_key', {}, async ({ server, connect }) => {
  for (const [n, options] of [[0, { collapse: 'score' }], [1, {}], [2, { collapse: 'score' }], [3, { collapse: 'other' }]]) {
    await server.number(n, 'alice', options);
  }
  const alice = await connect();
  await alice.is('alice');
  await alice.waitForNumber(3);
  assert.deepEqual(alice.numbers, [1, 2, 3]);
  // One that was received cannot be replaced.
  await server.number(4, 'alice', { collapse: 'score' });
  await alice.waitForNumber(4);
});

overAllClients('what_is_over_a_quota_is_rejected_aloud', { sync: { maxMessages: 3 } }, async ({ server, connect }) => {
  const results = [];
  for (const n of range(5)) results.push(await server.number(n, ['alice', 'bob'].slice(0, n < 3 ? 1 : 2)));
  const quota = [{ user: 'alice', reason: 'quota' }];
  assert.deepEqual(results.map(({ rejected }) => rejected), [[], [], [], quota, quota]);
  assert.deepEqual([results[3].recipients, results[3].online, results[3].offline], [2, 0, 1]);
  const alice = await connect();
  await alice.is('alice');
  await alice.waitFor(3);
  await server.allReceived('alice');
  assert.deepEqual((await server.number(5, 'alice')).rejected, [], 'there is room again');
  await alice.waitForNumber(5);
  assert.deepEqual(alice.numbers, [0, 1, 2, 5]);
});

const dropping = { sync: { maxMessages: 3, overflow: 'dropOldest' } };
overAllClients('the_oldest_go_where_that_is_configured', dropping, async ({ server, connect }) => {
  for (const n of range(5)) assert.deepEqual((await server.number(n, 'alice')).rejected, []);
  const alice = await connect();
  await alice.is('alice');
  await alice.waitForNumber(4);
  assert.deepEqual(alice.numbers, [2, 3, 4]);
});

test('bytes_have_a_quota_as_well', async (t) => {
  const server = await start(t, { sync: { maxBytes: 65536 } });
  const fill = () => server.dispatch({ d: 'x'.repeat(30000) }, ['alice']);
  assert.deepEqual((await fill()).rejected, []);
  assert.deepEqual((await fill()).rejected, []);
  assert.deepEqual((await fill()).rejected, [{ user: 'alice', reason: 'quota' }]);
});

test('ttl_and_collapse_are_refused_where_they_would_mean_nothing', async (t) => {
  const server = await start(t);
  const refused = async (o, recipients) => {
    const answer = await server.call('POST', '/v1/dispatch', { message: { o }, recipients });
    assert.deepEqual([answer.status, answer.body.error.code], [422, 'bad_dispatch'], JSON.stringify([o, recipients]));
    return answer.body.error.message;
  };
  assert.match(await refused({ ttl: 1, sync: false }, ['alice']), /stored messages/);
  assert.match(await refused({ collapse: 'x' }, ['*']), /stored messages/);
  for (const o of [{ ttl: 0 }, { ttl: -1 }, { ttl: 1.5 }, { ttl: '1' }, { ttl: 2 ** 32 }, { collapse: '' }, { collapse: 1 }]) {
    await refused(o, ['alice']);
  }
});

test('who_resumes_is_told_what_went_and_why', async (t) => {
  const server = await start(t, dropping);
  for (const n of range(5)) await server.number(n, 'alice');
  const raw = await open(t, server);
  await raw.authenticate('alice', { after: 0 });
  await raw.until('three messages', () => raw.messages.length === 3);
  assert.deepEqual(raw.messages.map(({ d, s }) => [d.n, s]), [[2, 3], [3, 4], [4, 5]]);
  const [told] = raw.frames.filter((frame) => frame.op === 13);
  assert.deepEqual(told.d, { first: 3, last: 5, missed: { from: 1, to: 2, reason: 'quota' } });
});
