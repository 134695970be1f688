'use strict';
// Tests heartbeats (op 1), unresponsive clients, and which answers acknowledge messages.

const assert = require('node:assert/strict');
const test = require('node:test');
const { testWithEachClient } = require('./lib/suite');
const { startProxy } = require('./lib/proxy');
const { connectRaw } = require('./lib/raw');
const { startServer } = require('./lib/server');

/** For a raw client that must be closed. */
const INTERVAL = 200;
const ATTEMPTS_MAX = 2;
const HEARTBEAT = { heartbeat: { enabled: true, interval: INTERVAL, maxAttempts: ATTEMPTS_MAX } };

/** Milliseconds before an unanswered op 1 is retried. A busy machine delays the answer of a client by less. */
const LONG_INTERVAL = 5000;
const SLOW_HEARTBEAT = { heartbeat: { enabled: true, interval: LONG_INTERVAL, maxAttempts: ATTEMPTS_MAX } };

testWithEachClient('client_that_answers_heartbeats_stays_connected', SLOW_HEARTBEAT, async ({ server, connect }) => {
  const alice = await connect();
  await alice.authenticateAs('alice');
  assert.equal(alice.hello.c_heartbeat_interval, LONG_INTERVAL);
  const began = Date.now();
  const heartbeats = () => alice.frames.filter((frame) => frame.op === 1);
  // The first heartbeat follows the authentication at once.
  await alice.waitUntil('three heartbeats', () => heartbeats().length >= 3);
  const took = Date.now() - began;
  assert.ok(took >= LONG_INTERVAL, `expected three heartbeats after ${LONG_INTERVAL} ms or more, got ${took} ms`);
  assert.ok(heartbeats().every(({ d }) => Object.keys(d).length === 0), 'expected no retry of an answered heartbeat');
  await server.dispatchNumber(0, 'alice');
  await alice.waitForNumber(0);
  assert.deepEqual(alice.closeCodes, []);
});

// The client that connects afterwards has to answer in time, also on a machine that stalls.
testWithEachClient('client_with_dead_network_is_closed', SLOW_HEARTBEAT, async ({ server, t, connect }) => {
  const proxy = await startProxy(t, server);
  const alice = await connect(proxy.url);
  await alice.authenticateAs('alice');
  await server.waitForConnections('alice', 1);
  proxy.freeze();
  await server.waitForConnections('alice', 0);
  const result = await server.dispatchNumber(0, 'alice');
  assert.deepEqual([result.online, result.offline], [0, 1]);
  const reconnected = await connect();
  await reconnected.authenticateAs('alice');
  await reconnected.waitForNumber(0);
});

test('client_that_stops_answering_gets_retries_and_is_closed', async (t) => {
  const server = await startServer(t, HEARTBEAT);
  const raw = await connectRaw(t, server);
  await raw.authenticate('alice');
  const heartbeats = () => raw.frames.filter((frame) => frame.op === 1);
  await raw.waitUntil('a heartbeat', () => heartbeats().length === 1);
  assert.deepEqual(heartbeats()[0], { op: 1, d: {} });
  const began = Date.now();
  await raw.waitForClose();
  const took = Date.now() - began;
  assert.ok(took >= INTERVAL, `expected the close after ${INTERVAL} ms or more, got ${took} ms`);
  const retries = heartbeats().slice(1);
  assert.ok(retries.length >= 1 && retries.length <= ATTEMPTS_MAX, `expected 1 to ${ATTEMPTS_MAX} retries, got ${retries.length}`);
  for (const { d } of retries) {
    assert.equal(d.max, ATTEMPTS_MAX);
    assert.ok(Number.isInteger(d.tries) && d.tries <= ATTEMPTS_MAX + 1, JSON.stringify(d));
  }
});

