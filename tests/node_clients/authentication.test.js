'use strict';
// Tests authentication: accepted and rejected tokens, timeouts, and expiry of a session.

const assert = require('node:assert/strict');
const test = require('node:test');
const { testWithEachClient } = require('./lib/suite');
const { connectRaw } = require('./lib/raw');
const { startServer } = require('./lib/server');
const { createToken, nowSeconds } = require('./lib/jwt');

/** Sends an op 2 that the server rejects. It does not wait: the client's own promise never settles in this case. */
const sendInvalid = (client, data) => void client.client.authenticate(data).catch(() => {});

testWithEachClient('failed_authentication_closes_with_1008_without_a_further_frame', {}, async ({ connect }) => {
  for (const data of [{}, { token: '' }, { token: 7 }, { token: null }, { token: 'a\u0000b' }, { token: 'x'.repeat(257) }]) {
    const client = await connect();
    await client.waitUntil('a hello', () => client.hello);
    sendInvalid(client, data);
    assert.equal(await client.waitForClose(), 1008, JSON.stringify(data));
    assert.deepEqual(client.frames.map((frame) => frame.op), [10]);
  }
});

const KEEP_OPEN = { authentication: { disconnectOnFail: false } };
testWithEachClient('failed_authentication_with_disconnect_on_fail_off_can_be_retried', KEEP_OPEN, async ({ server, connect }) => {
  const alice = await connect();
  await alice.waitUntil('a hello', () => alice.hello);
  sendInvalid(alice, { token: '' });
  sendInvalid(alice, {});
  assert.deepEqual(await alice.authenticateAs('alice'), { id: 'alice' });
  assert.deepEqual(alice.closeCodes, []);
  await server.dispatchNumber(0, 'alice');
  await alice.waitForNumber(0);
});

// The authenticated client has to meet it, also on a machine that stalls.
const AUTHENTICATION_TIMEOUT = 10_000;
const SHORT_TIMEOUT = { authentication: { timeout: AUTHENTICATION_TIMEOUT } };
testWithEachClient('client_that_never_authenticates_is_closed_at_the_timeout', SHORT_TIMEOUT, async ({ server, connect }) => {
  const alice = await connect();
  await alice.authenticateAs('alice');
  const began = Date.now();
  const silent = await connect();
  assert.equal(await silent.waitForClose(), 1008);
  const took = Date.now() - began;
  assert.ok(took >= AUTHENTICATION_TIMEOUT * 0.9, `expected the close after ${AUTHENTICATION_TIMEOUT} ms, got ${took} ms`);
  await server.dispatchNumber(0, 'alice');
  await alice.waitForNumber(0);
  assert.deepEqual(alice.closeCodes, [], 'expected the authenticated client to stay connected');
});

test('repeated_failures_do_not_extend_the_authentication_timeout', async (t) => {
  const server = await startServer(t, { authentication: { timeout: 600, disconnectOnFail: false } });
  const raw = await connectRaw(t, server);
  // An extended timeout would never end: the retries end after the close.
  const retries = setInterval(() => raw.send({ op: 2, d: { token: '' } }), 100);
  const code = await raw.waitForClose().finally(() => clearInterval(retries));
  assert.equal(code, 1008);
});

const SECRET = 'a secret of more than thirty-two bytes';
const JWT = { authentication: { insecure: false, jwt: { secret: SECRET } } };

testWithEachClient('token_with_id_or_sub_authenticates_that_user', JWT, async ({ server, connect }) => {
  await server.dispatchNumber(0, ['alice', 'bob']);
  const claims = { alice: { id: 'alice', sub: 'carol' }, bob: { sub: 'bob' } };
  for (const [user, claim] of Object.entries(claims)) {
    const client = await connect();
    const userObject = await client.authenticateAs(createToken({ ...claim, exp: nowSeconds() + 60 }, SECRET));
    assert.equal(userObject.id, user);
    await client.waitForNumber(0);
  }
});

testWithEachClient('invalid_token_is_rejected', JWT, async ({ connect }) => {
  const claims = { id: 'alice', exp: nowSeconds() + 60 };
  const valid = createToken(claims, SECRET);
  const [header, body, signature] = valid.split('.');
  const invalid = {
    expired: createToken({ ...claims, exp: nowSeconds() - 5 }, SECRET),
    'not valid yet': createToken({ ...claims, nbf: nowSeconds() + 60 }, SECRET),
    'signed with another key': createToken(claims, 'another secret of more than 32 bytes'),
    unsigned: createToken(claims, SECRET, { alg: 'none' }),
    'unsigned, with the signature of a valid token':
      [createToken(claims, SECRET, { alg: 'none' }).split('.').slice(0, 2), signature].flat().join('.'),
    'signed with another algorithm': createToken(claims, SECRET, { alg: 'HS512' }),
    'changed after signing':
      [header, Buffer.from(JSON.stringify({ ...claims, id: 'bob' })).toString('base64url'), signature].join('.'),
    'without a signature': `${header}.${body}`,
    'without a user': createToken({ exp: nowSeconds() + 60 }, SECRET),
    'with a user id that is not a string': createToken({ ...claims, id: { a: 1 } }, SECRET),
    'not a JWT': 'alice',
  };
  for (const [defect, text] of Object.entries(invalid)) {
    const client = await connect();
    await client.waitUntil('a hello', () => client.hello);
    sendInvalid(client, { token: text });
    assert.equal(await client.waitForClose(), 1008, defect);
    assert.deepEqual(client.frames.map((frame) => frame.op), [10], defect);
  }
  const alice = await connect();
  assert.equal((await alice.authenticateAs(valid)).id, 'alice');
});

testWithEachClient('expiry_of_the_token_closes_the_connection_with_1008', JWT, async ({ server, connect }) => {
  // Far enough away for the client to receive a message before, also on a machine that stalls.
  const exp = nowSeconds() + 12;
  const alice = await connect();
  await alice.authenticateAs(createToken({ id: 'alice', exp }, SECRET));
  await server.dispatchNumber(0, 'alice');
  await alice.waitForNumber(0);
  assert.equal(await alice.waitForClose(), 1008);
  const delay = Date.now() / 1000 - exp;
  assert.ok(delay > -0.05, `expected the close after the expiry, got ${-delay} s before`);
  await server.waitForConnections('alice', 0);
});
