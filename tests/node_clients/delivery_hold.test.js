'use strict';
// Tests the hold of deliveries: until the client has answered the op 1 that follows op 22, at most 250 ms.
//
// Applications may register their message handler only after `await authenticate()`.

const assert = require('node:assert/strict');
const test = require('node:test');
const WebSocket = require('ws');
const { connectRaw } = require('./lib/raw');
const { startServer } = require('./lib/server');
const { range } = require('./lib/suite');
const { ChangeNotifier, withTimeout } = require('./lib/wait');

globalThis.WebSocket ??= WebSocket;
const MesaJsClient = require('mesa-js-client');
const original138 = require('stock138');
const original158 = require('stock158');

/** Milliseconds for which the server holds deliveries without an answer. */
const HOLD_TIMEOUT = 250;
const ANSWER = { op: 11, d: {} };

/** Class of each client, and how an application registers its message handler. */
const emitter = (Client) => ({ Client, register: (client, handler) => client.on('message', handler) });
const CLIENTS = {
  '@cryb/mesa 1.5.8': emitter(original158.Client),
  '@cryb/mesa 1.3.8': emitter(original138.Client),
  'mesa-js-client 1.4.8': { Client: MesaJsClient, register: (client, handler) => { client.onMessage = handler; } },
};

/** Attempts of a test on a machine that is too busy for the hold. */
const ATTEMPTS_MAX = 20;

/**
 * Runs `attempt` until its client has registered its handler within the hold.
 *
 * A busy machine may pause the client for longer than the hold. Then the client discards messages, and nothing can be checked.
 */
async function withinHold(attempt) {
  for (let number = 1; ; number += 1) {
    const { registeredAfter, check } = await attempt();
    if (registeredAfter < HOLD_TIMEOUT) return check();
    assert.ok(number < ATTEMPTS_MAX, `the client needed more than ${HOLD_TIMEOUT} ms, ${ATTEMPTS_MAX} times`);
  }
}

/**
 * Connects, awaits `authenticate()`, and then registers the handler.
 *
 * `registeredAfter` is the time from before op 2 until then, in milliseconds.
 */
async function connectWithLateHandler(t, server, { Client, register }, options) {
  const client = new Client(server.url, { autoConnect: false });
  t.after(() => {
    client.registerClose = () => {};
    for (const timer of [client.reconnectionInterval, client.reconnectionIntervalId]) clearInterval(timer);
    client.ws?.terminate();
  });
  const [changes, messages] = [new ChangeNotifier(), []];
  await withTimeout('the client to connect', client.connect());
  const began = Date.now();
  await withTimeout('authenticate() to resolve', client.authenticate({ token: 'alice' }, options));
  register(client, ({ opcode, data, sequence }) => {
    // 1.3.8 also passes op 1 to the application.
    if (opcode !== 0) return;
    messages.push([data.n, sequence]);
    changes.notify();
  });
  const registeredAfter = Date.now() - began;
  const waitForCount = (count) =>
    changes.waitUntil(() => `${count} messages; received ${JSON.stringify(messages)}`, () => messages.length >= count);
  return { messages, waitForCount, registeredAfter };
}

for (const [name, client] of Object.entries(CLIENTS)) {
  for (const [variant, sync] of Object.entries({
    'without redelivery interval': { redeliveryInterval: 0 },
    'with redelivery interval': { redeliveryInterval: 100 },
    'with confirmation write': { confirmation: 'write' },
  })) {
    test(`handler_registered_after_authenticate_receives_backlog: ${name}, ${variant}`, (t) => withinHold(async () => {
      const server = await startServer(t, { sync });
      await server.dispatchNumbers(3, 'alice');
      const { messages, waitForCount, registeredAfter } = await connectWithLateHandler(t, server, client);
      const check = async () => {
        await waitForCount(3);
        await server.waitForNoPending('alice');
        assert.deepEqual(messages, range(3).map((n) => [n, n + 1]));
      };
      return { registeredAfter, check };
    }));
  }

  test(`handler_registered_after_authenticate_receives_first_live_message: ${name}`, (t) => withinHold(async () => {
    const server = await startServer(t, {});
    // Dispatches all the time, so that the first message after the attach follows op 22 as closely as possible.
    let done = false;
    const sent = [];
    const dispatching = (async () => {
      for (let n = 0; !done; n += 1) {
        const { online } = await server.dispatchNumber(n, 'alice', { sync: n % 2 === 0 });
        if (n % 2 === 0 || online > 0) sent.push(n);
      }
    })();
    const { messages, waitForCount, registeredAfter } = await connectWithLateHandler(t, server, client);
    if (registeredAfter < HOLD_TIMEOUT) await waitForCount(10);
    done = true;
    await dispatching;
    const check = async () => {
      await waitForCount(sent.length);
      assert.deepEqual(messages.map(([n]) => n).sort((a, b) => a - b), sent);
    };
    return { registeredAfter, check };
  }));
}

/** Connects a raw client and waits for op 22. `began` is the time before op 2 was sent. */
async function authenticated(t, server, options) {
  const raw = await connectRaw(t, server);
  const began = Date.now();
  await raw.authenticate('alice', options);
  return { raw, began };
}

const ops = (raw) => raw.frames.map((frame) => frame.op);

/** Asserts that nothing was delivered before the op 11, unless the hold timeout may have passed. */
function assertHeld(raw, began) {
  const delivered = raw.messages.length;
  const mayBeOver = Date.now() - began >= HOLD_TIMEOUT;
  assert.ok(delivered === 0 || mayBeOver, `expected no message before the answer to op 1, got ${delivered}`);
}