test('client_that_answers_a_retry_stays_connected', async (t) => {
  const server = await startServer(t, { heartbeat: { enabled: true, interval: 200, maxAttempts: 100 } });
  const raw = await connectRaw(t, server);
  await raw.authenticate('alice');
  const heartbeats = () => raw.frames.filter((frame) => frame.op === 1);
  let newest = 0;
  for (let round = 1; round <= 3; round += 1) {
    await raw.waitUntil('a retry', () => heartbeats().slice(newest).some(({ d }) => d.tries));
    const countAnswered = heartbeats().length;
    raw.send({ op: 11, d: {} });
    // On a busy machine the new heartbeat and its retries arrive together.
    const isNew = ({ d }, index) => index >= countAnswered && !d.tries;
    await raw.waitUntil('a new heartbeat', () => heartbeats().some(isNew));
    newest = heartbeats().findIndex(isNew);
  }
  assert.equal(raw.closeCode, undefined);
});

// covers: G2
test('answer_to_op_1_after_the_messages_acknowledges_them', async (t) => {
  const server = await startServer(t);
  await server.dispatchNumbers(5, 'alice');
  const raw = await connectRaw(t, server);
  await raw.authenticate('alice');
  raw.send({ op: 11, d: {} });
  await raw.waitUntil('five messages and an op 1', () => raw.messages.length === 5 && raw.frames.at(-1).op === 1);
  assert.equal((await server.userState('alice')).pending, 5);
  raw.send({ op: 11, d: {} });
  await server.waitForNoPending('alice');
});

test('unrequested_op_11_acknowledges_nothing', async (t) => {
  const server = await startServer(t, { sync: { redeliveryInterval: 300 } });
  await server.dispatchNumbers(3, 'alice');
  const early = await connectRaw(t, server);
  for (let i = 0; i < 5; i += 1) early.send({ op: 11, d: {} });
  await early.authenticate('alice');
  early.drop();
  await server.waitForConnections('alice', 0);
  const alice = await connectRaw(t, server);
  await alice.authenticate('alice');
  await alice.waitUntil('three messages', () => alice.messages.length === 3);
  assert.deepEqual(alice.messages.map((message) => message.d.n), [0, 1, 2]);
});

test('pongs_acknowledge_messages_of_client_that_never_answers_op_1', async (t) => {
  const server = await startServer(t, { heartbeat: { enabled: true, interval: 4000, maxAttempts: 2 } });
  await server.dispatchNumbers(3, 'alice');
  // Answers WebSocket pings, as every library does by itself, but no op 1.
  const raw = await connectRaw(t, server);
  await raw.authenticate('alice');
  for (let n = 0; n < 3; n += 1) {
    await raw.waitUntil('a ping', () => raw.pings.length > n);
    if (n === 2) await raw.waitUntil('three messages', () => raw.messages.length === 3);
    const { pending } = await server.userState('alice');
    assert.equal(pending, 3, 'expected the messages to stay pending while op 1 may still be answered');
    raw.sendPong(raw.pings[n]);
  }
  // On a busy machine a pong may arrive after the next ping, and acknowledges nothing. A later pong does.
  let answered = 3;
  const pongs = setInterval(() => {
    for (; answered < raw.pings.length; answered += 1) raw.sendPong(raw.pings[answered]);
  }, 10);
  t.after(() => clearInterval(pongs));
  await server.waitForNoPending('alice');
  assert.equal(raw.closeCode, undefined);
});

test('confirmation_write_acknowledges_messages_when_they_are_written', async (t) => {
  const server = await startServer(t, { sync: { confirmation: 'write' } });
  await server.dispatchNumbers(3, 'alice');
  const raw = await connectRaw(t, server);
  await raw.authenticate('alice');
  await raw.waitUntil('three messages', () => raw.messages.length === 3);
  await server.waitForNoPending('alice');
  assert.deepEqual(raw.frames.map((frame) => frame.op), [10, 22, 1, 0, 0, 0], 'expected no op 1 after the messages');
});
