'use strict';
// Applications that register their message handler after `await authenticate()`: the server holds deliveries back until
// the client has answered the op 1 that follows op 22.

const assert = require('node:assert/strict');
const test = require('node:test');
const WebSocket = require('ws');
const { open } = require('./lib/raw');
const { start } = require('./lib/server');
const { range } = require('./lib/suite');
const { Changes, within } = require('./lib/wait');

globalThis.WebSocket ??= WebSocket;
const MesaJsClient = require('mesa-js-client');
const original138 = require('stock138');
const original158 = require('stock158');

const HOLD_MS = 250;
const ANSWER = { op: 11, d: {} };

/** How each client is made, and how an application registers its message handler. */
const emitter = (Client) => ({ Client, register: (client, handler) => client.on('message', handler) });
const CLIENTS = {
  '@cryb/mesa 1.5.8': emitter(original158.Client),
  '@cryb/mesa 1.3.8': emitter(original138.Client),
  'mesa-js-client 1.4.8': { Client: MesaJsClient, register: (client, handler) => { client.onMessage = handler; } },
};

/** Connects, awaits `authenticate()`, and registers the handler only then. */
async function late(t, server, { Client, register }, options) {
  const client = new Client(server.url, { autoConnect: false });
  t.after(() => {
    client.registerClose = () => {};
    for (const timer of [client.reconnectionInterval, client.reconnectionIntervalId]) clearInterval(timer);
    client.ws?.terminate();
  });
  const [changes, messages] = [new Changes(), []];
  await within('the client to connect', client.connect());
  await within('authenticate() to resolve', client.authenticate({ token: 'alice' }, options));
  register(client, ({ opcode, data, sequence }) => {
    // 1.3.8 passes op 1 to the application as well.
    if (opcode !== 0) return;
    messages.push([data.n, sequence]);
    changes.notify();
  });
  const waitFor = (count) => changes.until(() => `${count} messages, got ${JSON.stringify(messages)}`, () => messages.length >= count);
  return { messages, waitFor };
}

for (const [name, client] of Object.entries(CLIENTS)) {
  for (const [what, sync] of Object.entries({
    'without a pause': { redeliveryInterval: 0 },
    'with a pause': { redeliveryInterval: 100 },
    'confirmed by writing': { confirmation: 'write' },
  })) {
    test(`handler_registered_after_authenticate_receives_backlog: ${name}, ${what}`, async (t) => {
      const server = await start(t, { sync });
      await server.numbers(3, 'alice');
      const { messages, waitFor } = await late(t, server, client);
      await waitFor(3);
      await server.allReceived('alice');
      assert.deepEqual(messages, range(3).map((n) => [n, n + 1]));
    });
  }

  test(`handler_registered_after_authenticate_receives_first_live_message: ${name}`, async (t) => {
    const server = await start(t, {});
    // Dispatched from the moment the user counts as online, so that the first follow op 22 as closely as can be.
    let done = false;
    const sent = [];
    const dispatching = (async () => {
      for (let n = 0; !done; n += 1) {
        const { online } = await server.number(n, 'alice', { sync: n % 2 === 0 });
        if (n % 2 === 0 || online > 0) sent.push(n);
      }
    })();
    const { messages, waitFor } = await late(t, server, client);
    await waitFor(10);
    done = true;
    await dispatching;
    await waitFor(sent.length);
    assert.deepEqual(messages.map(([n]) => n).sort((a, b) => a - b), sent);
  });
}

/** A raw connection that has sent op 2 and received op 22, and when it sent it. */
async function authenticated(t, server, options) {
  const raw = await open(t, server);
  const began = Date.now();
  await raw.authenticate('alice', options);
  return { raw, began };
}

const ops = (raw) => raw.frames.map((frame) => frame.op);

/** Nothing may be delivered before the op 11, unless so much time has passed that the server no longer waits for it. */
function assertHeld(raw, began) {
  const delivered = raw.messages.length;
  assert.ok(delivered === 0 || Date.now() - began >= HOLD_MS, `${delivered} messages before op 1 was answered`);
}

