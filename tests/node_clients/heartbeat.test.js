'use strict';
// Clients that are there, and clients that only seem to be.

const assert = require('node:assert/strict');
const test = require('node:test');
const { overAllClients } = require('./lib/suite');
const { before } = require('./lib/proxy');
const { open } = require('./lib/raw');
const { start } = require('./lib/server');

const INTERVAL = 200;
const ATTEMPTS = 2;
const beating = { heartbeat: { enabled: true, interval: INTERVAL, maxAttempts: ATTEMPTS } };

/** When a client that stopped answering must be gone, and a second for a loaded machine. */
const GONE_BY = INTERVAL * (ATTEMPTS + 2) + 1000;

/** A server asks again what was not answered for so long: more than a busy machine keeps a client from answering. */
const LONG_INTERVAL = 1500;
const beatingSlowly = { heartbeat: { enabled: true, interval: LONG_INTERVAL, maxAttempts: ATTEMPTS } };

overAllClients('clients_that_answer_stay', beatingSlowly, async ({ server, connect }) => {
  const alice = await connect();
  await alice.is('alice');
  assert.equal(alice.hello.c_heartbeat_interval, LONG_INTERVAL);
  const began = Date.now();
  const beats = () => alice.frames.filter((frame) => frame.op === 1);
  // The first follows the authentication.
  await alice.until('five heartbeats', () => beats().length >= 5);
  const took = Date.now() - began;
  assert.ok(took >= 3 * LONG_INTERVAL, `five heartbeats in ${took} ms`);
  assert.ok(beats().every((beat) => Object.keys(beat.d).length === 0), 'an answered heartbeat was repeated');
  await server.number(0, 'alice');
  await alice.waitForNumber(0);
  assert.deepEqual(alice.closes, []);
});

overAllClients('a_client_whose_network_died_is_given_up', beating, async ({ server, t, connect }) => {
  const proxy = await before(t, server);
  const alice = await connect(proxy.url);
  await alice.is('alice');
  await server.connections('alice', 1);
  proxy.freeze();
  await server.connections('alice', 0, GONE_BY);
  const result = await server.number(0, 'alice');
  assert.deepEqual([result.online, result.offline], [0, 1]);
  const back = await connect();
  await back.is('alice');
  await back.waitForNumber(0);
});

test('a_client_that_stops_answering_is_asked_again_and_then_closed', async (t) => {
  const server = await start(t, beating);
  const raw = await open(t, server);
  await raw.authenticate('alice');
  const beats = () => raw.frames.filter((frame) => frame.op === 1);
  await raw.until('a heartbeat', () => beats().length === 1);
  assert.deepEqual(beats()[0], { op: 1, d: {} });
  const asked = Date.now();
  await raw.waitForClose(GONE_BY);
  const took = Date.now() - asked;
  assert.ok(took >= INTERVAL, `given up after ${took} ms, before it could have answered`);
  const retries = beats().slice(1);
  assert.ok(retries.length >= 1 && retries.length <= ATTEMPTS, `${retries.length} retries`);
  for (const { d } of retries) {
    assert.equal(d.max, ATTEMPTS);
    assert.ok(Number.isInteger(d.tries) && d.tries <= ATTEMPTS + 1, JSON.stringify(d));
  }
});

test('a_client_that_answers_in_the_end_stays', async (t) => {
  const server = await start(t, { heartbeat: { enabled: true, interval: 200, maxAttempts: 5 } });
  const raw = await open(t, server);
  await raw.authenticate('alice');
  const beats = () => raw.frames.filter((frame) => frame.op === 1);
  for (let round = 1; round <= 3; round += 1) {
    const from = beats().length;
    await raw.until('a retry', () => beats().slice(from).some((beat) => beat.d.tries));
    raw.send({ op: 11, d: {} });
    await raw.until('a new heartbeat', () => beats().at(-1) && !beats().at(-1).d.tries);
  }
  assert.equal(raw.closed, undefined);
});

test('a_receipt_is_what_moves_the_cursor', async (t) => {
  const server = await start(t);
  await server.numbers(5, 'alice');
  const deaf = await open(t, server);
  await deaf.authenticate('alice');
  deaf.send({ op: 11, d: {} });
  await deaf.until('five messages and a question', () => deaf.messages.length === 5 && deaf.frames.at(-1).op === 1);
  assert.equal((await server.user('alice')).pending, 5);
  deaf.send({ op: 11, d: {} });
  await server.allReceived('alice');
});

test('a_receipt_nobody_asked_for_confirms_nothing', async (t) => {
  const server = await start(t, { sync: { redeliveryInterval: 300 } });
  await server.numbers(3, 'alice');
  const hasty = await open(t, server);
  for (let i = 0; i < 5; i += 1) hasty.send({ op: 11, d: {} });
  await hasty.authenticate('alice');
  hasty.end();
  await server.connections('alice', 0);
  const alice = await open(t, server);
  await alice.authenticate('alice');
  await alice.until('three messages', () => alice.messages.length === 3);
  assert.deepEqual(alice.messages.map((message) => message.d.n), [0, 1, 2]);
});

test('pongs_confirm_a_client_that_never_answers_the_heartbeat', async (t) => {
  const server = await start(t, { heartbeat: { enabled: true, interval: 300, maxAttempts: 2 } });
  await server.numbers(3, 'alice');
  // It answers WebSocket pings, as every library does by itself, and no op 1.
  const mute = await open(t, server);
  await mute.authenticate('alice');
  for (let n = 0; n < 3; n += 1) {
    await mute.until('a ping', () => mute.pings.length > n);
    if (n === 2) await mute.until('three messages', () => mute.messages.length === 3);
    assert.equal((await server.user('alice')).pending, 3, 'not before it has been silent for long enough');
    mute.pong(mute.pings[n]);
  }
  // A pong that comes after the next ping proves nothing, as on a busy machine, and then the next one does.
  let answered = 3;
  const answering = setInterval(() => {
    for (; answered < mute.pings.length; answered += 1) mute.pong(mute.pings[answered]);
  }, 10);
  t.after(() => clearInterval(answering));
  await server.allReceived('alice');
  assert.equal(mute.closed, undefined);
});

test('written_counts_as_received_where_configured', async (t) => {
  const server = await start(t, { sync: { confirmation: 'write' } });
  await server.numbers(3, 'alice');
  const mute = await open(t, server);
  await mute.authenticate('alice');
  await mute.until('three messages', () => mute.messages.length === 3);
  await server.allReceived('alice');
  assert.deepEqual(mute.frames.map((frame) => frame.op), [10, 22, 1, 0, 0, 0], 'nothing is asked after the messages');
});