for (const enabled of [true, false]) {
  test(`deliveries_before_op_11_are_held: sync ${enabled ? 'on' : 'off'}`, async (t) => {
    const server = await startServer(t, { sync: { enabled } });
    if (enabled) await server.dispatchNumber(0, 'alice');
    const { raw, began } = await authenticated(t, server);
    await raw.waitUntil('op 1', () => ops(raw).includes(1));
    assert.deepEqual(ops(raw).slice(0, 3), [10, 22, 1]);
    await server.dispatchNumber(1, 'alice');
    await server.dispatchNumber(2, 'alice', { sync: false });
    await server.dispatchNumber(3, '*');
    // During the hold the server answers an op 1 of the client, and delivers nothing.
    raw.send({ op: 1, d: {} });
    await raw.waitUntil('op 11', () => ops(raw).includes(11));
    assertHeld(raw, began);
    raw.send(ANSWER);
    const expected = enabled ? range(4) : range(3, 1);
    await raw.waitUntil('all messages', () => raw.messages.length === expected.length);
    assert.deepEqual(raw.messages.map((message) => message.d.n).sort(), expected);
  });
}

test('client_that_never_answers_op_1_receives_after_the_hold_timeout', async (t) => {
  const server = await startServer(t);
  await server.dispatchNumbers(3, 'alice');
  const { raw, began } = await authenticated(t, server);
  await raw.waitUntil('three messages', () => raw.messages.length === 3);
  const took = Date.now() - began;
  assert.ok(took >= HOLD_TIMEOUT, `expected the messages after ${HOLD_TIMEOUT} ms or more, got ${took} ms`);
  // The late op 11 answers the first op 1 and acknowledges nothing. The next op 11 acknowledges the messages.
  raw.send(ANSWER);
  await raw.waitUntil('the next op 1', () => ops(raw).filter((op) => op === 1).length === 2);
  assert.equal((await server.userState('alice')).pending, 3);
  raw.send(ANSWER);
  await server.waitForNoPending('alice');
});

// An application may register its handler shortly after `await authenticate()`, for example in a timer.
test('deliveries_start_10_ms_after_the_answer', async (t) => {
  const server = await startServer(t);
  await server.dispatchNumber(0, 'alice');
  const { raw, began } = await authenticated(t, server);
  const answered = performance.now();
  raw.send(ANSWER);
  await raw.waitUntil('the message', () => raw.messages.length === 1);
  const took = performance.now() - answered;
  assert.ok(took >= 9 || Date.now() - began >= HOLD_TIMEOUT, `expected the message 9 ms or more after the answer, got ${took} ms`);
});

/** Milliseconds between messages of a backlog. A busy machine takes less for a dispatch. */
const PACE = 5000;

test('first_message_of_paced_backlog_follows_the_answer_after_one_interval', async (t) => {
  const server = await startServer(t, { sync: { redeliveryInterval: PACE } });
  await server.dispatchNumbers(2, 'alice');
  const { raw } = await authenticated(t, server);
  const answered = Date.now();
  raw.send(ANSWER);
  await server.dispatchNumber(2, 'alice');
  await raw.waitUntil('all three messages', () => raw.messages.length === 3);
  const took = Date.now() - answered;
  assert.deepEqual(raw.messages.map(({ d, s }) => [d.n, s]), [[2, undefined], [0, 1], [1, 2]]);
  assert.ok(took >= 2 * PACE * 0.9, `expected two messages at intervals of ${PACE} ms after the answer, got both after ${took} ms`);
});

test('client_that_resumes_receives_its_backlog_without_a_hold', async (t) => {
  const server = await startServer(t);
  await server.dispatchNumbers(3, 'alice');
  const { raw } = await authenticated(t, server, { after: 0 });
  await raw.waitUntil('three messages', () => raw.messages.length === 3);
  await server.dispatchNumber(3, '*');
  await raw.waitUntil('a broadcast', () => raw.messages.length === 4);
  assert.deepEqual(ops(raw), [10, 22, 13, 0, 0, 0, 0]);
});

test('second_authentication_of_a_connection_starts_no_hold', async (t) => {
  const server = await startServer(t);
  const { raw } = await authenticated(t, server);
  raw.send(ANSWER);
  raw.send({ op: 2, d: { token: 'alice', shouldSync: true } });
  raw.send({ op: 1, d: {} });
  await raw.waitUntil('op 11', () => ops(raw).includes(11));
  await server.dispatchNumber(0, '*');
  await raw.waitUntil('a broadcast', () => raw.messages.length === 1);
  assert.deepEqual(ops(raw), [10, 22, 1, 11, 0]);
});

test('op_11_before_authentication_does_not_end_the_hold', async (t) => {
  const server = await startServer(t);
  await server.dispatchNumber(0, 'alice');
  const raw = await connectRaw(t, server);
  for (let n = 0; n < 3; n += 1) raw.send(ANSWER);
  const began = Date.now();
  await raw.authenticate('alice');
  raw.send({ op: 1, d: {} });
  await raw.waitUntil('op 11', () => ops(raw).includes(11));
  assertHeld(raw, began);
});

test('unsynced_messages_during_the_hold_are_bounded_and_drop_the_oldest', async (t) => {
  const server = await startServer(t, { limits: { unsyncedMessages: 10 } });
  const { raw, began } = await authenticated(t, server);
  await server.dispatchNumbers(50, '*');
  const withinHold = Date.now() - began < HOLD_TIMEOUT;
  assertHeld(raw, began);
  raw.send(ANSWER);
  await raw.waitUntil('the last message', () => raw.messages.some((message) => message.d.n === 49));
  if (withinHold) assert.deepEqual(raw.messages.map((message) => message.d.n), range(10, 40), 'expected the oldest to be dropped');
});
