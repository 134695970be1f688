'use strict';
// Tests mesa-client in Node: resume, positions, gaps, reconnects and the queue. Its surface of the original is tested with the
// clients of the original (`testWithEachClient`).

const assert = require('node:assert/strict');
const { spawn } = require('node:child_process');
const { once } = require('node:events');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const test = require('node:test');
const { WebSocketServer } = require('ws');
const { createToken, nowSeconds } = require('./lib/jwt');
const { Message, createClient, fileStore } = require('./lib/mesa_client');
const { startProxy } = require('./lib/proxy');
const { Recorder } = require('./lib/recorder');
const { startServer } = require('./lib/server');
const { dispatchStream, range } = require('./lib/suite');
const { pollUntil, withTimeout } = require('./lib/wait');

const SECRET = 'a secret of 32 bytes for tests..';
/** Attempts to reconnect follow at once, so that tests are fast. */
const FAST = { reconnectDelay: 20, reconnectDelayMax: 100 };

/** Creates a client that ends when test `t` ends, and records what it passes to its application. */
function startClient(t, url, { handle, ...options } = {}) {
  const client = createClient(url, { ...FAST, ...options });
  t.after(() => client.disconnect());
  return new Recorder(client, handle);
}

/** A store in memory that outlives clients, and records what was saved. */
function createStore() {
  const positions = new Map();
  const saved = [];
  return {
    saved,
    load: async (key) => positions.get(key),
    save: async (key, position) => {
      saved.push(position);
      positions.set(key, position);
    },
  };
}

// covers: G2
test('async_handlers_run_in_order_and_each_position_is_saved_before_the_next_message', async (t) => {
  const server = await startServer(t);
  await server.dispatchNumbers(5, 'alice');
  const steps = [];
  const store = {
    load: () => null,
    save: async (key, position) => {
      await new Promise(setImmediate);
      steps.push(`saved ${position}`);
    },
  };
  const alice = startClient(t, server.url, {
    handle: async ({ sequence }) => {
      steps.push(`began ${sequence}`);
      await new Promise(setImmediate);
      steps.push(`handled ${sequence}`);
    },
  });
  const user = await alice.client.authenticate('alice', { device: 'phone', resume: store });
  assert.deepEqual(user, { id: 'alice' });
  await alice.waitForCount(5);
  await server.waitForNoPending('alice');
  assert.deepEqual(steps, range(5, 1).flatMap((s) => [`began ${s}`, `handled ${s}`, `saved ${s}`]));
  assert.deepEqual((await server.userState('alice')).devices.map(({ device }) => device), ['phone']);
});

// covers: G2
test('killed_program_repeats_only_the_message_that_it_was_handling', async (t) => {
  const server = await startServer(t);
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'mesa-client-'));
  t.after(() => fs.rmSync(directory, { recursive: true }));
  const file = path.join(directory, 'position.json');
  await server.dispatchNumbers(10, 'alice');

  const child = spawn(process.execPath, [path.join(__dirname, 'lib/consumer-process.js'), server.url, file, '6'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  t.after(() => child.kill('SIGKILL'));
  const exited = new Promise((resolve) => child.once('close', resolve));
  let output = '';
  await withTimeout('the program to handle message 6', new Promise((resolve) => {
    child.stdout.on('data', (chunk) => {
      output += chunk;
      if (output.includes('began 6')) resolve();
    });
  }));
  child.kill('SIGKILL');
  await withTimeout('the program to end', exited);

  const alice = startClient(t, server.url);
  await alice.client.authenticate('alice', { resume: fileStore(file) });
  await alice.waitForCount(4);
  assert.deepEqual(alice.handled, range(4, 6));
});

// covers: G2
test('message_of_failed_handler_is_repeated_before_later_ones', async (t) => {
  const server = await startServer(t);
  const store = createStore();
  let failures = 0;
  const alice = startClient(t, server.url, {
    handle: ({ data }) => {
      if (data.n !== 2 || failures === 3) return;
      failures += 1;
      throw new Error(`failure ${failures}`);
    },
  });
  await alice.client.authenticate('alice', { resume: store });
  await server.dispatchNumbers(5, 'alice');
  await alice.waitForCount(5);
  assert.deepEqual(alice.handled, range(5));
  await server.waitForNoPending('alice');
  assert.deepEqual(store.saved, range(5, 1));
  assert.deepEqual(alice.errors.map(({ message }) => message), ['failure 1', 'failure 2', 'failure 3']);
  assert.deepEqual(alice.disconnections, range(3).map(() => [1006, 'handler failed', true]));
});

