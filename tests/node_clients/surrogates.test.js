'use strict';
// Tests lone surrogates. `JSON.stringify('😀'.slice(0, 1))` is `"\ud83d"`: valid JSON, but not valid Unicode text.

const assert = require('node:assert/strict');
const test = require('node:test');
const { connectRaw } = require('./lib/raw');
const { startServer } = require('./lib/server');
const { createPortal } = require('./lib/original');
const { testWithEachClient } = require('./lib/suite');
const { pollUntil } = require('./lib/wait');

const SURROGATE = '😀'.slice(0, 1);

testWithEachClient('lone_surrogate_in_data_arrives_unchanged', {}, async ({ server, connect }) => {
  await server.dispatch({ op: 0, d: { n: 0, text: SURROGATE, [SURROGATE]: [SURROGATE] }, t: 'T' }, ['alice']);
  const { messages } = await server.request('GET', '/v1/users/alice/messages');
  assert.equal(messages[0].d.text, SURROGATE);
  const alice = await connect();
  await alice.authenticateAs('alice');
  // The server no longer holds deliveries, so unsynced messages arrive in their order among the synced ones.
  await alice.waitForCount(1);
  await server.dispatch({ op: 0, d: SURROGATE, t: 'T' }, ['alice']);
  await alice.waitForCount(2);
  await server.dispatch({ op: 0, d: { n: 2, text: SURROGATE }, t: 'T', o: { sync: false } }, ['*']);
  await alice.waitForCount(3);
  const expected = [{ n: 0, text: SURROGATE, [SURROGATE]: [SURROGATE] }, SURROGATE, { n: 2, text: SURROGATE }];
  assert.deepEqual(alice.messages.map(({ d }) => d), expected);
  alice.send({ text: SURROGATE }, 'T');
  await server.dispatchNumber(3, 'alice');
  await alice.waitForCount(4);
  assert.deepEqual(alice.closeCodes, []);
});

testWithEachClient('lone_surrogate_outside_the_token_is_accepted_at_authentication', {}, async ({ connect }) => {
  const alice = await connect();
  await alice.authenticate({ token: 'alice', name: SURROGATE, more: { [SURROGATE]: [SURROGATE] } });
  assert.deepEqual(alice.closeCodes, []);
});

test('lone_surrogate_in_the_token_fails_the_authentication', async (t) => {
  const strict = await startServer(t);
  const rejected = await connectRaw(t, strict);
  rejected.send({ op: 2, d: { token: `alice${SURROGATE}` } });
  assert.equal(await rejected.waitForClose(), 1008);
  assert.equal(rejected.closeReason, 'authentication failed');
  await pollUntil('the log to name the cause', () => /the token has a lone surrogate/.test(strict.log()));

  const lenient = await startServer(t, { authentication: { disconnectOnFail: false } });
  const raw = await connectRaw(t, lenient);
  raw.send({ op: 2, d: { token: `alice${SURROGATE}` } });
  await raw.authenticate('alice');
  assert.deepEqual(raw.frames.find(({ op }) => op === 22).d, { id: 'alice' });
});

testWithEachClient('lone_surrogate_in_a_type_arrives_unchanged', {}, async ({ server, connect }) => {
  const message = (n) => ({ op: 0, d: { n }, t: `${SURROGATE}T` });
  await server.dispatch(message(0), ['alice'], undefined, 'first');
  const alice = await connect();
  await alice.authenticateAs('alice');
  await alice.waitForCount(1);
  const { request, results } = server.openStream();
  request.end(`${JSON.stringify({ message: message(1), recipients: ['alice'] })}\n`);
  for await (const { stored } of results) assert.equal(stored, 1);
  await alice.waitForCount(2);
  assert.deepEqual(alice.messages.map(({ t }) => t), [message(0).t, message(0).t]);
  assert.deepEqual(alice.closeCodes, []);
});

test('lone_surrogate_in_a_type_reaches_portals_unchanged', async (t) => {
  const server = await startServer(t, { portal: { enabled: true }, redisProtocol: { port: 0 } });
  const events = await server.openEvents('?all=true');
  const original = createPortal(t, 'original158 over ioredis5', server.redisUrl, { reportAllEvents: true });
  await pollUntil('both portals to be registered', async () => {
    const { body } = await server.call('GET', '/metrics');
    return /^mesa_portals 2$/m.test(body);
  });
  const raw = await connectRaw(t, server);
  raw.send({ op: 0, d: { [SURROGATE]: SURROGATE }, t: SURROGATE });
  await original.waitUntil('the message', () => original.events.length === 2);
  assert.deepEqual(original.events[1][1].t, SURROGATE);
  for await (const { type, message } of events) {
    if (type !== 'message') continue;
    assert.deepEqual(message, { op: 0, d: { [SURROGATE]: SURROGATE }, t: SURROGATE });
    break;
  }
  assert.equal(raw.closeCode, undefined);
});

test('lone_surrogate_in_an_id_rejects_that_recipient_or_dispatch', async (t) => {
  const server = await startServer(t);
  const dispatch = () => server.dispatch({ d: SURROGATE }, ['alice', `bob${SURROGATE}`], undefined, 'first');
  const result = await dispatch();
  assert.deepEqual(result.rejected, [{ user: `bob${SURROGATE}`, reason: 'invalid' }]);
  assert.deepEqual([result.recipients, result.offline], [2, 1]);
  assert.deepEqual(await dispatch(), { ...result, duplicate: true });
  // After a restart the result comes from the store.
  await server.kill();
  await server.restart();
  assert.deepEqual(await dispatch(), { ...result, duplicate: true });
  const cases = {
    'message.o.collapse': { message: { o: { collapse: SURROGATE } }, recipients: ['alice'] },
    id: { message: { t: SURROGATE }, recipients: [SURROGATE], id: SURROGATE },
  };
  for (const [field, body] of Object.entries(cases)) {
    const { status, body: { error } } = await server.call('POST', '/v1/dispatch', body);
    assert.deepEqual([status, error.code], [422, 'bad_dispatch']);
    assert.match(error.message, new RegExp(`^${field.replaceAll('.', '\\.')} has a lone surrogate`));
  }
  const { request, results } = server.openStream();
  const bodies = [cases.id, { message: { d: SURROGATE }, recipients: [SURROGATE, 'alice'] }];
  for (const body of bodies) request.write(`${JSON.stringify(body)}\n`);
  request.end();
  const lines = [];
  for await (const line of results) lines.push(line);
  assert.match(lines[0].error.message, /^id has a lone surrogate/);
  assert.deepEqual(lines[1].rejected, [{ user: SURROGATE, reason: 'invalid' }]);
  assert.equal((await server.userState('alice')).pending, 2);
});
