'use strict';
// Who is let in, who is not, and for how long.

const assert = require('node:assert/strict');
const test = require('node:test');
const { overAllClients } = require('./lib/suite');
const { open } = require('./lib/raw');
const { start } = require('./lib/server');
const { now, token } = require('./lib/jwt');

/** Sends what will be refused; the client's own promise never settles then. */
const tries = (peer, data) => void peer.client.authenticate(data).catch(() => {});

overAllClients('a_failed_authentication_closes_with_1008_and_says_nothing', {}, async ({ connect }) => {
  for (const data of [{}, { token: '' }, { token: 7 }, { token: null }, { token: 'a\u0000b' }, { token: 'x'.repeat(257) }]) {
    const peer = await connect();
    await peer.until('a hello', () => peer.hello);
    tries(peer, data);
    assert.equal(await peer.waitForClose(), 1008, JSON.stringify(data));
    assert.deepEqual(peer.frames.map((frame) => frame.op), [10]);
  }
});

const lenient = { authentication: { disconnectOnFail: false } };
overAllClients('a_failed_authentication_may_be_tried_again_where_configured', lenient, async ({ server, connect }) => {
  const alice = await connect();
  await alice.until('a hello', () => alice.hello);
  tries(alice, { token: '' });
  tries(alice, {});
  assert.deepEqual(await alice.is('alice'), { id: 'alice' });
  assert.deepEqual(alice.closes, []);
  await server.number(0, 'alice');
  await alice.waitForNumber(0);
});

const hasty = { authentication: { timeout: 400 } };
overAllClients('who_never_authenticates_is_closed_at_the_timeout', hasty, async ({ server, connect }) => {
  const alice = await connect();
  await alice.is('alice');
  const began = Date.now();
  const silent = await connect();
  assert.equal(await silent.waitForClose(), 1008);
  const took = Date.now() - began;
  assert.ok(took >= 350 && took < 3000, `closed after ${took} ms`);
  await server.number(0, 'alice');
  await alice.waitForNumber(0);
  assert.deepEqual(alice.closes, [], 'who has authenticated stays');
});

test('failing_again_and_again_does_not_move_the_timeout', async (t) => {
  const server = await start(t, { authentication: { timeout: 600, disconnectOnFail: false } });
  const began = Date.now();
  const raw = await open(t, server);
  const again = setInterval(() => raw.send({ op: 2, d: { token: '' } }), 100);
  const code = await raw.waitForClose().finally(() => clearInterval(again));
  assert.equal(code, 1008);
  assert.ok(Date.now() - began < 3000, `closed after ${Date.now() - began} ms`);
});

const SECRET = 'a secret of more than thirty-two bytes';
const JWT = { authentication: { insecure: false, jwt: { secret: SECRET } } };

overAllClients('a_token_names_the_user_in_id_or_in_sub', JWT, async ({ server, connect }) => {
  await server.number(0, ['alice', 'bob']);
  const claims = { alice: { id: 'alice', sub: 'someone else' }, bob: { sub: 'bob' } };
  for (const [user, claim] of Object.entries(claims)) {
    const peer = await connect();
    const said = await peer.is(token({ ...claim, exp: now() + 60 }, SECRET));
    assert.equal(said.id, user);
    await peer.waitForNumber(0);
  }
});

overAllClients('a_token_that_does_not_hold_is_refused', JWT, async ({ connect }) => {
  const claims = { id: 'alice', exp: now() + 60 };
  const good = token(claims, SECRET);
  const [head, body, signature] = good.split('.');
  const bad = {
    expired: token({ ...claims, exp: now() - 5 }, SECRET),
    'not valid yet': token({ ...claims, nbf: now() + 60 }, SECRET),
    'signed with another key': token(claims, 'another secret of more than 32 bytes'),
    'not signed': token(claims, SECRET, { alg: 'none' }),
    'not signed, but with a signature': [token(claims, SECRET, { alg: 'none' }).split('.').slice(0, 2), signature].flat().join('.'),
    'of another algorithm': token(claims, SECRET, { alg: 'HS512' }),
    'changed afterwards': [head, Buffer.from(JSON.stringify({ ...claims, id: 'bob' })).toString('base64url'), signature].join('.'),
    'without a signature': `${head}.${body}`,
    'without a user': token({ exp: now() + 60 }, SECRET),
    'with a user that is no string': token({ ...claims, id: { a: 1 } }, SECRET),
    'no token at all': 'alice',
  };
  for (const [what, text] of Object.entries(bad)) {
    const peer = await connect();
    await peer.until('a hello', () => peer.hello);
    tries(peer, { token: text });
    assert.equal(await peer.waitForClose(), 1008, what);
    assert.deepEqual(peer.frames.map((frame) => frame.op), [10], what);
  }
  const alice = await connect();
  assert.equal((await alice.is(good)).id, 'alice');
});

overAllClients('a_token_that_expires_ends_its_session', JWT, async ({ server, connect }) => {
  const exp = now() + 2;
  const alice = await connect();
  await alice.is(token({ id: 'alice', exp }, SECRET));
  await server.number(0, 'alice');
  await alice.waitForNumber(0);
  assert.equal(await alice.waitForClose(), 1008);
  const late = Date.now() / 1000 - exp;
  assert.ok(late > -0.05 && late < 2, `closed ${late} s after the token expired`);
  await server.connections('alice', 0);
});