for (const enabled of [true, false]) {
  test(`deliveries_before_op_11_are_held: sync ${enabled ? 'on' : 'off'}`, async (t) => {
    const server = await start(t, { sync: { enabled } });
    if (enabled) await server.number(0, 'alice');
    const { raw, began } = await authenticated(t, server);
    await raw.until('op 1', () => ops(raw).includes(1));
    assert.deepEqual(ops(raw).slice(0, 3), [10, 22, 1]);
    await server.number(1, 'alice');
    await server.number(2, 'alice', { sync: false });
    await server.number(3, '*');
    // An answer to what the client itself asks comes in between, and deliveries do not.
    raw.send({ op: 1, d: {} });
    await raw.until('op 11', () => ops(raw).includes(11));
    assertHeld(raw, began);
    raw.send(ANSWER);
    const expected = enabled ? range(4) : range(3, 1);
    await raw.until('all of them', () => raw.messages.length === expected.length);
    assert.deepEqual(raw.messages.map((message) => message.d.n).sort(), expected);
  });
}

test('client_that_never_answers_op_1_receives_after_the_hold_timeout', async (t) => {
  const server = await start(t);
  await server.numbers(3, 'alice');
  const { raw, began } = await authenticated(t, server);
  await raw.until('three messages', () => raw.messages.length === 3);
  assert.ok(Date.now() - began >= HOLD_MS, `after ${Date.now() - began} ms`);
  // The late answer is that of the first op 1, and acknowledges nothing; the next one does.
  raw.send(ANSWER);
  await raw.until('the next op 1', () => ops(raw).filter((op) => op === 1).length === 2);
  assert.equal((await server.user('alice')).pending, 3);
  raw.send(ANSWER);
  await server.allReceived('alice');
});

// An application may register its handler a moment after `await authenticate()`, in a timer for example.
test('deliveries_start_a_moment_after_the_answer', async (t) => {
  const server = await start(t);
  await server.number(0, 'alice');
  const { raw, began } = await authenticated(t, server);
  const answered = performance.now();
  raw.send(ANSWER);
  await raw.until('the message', () => raw.messages.length === 1);
  const took = performance.now() - answered;
  assert.ok(took >= 9 || Date.now() - began >= HOLD_MS, `the message came ${took} ms after the answer`);
});

test('first_paced_message_follows_the_answer_by_one_interval', async (t) => {
  const server = await start(t, { sync: { redeliveryInterval: 400 } });
  await server.numbers(2, 'alice');
  const { raw } = await authenticated(t, server);
  const answered = Date.now();
  raw.send(ANSWER);
  await server.number(2, 'alice');
  await raw.until('all three', () => raw.messages.length === 3);
  const took = Date.now() - answered;
  assert.deepEqual(raw.messages.map(({ d, s }) => [d.n, s]), [[2, undefined], [0, 1], [1, 2]]);
  assert.ok(took >= 2 * 400 * 0.9, `two messages 400 ms apart came ${took} ms after the answer`);
});

test('client_that_resumes_is_sent_its_backlog_at_once', async (t) => {
  const server = await start(t);
  await server.numbers(3, 'alice');
  const { raw } = await authenticated(t, server, { after: 0 });
  await raw.until('three messages', () => raw.messages.length === 3);
  await server.number(3, '*');
  await raw.until('a broadcast', () => raw.messages.length === 4);
  assert.deepEqual(ops(raw), [10, 22, 13, 0, 0, 0, 0]);
});

test('second_authentication_of_a_connection_holds_nothing', async (t) => {
  const server = await start(t);
  const { raw } = await authenticated(t, server);
  raw.send(ANSWER);
  raw.send({ op: 2, d: { token: 'alice', shouldSync: true } });
  raw.send({ op: 1, d: {} });
  await raw.until('op 11', () => ops(raw).includes(11));
  await server.number(0, '*');
  await raw.until('a broadcast', () => raw.messages.length === 1);
  assert.deepEqual(ops(raw), [10, 22, 1, 11, 0]);
});

test('op_11_sent_before_authentication_releases_nothing', async (t) => {
  const server = await start(t);
  await server.number(0, 'alice');
  const raw = await open(t, server);
  for (let n = 0; n < 3; n += 1) raw.send(ANSWER);
  const began = Date.now();
  await raw.authenticate('alice');
  raw.send({ op: 1, d: {} });
  await raw.until('op 11', () => ops(raw).includes(11));
  assertHeld(raw, began);
});

test('session_held_back_keeps_at_most_the_bounded_mailbox_of_unsynced_messages', async (t) => {
  const server = await start(t, { limits: { unsyncedMessages: 10 } });
  const { raw, began } = await authenticated(t, server);
  await server.numbers(50, '*');
  const inTime = Date.now() - began < HOLD_MS;
  assertHeld(raw, began);
  raw.send(ANSWER);
  await raw.until('the last', () => raw.messages.some((message) => message.d.n === 49));
  if (inTime) assert.deepEqual(raw.messages.map((message) => message.d.n), range(10, 40), 'the oldest are dropped');
});
