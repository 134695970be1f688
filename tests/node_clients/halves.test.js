'use strict';
// Half of an emoji: `JSON.stringify('😀'.slice(0, 1))` is `"\ud83d"`, which is JSON, and no text in most languages.

const assert = require('node:assert/strict');
const test = require('node:test');
const { open } = require('./lib/raw');
const { start } = require('./lib/server');
const { portal } = require('./lib/stock');
const { overAllClients } = require('./lib/suite');
const { eventually } = require('./lib/wait');

const HALF = '😀'.slice(0, 1);

overAllClients('half_of_a_pair_in_data_arrives_as_it_was_sent', {}, async ({ server, connect }) => {
  await server.dispatch({ op: 0, d: { n: 0, text: HALF, [HALF]: [HALF] }, t: 'T' }, ['alice']);
  const { messages } = await server.ask('GET', '/v1/users/alice/messages');
  assert.equal(messages[0].d.text, HALF);
  const alice = await connect();
  await alice.is('alice');
  // Deliveries are no longer held back: what is not stored then keeps its place among what is.
  await alice.waitFor(1);
  await server.dispatch({ op: 0, d: HALF, t: 'T' }, ['alice']);
  await alice.waitFor(2);
  await server.dispatch({ op: 0, d: { n: 2, text: HALF }, t: 'T', o: { sync: false } }, ['*']);
  await alice.waitFor(3);
  assert.deepEqual(alice.messages.map(({ d }) => d), [{ n: 0, text: HALF, [HALF]: [HALF] }, HALF, { n: 2, text: HALF }]);
  alice.say({ text: HALF }, 'T');
  await server.number(3, 'alice');
  await alice.waitFor(4);
  assert.deepEqual(alice.closes, []);
});

overAllClients('half_of_a_pair_beside_the_token_lets_the_client_in', {}, async ({ connect }) => {
  const alice = await connect();
  await alice.authenticate({ token: 'alice', name: HALF, more: { [HALF]: [HALF] } });
  assert.deepEqual(alice.closes, []);
});

test('half_of_a_pair_in_a_token_fails_the_authentication', async (t) => {
  const strict = await start(t);
  const refused = await open(t, strict);
  refused.send({ op: 2, d: { token: `alice${HALF}` } });
  assert.equal(await refused.waitForClose(), 1008);
  assert.equal(refused.reason, 'authentication failed');
  await eventually('the log to name the cause', () => /the token has half of a surrogate pair/.test(strict.log()));

  const lenient = await start(t, { authentication: { disconnectOnFail: false } });
  const raw = await open(t, lenient);
  raw.send({ op: 2, d: { token: `alice${HALF}` } });
  await raw.authenticate('alice');
  assert.deepEqual(raw.frames.find(({ op }) => op === 22).d, { id: 'alice' });
});

overAllClients('half_of_a_pair_in_a_type_arrives_as_it_was_sent', {}, async ({ server, connect }) => {
  const message = (n) => ({ op: 0, d: { n }, t: `${HALF}T` });
  await server.dispatch(message(0), ['alice'], undefined, 'first');
  const alice = await connect();
  await alice.is('alice');
  await alice.waitFor(1);
  const { request, answers } = server.stream();
  request.end(`${JSON.stringify({ message: message(1), recipients: ['alice'] })}\n`);
  for await (const { stored } of answers) assert.equal(stored, 1);
  await alice.waitFor(2);
  assert.deepEqual(alice.messages.map(({ t }) => t), [message(0).t, message(0).t]);
  assert.deepEqual(alice.closes, []);
});

test('half_of_a_pair_in_a_type_reaches_portals_as_it_was_sent', async (t) => {
  const server = await start(t, { portal: { enabled: true }, redisProtocol: { port: 0 } });
  const events = await server.events('?all=true');
  const dispatcher = portal(t, 'stock158 over ioredis5', server.redis, { reportAllEvents: true });
  await eventually('the portal to be there', async () => /^mesa_portals 2$/m.test((await server.call('GET', '/metrics')).body));
  const raw = await open(t, server);
  raw.send({ op: 0, d: { [HALF]: HALF }, t: HALF });
  await dispatcher.until('the message', (all) => dispatcher.events.length === 2);
  assert.deepEqual(dispatcher.events[1][1].t, HALF);
  for await (const { type, message } of events) {
    if (type !== 'message') continue;
    assert.deepEqual(message, { op: 0, d: { [HALF]: HALF }, t: HALF });
    break;
  }
  assert.equal(raw.closed, undefined);
});

test('half_of_a_pair_in_a_dispatch_rejects_that_value', async (t) => {
  const server = await start(t);
  const dispatch = () => server.dispatch({ d: HALF }, ['alice', `bob${HALF}`], undefined, 'first');
  const result = await dispatch();
  assert.deepEqual(result.rejected, [{ user: `bob${HALF}`, reason: 'invalid' }]);
  assert.deepEqual([result.recipients, result.offline], [2, 1]);
  assert.deepEqual(await dispatch(), { ...result, duplicate: true });
  // Read back from the store.
  await server.kill();
  await server.restart();
  assert.deepEqual(await dispatch(), { ...result, duplicate: true });
  const cases = {
    'message.o.collapse': { message: { o: { collapse: HALF } }, recipients: ['alice'] },
    id: { message: { t: HALF }, recipients: [HALF], id: HALF },
  };
  for (const [what, body] of Object.entries(cases)) {
    const { status, body: { error } } = await server.call('POST', '/v1/dispatch', body);
    assert.deepEqual([status, error.code], [422, 'bad_dispatch']);
    assert.match(error.message, new RegExp(`^${what.replaceAll('.', '\\.')} has half of a surrogate pair`));
  }
  const { request, answers } = server.stream();
  for (const body of [cases.id, { message: { d: HALF }, recipients: [HALF, 'alice'] }]) request.write(`${JSON.stringify(body)}\n`);
  request.end();
  const lines = [];
  for await (const line of answers) lines.push(line);
  assert.match(lines[0].error.message, /^id has half/);
  assert.deepEqual(lines[1].rejected, [{ user: HALF, reason: 'invalid' }]);
  assert.equal((await server.user('alice')).pending, 2);
});