// covers: G2
test('message_is_not_acknowledged_until_its_position_is_saved', async (t) => {
  const server = await startServer(t);
  await server.dispatchNumbers(3, 'alice');
  const store = createStore();
  const { save } = store;
  store.save = async () => { throw new Error('the disk is full'); };
  const alice = startClient(t, server.url);
  await alice.client.authenticate('alice', { resume: store });
  await alice.waitUntil('three errors', () => alice.errors.length === 3);
  alice.client.disconnect();
  await server.waitForConnections('alice', 0);
  assert.equal((await server.userState('alice')).pending, 3);

  store.save = save;
  await alice.client.connect();
  await server.dispatchNumber(3, 'alice');
  await server.waitForNoPending('alice');
  assert.deepEqual([alice.handled, store.saved], [range(4), [3, 4]]);
});

// covers: G1, G2
test('killed_servers_and_cut_links_lose_and_repeat_nothing', async (t) => {
  const server = await startServer(t);
  const proxy = await startProxy(t, server);
  const alice = startClient(t, proxy.url, { handle: () => new Promise(setImmediate) });
  let tokens = 0;
  const token = async () => {
    tokens += 1;
    return 'alice';
  };
  await alice.client.authenticate(token, { resume: createStore() });
  for (const round of range(6)) {
    await dispatchStream(server, 50, 'alice', round * 50);
    await alice.waitForCount(round * 50 + 10);
    if (round % 2) {
      proxy.cut();
    } else {
      await server.kill();
      await server.restart();
    }
  }
  await alice.waitForCount(300);
  await server.waitForNoPending('alice');
  assert.deepEqual(alice.handled, range(300));
  assert.deepEqual(alice.sequences, range(300, 1));
  assert.ok(tokens >= 7 && tokens <= alice.connections.length, `${tokens} tokens for ${alice.connections.length} connections`);
  const [first, ...others] = alice.connections;
  assert.deepEqual(first, { isInitialConnection: true, isInitialSessionConnection: true, isAutomaticReconnection: false });
  const again = { isInitialConnection: false, isInitialSessionConnection: false, isAutomaticReconnection: true };
  assert.deepEqual(others, others.map(() => again));
});

test('half_open_connection_is_found_and_replaced', async (t) => {
  const server = await startServer(t);
  const proxy = await startProxy(t, server);
  const alice = startClient(t, proxy.url, { heartbeatInterval: 200, timeout: 10_000 });
  await alice.client.authenticate('alice', { resume: true });
  proxy.freeze();
  const began = performance.now();
  await server.dispatchNumbers(3, 'alice');
  await alice.waitForDisconnection();
  t.diagnostic(`found after ${Math.round(performance.now() - began)} ms with an interval of 200 ms and a timeout of 10 s`);
  assert.deepEqual(alice.disconnections[0], [1006, 'the server does not answer', true]);
  proxy.thaw();
  await alice.waitForCount(3);
  assert.deepEqual(alice.handled, range(3));
});

test('clock_jumps_break_no_connection', async (t) => {
  const server = await startServer(t);
  const alice = startClient(t, server.url, { heartbeatInterval: 30, timeout: 30_000 });
  await alice.client.authenticate('alice', { resume: true });
  let answers = 0;
  alice.client.ws.addEventListener('message', ({ data }) => {
    if (JSON.parse(data).op === 11) answers += 1;
    alice.notify();
  });
  const { now } = Date;
  t.after(() => { Date.now = now; });
  for (const [round, hours] of [24, -24, 0].entries()) {
    Date.now = () => now() + hours * 3_600_000;
    const before = answers;
    await alice.waitUntil('three answers to probes', () => answers >= before + 3);
    await server.dispatchNumber(round, 'alice');
    await alice.waitForCount(round + 1);
  }
  assert.deepEqual(alice.disconnections, []);
});

test('expired_token_is_replaced_by_a_fresh_one_and_a_fixed_token_ends_the_client', async (t) => {
  const server = await startServer(t, { authentication: { insecure: false, jwt: { secret: SECRET } } });
  const createShortToken = () => createToken({ id: 'alice', exp: nowSeconds() + 15 }, SECRET);
  const expired = (willAttemptReconnect) => [1008, 'the token has expired', willAttemptReconnect];
  let tokens = 0;
  const alice = startClient(t, server.url);
  await alice.client.authenticate(() => {
    tokens += 1;
    return tokens === 1 ? createShortToken() : createToken({ id: 'alice' }, SECRET);
  }, { resume: true });
  const fixed = startClient(t, server.url);
  await fixed.client.authenticate(createShortToken(), { device: 'other', resume: true });

  await Promise.all([alice.waitForDisconnection(), fixed.waitForDisconnection()]);
  await server.dispatchNumber(0, 'alice');
  await alice.waitForCount(1);
  assert.equal(tokens, 2);
  assert.deepEqual(alice.disconnections, [expired(true)]);
  assert.deepEqual(fixed.disconnections, [expired(false)]);
});

test('rejected_token_rejects_the_call_and_is_not_tried_again', async (t) => {
  const server = await startServer(t, { authentication: { insecure: false, jwt: { secret: SECRET } } });
  const mallory = startClient(t, server.url);
  const rejection = { code: 1008, reason: 'authentication failed' };
  await assert.rejects(mallory.client.authenticate(async () => 'wrong', { resume: true }), rejection);
  await mallory.waitForDisconnection();
  assert.deepEqual(mallory.disconnections, [[1008, 'authentication failed', false]]);
});

test('failed_token_function_is_called_again', async (t) => {
  const server = await startServer(t);
  let calls = 0;
  const alice = startClient(t, server.url);
  const user = await alice.client.authenticate(async () => {
    calls += 1;
    if (calls < 3) throw new Error('the token service is down');
    return 'alice';
  });
  assert.deepEqual(user, { id: 'alice' });
  assert.deepEqual(alice.errors.map(({ message }) => message), range(2).map(() => 'the token service is down'));
});

// covers: G4
test('gap_is_passed_in_its_place_with_its_reason_and_not_again_once_handled', async (t) => {
  const server = await startServer(t, { sync: { maxMessages: 3, overflow: 'dropOldest' } });
  const store = createStore();
  await server.dispatchNumbers(5, 'alice');
  const first = startClient(t, server.url);
  const order = [];
  first.client.on('gap', (gap) => order.push(gap)).on('message', ({ sequence }) => order.push(sequence));
  await first.client.authenticate('alice', { device: 'phone', resume: store });
  await first.waitForCount(3);
  await server.waitForNoPending('alice');
  assert.deepEqual(order, [{ from: 1, to: 2, reason: 'quota' }, 3, 4, 5]);
  assert.deepEqual(store.saved, [2, 3, 4, 5]);
  first.client.disconnect();
  await first.waitForDisconnection();

  // The second gap begins where the client stopped.
  await server.dispatchNumbers(5, 'alice', 5);
  const second = startClient(t, server.url);
  await second.client.authenticate('alice', { device: 'phone', resume: store });
  await second.waitForCount(3);
  assert.deepEqual(second.gaps, [{ from: 6, to: 7, reason: 'quota' }]);
  assert.deepEqual(second.sequences, [8, 9, 10]);
});

// covers: G3, G4
test('position_of_one_user_skips_no_message_of_another', async (t) => {
  const server = await startServer(t);
  const store = createStore();
  await server.dispatchNumbers(5, 'alice');
  await server.dispatchNumbers(8, 'bob');
  let user = 'alice';
  const client = startClient(t, server.url);
  await client.client.authenticate(() => user, { resume: store });
  await client.waitForCount(5);
  await server.waitForNoPending('alice');
  user = 'bob';
  client.client.ws.close();
  await client.waitForCount(13);
  assert.deepEqual(client.handled, [...range(5), ...range(8)]);
});

test('position_of_another_log_skips_no_message', async (t) => {
  const [old, fresh] = [await startServer(t), await startServer(t)];
  const proxy = await startProxy(t, old);
  const alice = startClient(t, proxy.url);
  const store = createStore();
  await old.dispatchNumbers(5, 'alice');
  await alice.client.authenticate('alice', { resume: store });
  await alice.waitForCount(5);
  await fresh.dispatchNumbers(2, 'alice', 100);
  proxy.target = fresh;
  proxy.cut();
  await alice.waitForCount(7);
  await fresh.dispatchNumber(102, 'alice');
  await alice.waitForCount(8);
  assert.deepEqual(alice.handled, [...range(5), 100, 101, 102]);
  // A new program finds the position of the new log, or none.
  await fresh.waitForNoPending('alice');
  assert.equal(store.saved.at(-1), 3);
});

// covers: G2
test('application_slower_than_the_server_receives_everything_once', async (t) => {
  const server = await startServer(t);
  await dispatchStream(server, 5000, 'alice');
  let begin;
  const began = new Promise((resolve) => { begin = resolve; });
  const alice = startClient(t, server.url, { handle: () => began });
  await alice.client.authenticate('alice', { resume: true });
  await alice.waitForDisconnection();
  assert.deepEqual(alice.disconnections[0], [1006, 'the application is slower than the server', true]);
  begin();
  await alice.waitForCount(5000);
  assert.deepEqual(alice.handled, range(5000));
});

test('queued_messages_are_sent_in_order_after_authentication_and_the_queue_is_bounded', async (t) => {
  const server = await startServer(t, { portal: { enabled: true } });
  const events = await server.openEvents();
  const { client } = startClient(t, server.url, { autoConnect: false, queueMax: 20 });
  for (const n of range(20)) client.send(new Message(0, { n }, 'NUMBER'));
  assert.throws(() => client.send(0, {}, 'NUMBER'), /20 messages wait: await drained\(\)/);
  client.connect();
  await client.authenticate('alice');
  await withTimeout('the queue to drain', client.drained());
  client.send(0, { n: 20 }, 'NUMBER');
  const received = [];
  while (received.length < 21) {
    const { value } = await withTimeout('an event', events.next());
    if (value.type === 'message') received.push([value.user, value.message.d.n]);
  }
  assert.deepEqual(received, range(21).map((n) => ['alice', n]));
  client.disconnect();
});

test('abort_signals_end_the_client_and_a_call', async (t) => {
  const server = await startServer(t);
  const controller = new AbortController();
  const alice = startClient(t, server.url, { signal: controller.signal });
  const call = new AbortController();
  const never = alice.client.authenticate(() => new Promise(() => {}), { signal: call.signal });
  call.abort();
  await assert.rejects(never, { name: 'AbortError' });
  await alice.client.authenticate('alice', { resume: true });
  controller.abort();
  await alice.waitForDisconnection();
  assert.equal(alice.disconnections[0][2], false);
  await assert.rejects(alice.client.connect(), { name: 'AbortError' });
});

// covers: G2
test('loop_acknowledges_a_message_when_it_asks_for_the_next_one', async (t) => {
  const server = await startServer(t);
  await server.dispatchNumbers(5, 'alice');
  const client = createClient(server.url, FAST);
  t.after(() => client.disconnect());
  const numbers = [];
  const store = createStore();
  // A consumer that leaves the loop may not have finished. The next loop begins with the same message.
  await client.authenticate('alice', { resume: store });
  for (const last of [2, 4]) {
    for await (const { data } of client) {
      numbers.push(data.n);
      if (data.n === last) break;
    }
    await pollUntil('the acknowledgement', async () => (await server.userState('alice')).pending === 5 - last);
  }
  assert.deepEqual(numbers, [0, 1, 2, 2, 3, 4]);

  // A message that is handled after the end of the connection counts too.
  for await (const { data } of client) {
    if (data.n !== 4) continue;
    client.disconnect();
    await once(client, 'disconnected');
  }
  await pollUntil('the position to be saved', () => store.saved.at(-1) === 5);
  await assert.rejects(async () => {
    const connecting = client.connect();
    client.authenticate('alice', { device: 'x'.repeat(65), resume: true });
    await connecting;
    for await (const message of client) assert.fail(`unexpected message ${message}`);
  }, { code: 1008 });
});

test('client_connects_again_right_after_disconnect', async (t) => {
  const server = await startServer(t);
  const alice = startClient(t, server.url);
  await alice.client.authenticate('alice', { resume: true });
  alice.client.disconnect();
  await alice.client.connect();
  await server.dispatchNumber(0, 'alice');
  await alice.waitForCount(1);
  assert.deepEqual(alice.disconnections.map(([, , willAttemptReconnect]) => willAttemptReconnect), [false]);
  const again = { isInitialConnection: false, isInitialSessionConnection: true, isAutomaticReconnection: false };
  assert.deepEqual(alice.connections[1], again);
  await assert.rejects(alice.client.connect(), /Call disconnect\(\) first/);
});

test('unsynced_message_before_op_13_is_passed_on', async (t) => {
  const fake = new WebSocketServer({ port: 0, host: '127.0.0.1' });
  t.after(() => fake.close());
  await once(fake, 'listening');
  fake.on('connection', (socket) => socket.on('message', (text) => {
    if (JSON.parse(text).op !== 2) return;
    for (const frame of [
      { op: 22, d: { id: 'alice' } },
      { op: 0, d: { n: 0 } },
      { op: 13, d: { first: 1, last: 1, missed: null } },
      { op: 0, d: { n: 1 }, s: 1 },
    ]) socket.send(JSON.stringify(frame));
  }));
  const alice = startClient(t, `ws://127.0.0.1:${fake.address().port}/`);
  await alice.client.authenticate('alice', { resume: true });
  await alice.waitForCount(2);
  assert.deepEqual(alice.handled, [0, 1]);
});

test('user_option_names_the_user_if_the_server_does_not', async (t) => {
  const server = await startServer(t, { authentication: { sendUserObject: false } });
  await server.dispatchNumbers(2, 'alice');
  const keys = [];
  const store = { load: (key) => { keys.push(key); }, save: () => {} };
  const nameless = startClient(t, server.url);
  await nameless.client.authenticate('alice', { resume: store });
  await nameless.waitForDisconnection();
  assert.match(nameless.errors[0].message, /pass the option `user`/);
  assert.deepEqual([keys, nameless.handled], [[], []]);

  const named = startClient(t, `${server.url}?token=changing`);
  await named.client.authenticate('alice', { user: 'alice', device: 'phone', resume: store });
  await named.waitForCount(2);
  assert.deepEqual([...new Set(keys)], [JSON.stringify([server.url, 'alice', 'phone'])]);
});

test('messages_are_kept_if_the_server_says_so', async (t) => {
  const server = await startServer(t, { options: { storeMessages: true } });
  const alice = startClient(t, server.url);
  await alice.client.authenticate('alice');
  await dispatchStream(server, 1001, 'alice');
  await alice.waitForCount(1001);
  alice.client.send(new Message(0, { n: 0 }, 'NUMBER'));
  const { sent, received } = alice.client.messages;
  assert.deepEqual(sent.filter(({ opcode }) => opcode === 0), [new Message(0, { n: 0 }, 'NUMBER')]);
  assert.deepEqual(received.map(({ data }) => data.n), range(1000, 1));
});

test('delays_between_attempts_have_full_jitter_and_a_cap', async (t) => {
  const delays = [];
  const { random } = Math;
  const { setTimeout } = globalThis;
  t.after(() => Object.assign(globalThis, { setTimeout }) && Object.assign(Math, { random }));
  let attempts = 0;
  class UnreachableSocket {
    constructor() {
      attempts += 1;
      setImmediate(() => this.onclose?.({ code: 1006, reason: '' }));
    }

    close() {}
  }
  for (const share of [1, 0.25]) {
    Math.random = () => share;
    await new Promise((resolve) => {
      const client = createClient('ws://127.0.0.1:1/', { WebSocket: UnreachableSocket, reconnect: true, autoConnect: false, timeout: 7 });
      globalThis.setTimeout = (run, delay) => {
        if (delay === 7) return undefined;
        delays.push(delay);
        if (delays.length % 8 === 0) {
          client.disconnect();
          resolve();
        } else setImmediate(run);
        return {};
      };
      client.connect();
    });
  }
  globalThis.setTimeout = setTimeout;
  const whole = [1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000];
  assert.deepEqual(delays, [...whole, ...whole.map((delay) => delay / 4)]);
  assert.equal(attempts, 16);
});

test('missing_websocket_is_an_error_that_says_what_to_pass', async () => {
  const client = createClient('ws://127.0.0.1:1/', { WebSocket: null, autoConnect: false });
  const reported = new Promise((resolve) => { client.on('error', resolve); });
  if (globalThis.WebSocket) return;
  await assert.rejects(client.connect(), /pass the option `WebSocket`/);
  assert.match((await reported).message, /pass one/);
});
