'use strict';
// Tests mesa-client against a server that misbehaves: each connection of the client is scripted.

const assert = require('node:assert/strict');
const { once } = require('node:events');
const test = require('node:test');
const { WebSocketServer } = require('ws');
const { createClient } = require('./lib/mesa_client');
const { Recorder } = require('./lib/recorder');
const { startServer } = require('./lib/server');
const { range } = require('./lib/suite');
const { ChangeNotifier, withTimeout } = require('./lib/wait');

/** Attempts to reconnect follow at once, so that tests are fast. */
const FAST = { reconnectDelay: 20, reconnectDelayMax: 100 };

/** A server that records each frame, and answers as its test says. */
class FakeServer {
  #changes = new ChangeNotifier();

  connections = 0;
  /** `{ connection, op, d }` of each frame, connections counted from 1. */
  frames = [];

  /** `answer(frame, send, socket)` answers a frame, and `onConnection(number, socket)` a connection. */
  static async start(t, answer, onConnection = () => {}) {
    const fake = new FakeServer();
    const server = new WebSocketServer({ port: 0, host: '127.0.0.1' });
    t.after(() => {
      for (const socket of server.clients) socket.terminate();
      server.close();
    });
    await once(server, 'listening');
    fake.url = `ws://127.0.0.1:${server.address().port}/`;
    server.on('connection', (socket) => {
      fake.connections += 1;
      const connection = fake.connections;
      const send = (op, fields) => socket.send(JSON.stringify({ op, ...fields }));
      onConnection(connection, socket);
      socket.on('message', (text) => {
        const frame = { connection, ...JSON.parse(text) };
        fake.frames.push(frame);
        answer(frame, send, socket);
        fake.#changes.notify();
      });
      fake.#changes.notify();
    });
    return fake;
  }

  /** Frames of op 2. */
  get logins() {
    return this.frames.filter(({ op }) => op === 2);
  }

  waitUntil(what, condition) {
    const state = () => `${what}; ${this.connections} connections, frames ${JSON.stringify(this.frames.slice(-5))}`;
    return this.#changes.waitUntil(state, condition);
  }
}

/** Creates a client that ends when test `t` ends, and records what it passes to its application. */
function startClient(t, url, { handle, ...options } = {}) {
  const client = createClient(url, { ...FAST, ...options });
  t.after(() => client.disconnect());
  return new Recorder(client, handle);
}

const accept = (send, id) => send(22, { d: { id } });
const numbers = (frames) => frames.filter(({ t }) => t === 'NUMBER').map(({ d }) => d.n);

test('newer_token_without_sync_discards_nothing_on_later_connections', async (t) => {
  const fake = await FakeServer.start(t, ({ op, d, connection }, send) => {
    // As the server: no answer to a newer token.
    if (op === 2 && (d.token === 'first' || connection === 2)) accept(send, 'alice');
  });
  const alice = startClient(t, fake.url);
  const options = { shouldSync: false, resume: true };
  await alice.client.authenticate('first', options);
  await alice.client.authenticate('second', options);
  alice.client.ws.close();
  await fake.waitUntil('a login on the second connection', () => fake.logins.some(({ connection }) => connection === 2));
  assert.equal(fake.logins.at(-1).d.token, 'second');
  assert.equal(fake.logins.at(-1).d.shouldSync, true);
  assert.equal(fake.logins[0].d.shouldSync, false);
});

/** A server whose logs begin above the saved position 5, so that the client connects again with its position. */
const startAhead = (t) => FakeServer.start(t, ({ op, d }, send) => {
  if (op !== 2) return;
  accept(send, d.token);
  send(13, { d: { first: 9, last: 9, missed: null } });
});

const storeAtFive = { load: () => 5, save: () => {} };

// covers: G2
test('position_of_one_user_is_never_sent_with_the_token_of_another', async (t) => {
  const authenticateOnce = (client, event, accepts) => {
    let isDone = false;
    client.on(event, (info) => {
      if (isDone || !accepts(info)) return;
      isDone = true;
      client.authenticate('bob', { resume: storeAtFive });
    });
    client.authenticate('alice', { resume: storeAtFive });
  };
  for (const [change, login] of Object.entries({
    'the function returns another token': (client) => {
      let calls = 0;
      client.authenticate(() => {
        calls += 1;
        return calls === 1 ? 'alice' : 'bob';
      }, { resume: storeAtFive });
    },
    'authenticate() in `disconnected`': (client) => authenticateOnce(client, 'disconnected', () => true),
    'authenticate() in `connected`': (client) => authenticateOnce(client, 'connected', (info) => info.isAutomaticReconnection),
  })) {
    const fake = await startAhead(t);
    const { client } = startClient(t, fake.url);
    login(client);
    await fake.waitUntil(`a login with a position: ${change}`, () => fake.logins.some(({ d }) => d.after === 5));
    // The store has a position of bob too. It may be used once the server has named bob.
    const { connection, d } = fake.logins.find(({ d: { after } }) => after === 5);
    const before = fake.logins.find((frame) => frame.connection === connection - 1);
    assert.equal(d.token, before.d.token, `${change}: ${JSON.stringify(fake.logins)}`);
    client.disconnect();
  }
});

test('reconnect_without_store_sends_last_position_of_the_same_credentials_only', async (t) => {
  for (const [what, login, again] of [
    ['a token', () => 'alice', 3],
    ['a function that returns the same token', () => () => 'alice', 3],
    ['credentials of the application', () => ({ token: 'alice' }), 3],
    ['a function that returns another token', () => {
      let calls = 0;
      return () => `alice ${calls += 1}`;
    }, Number.MAX_SAFE_INTEGER],
  ]) {
    const fake = await FakeServer.start(t, ({ op, connection }, send) => {
      if (op !== 2) return;
      accept(send, 'alice');
      send(13, { d: { first: 1, last: 3, missed: null } });
      if (connection === 1) for (const n of range(3, 1)) send(0, { d: { n }, t: 'NUMBER', s: n });
    });
    const alice = startClient(t, fake.url);
    await alice.client.authenticate(login(), { resume: true });
    await alice.waitForCount(3);
    // The acknowledgement shows that the position counts as saved.
    await fake.waitUntil('an acknowledgement', () => fake.frames.some(({ op, d }) => op === 3 && d.s === 3));
    alice.client.ws.close();
    await fake.waitUntil(`a second login: ${what}`, () => fake.logins.length === 2);
    assert.deepEqual(fake.logins.map(({ d }) => d.after), [Number.MAX_SAFE_INTEGER, again], what);
    alice.client.disconnect();
  }
});

test('exact_attempt_with_a_used_up_token_is_repeated_with_a_new_one', async (t) => {
  const used = new Set();
  const fake = await FakeServer.start(t, ({ op, d, connection }, send, socket) => {
    if (op !== 2) return;
    if (used.has(d.token)) {
      socket.close(1008, 'authentication failed');
      return;
    }
    used.add(d.token);
    accept(send, 'alice');
    // Entries 6 to 8 were collapsed, for example.
    send(13, { d: { first: 9, last: 9, missed: null } });
    send(0, { d: { n: 9 }, t: 'NUMBER', s: 9 });
  });
  const alice = startClient(t, fake.url);
  let calls = 0;
  await alice.client.authenticate(() => {
    calls += 1;
    return `token ${calls}`;
  }, { resume: storeAtFive });
  await alice.waitForCount(1);
  assert.deepEqual(alice.handled, [9]);
});

test('queue_of_one_user_is_not_sent_as_another', async (t) => {
  const fake = await FakeServer.start(t, ({ op, d }, send) => {
    if (op === 2) accept(send, d.token);
  });
  let user = 'alice';
  const { client } = startClient(t, fake.url);
  await client.authenticate(() => user);
  const disconnected = once(client, 'disconnected');
  client.ws.close();
  await disconnected;
  client.send(0, { n: 1 }, 'NUMBER');
  const drained = client.drained();
  user = 'bob';
  await assert.rejects(withTimeout('drained() to settle', drained), /Another user/);
  client.send(0, { n: 2 }, 'NUMBER');
  await fake.waitUntil('the message of bob', () => numbers(fake.frames).length > 0);
  assert.deepEqual(numbers(fake.frames), [2]);

  // The same user sends what it queued.
  const again = once(client, 'disconnected');
  client.ws.close();
  await again;
  client.send(0, { n: 3 }, 'NUMBER');
  await withTimeout('the queue to drain', client.drained());
  await fake.waitUntil('the second message of bob', () => numbers(fake.frames).length > 1);
  assert.deepEqual(numbers(fake.frames), [2, 3]);
});

test('slow_token_function_and_slow_authentication_are_tried_again', async (t) => {
  // The second connection has to meet the timeout, also on a machine that stalls.
  const server = await startServer(t, { authentication: { timeout: 10_000 } });
  let calls = 0;
  const alice = startClient(t, server.url);
  const user = await withTimeout('the second token', alice.client.authenticate(() => {
    calls += 1;
    return calls === 1 ? new Promise(() => {}) : 'alice';
  }, { resume: true }));
  assert.deepEqual(user, { id: 'alice' });
  assert.deepEqual(alice.disconnections, [[1008, 'authentication timed out', true]]);

  // A server with another reason before op 2, and one that has op 2 but has not checked it in time.
  const fake = await FakeServer.start(t, ({ op, connection }, send, socket) => {
    if (op === 2 && connection === 2) socket.close(1008, 'authentication timed out');
    else if (op === 2) accept(send, 'alice');
  }, (connection, socket) => connection === 1 && socket.close(1008, 'too slow'));
  let first = true;
  const other = startClient(t, fake.url);
  await withTimeout('the third login', other.client.authenticate(() => {
    if (!first) return 'alice';
    first = false;
    return new Promise(() => {});
  }, { resume: true }));
  assert.deepEqual(other.disconnections, [[1008, 'too slow', true], [1008, 'authentication timed out', true]]);
});

test('full_queue_is_sent_within_the_frame_limit_of_the_server', async (t) => {
  // 200 at once are allowed.
  const server = await startServer(t, { portal: { enabled: true }, limits: { framesPerSecond: 20 } });
  const events = await server.openEvents();
  const alice = startClient(t, server.url, { autoConnect: false, queueMax: 210, sendRate: 15 });
  for (const n of range(210)) alice.client.send(0, { n }, 'NUMBER');
  alice.client.connect();
  await alice.client.authenticate('alice');
  await withTimeout('the queue to drain', alice.client.drained());
  const received = [];
  while (received.length < 210) {
    const { value } = await withTimeout('an event', events.next());
    if (value.type === 'message') received.push(value.message.d.n);
  }
  assert.deepEqual(received, range(210));
  assert.deepEqual(alice.disconnections, []);
});

test('send_rate_by_default_is_half_of_the_default_limit_of_the_server', async (t) => {
  const fake = await FakeServer.start(t, ({ op }, send) => op === 2 && accept(send, 'alice'));
  const { client } = startClient(t, fake.url, { autoConnect: false });
  for (const n of range(1024)) client.send(0, { n }, 'NUMBER');
  client.connect();
  const began = performance.now();
  await client.authenticate('alice');
  await fake.waitUntil('510 messages', () => numbers(fake.frames).length >= 510);
  // 500 at once, then 50 a second: never more than the server's 1,000 at once and 100 a second.
  const seconds = (performance.now() - began) / 1000;
  const count = numbers(fake.frames).length;
  assert.ok(count <= 501 + 50 * seconds, `${count} messages in ${seconds} s`);
});

test('client_that_sent_too_many_frames_connects_again', async (t) => {
  const fake = await FakeServer.start(t, ({ op, connection }, send, socket) => {
    if (op !== 2) return;
    accept(send, 'alice');
    if (connection === 1) socket.close(1008, 'too many frames');
  });
  const alice = startClient(t, fake.url);
  await alice.client.authenticate('alice', { resume: true });
  await fake.waitUntil('the second login', () => fake.logins.length === 2);
  assert.deepEqual(alice.disconnections, [[1008, 'too many frames', true]]);
});

test('callback_assigned_after_authentication_receives_the_backlog', async (t) => {
  const fake = await FakeServer.start(t, ({ op }, send) => {
    if (op !== 2) return;
    accept(send, 'alice');
    send(13, { d: { first: 1, last: 3, missed: null } });
    for (const n of range(3, 1)) send(0, { d: { n }, t: 'NUMBER', s: n });
  });
  const client = createClient(fake.url, FAST);
  t.after(() => client.disconnect());
  const arrived = new Promise((resolve) => {
    let received = 0;
    client.once('connected', () => client.ws.addEventListener('message', ({ data }) => {
      received += JSON.parse(data).t === 'NUMBER' ? 1 : 0;
      if (received === 3) resolve();
    }));
  });
  await client.authenticate('alice', { resume: true });
  await withTimeout('the backlog', arrived);
  const handled = [];
  await withTimeout('the callback to be called', new Promise((resolve) => {
    client.onMessage = ({ data }) => {
      handled.push(data.n);
      if (handled.length === 3) resolve();
    };
  }));
  assert.deepEqual(handled, range(3, 1));
  assert.equal(typeof client.onMessage, 'function');
});

test('rejected_web_lock_leaves_saving_and_acknowledging_to_the_client', async (t) => {
  const navigator = Object.getOwnPropertyDescriptor(globalThis, 'navigator');
  const locks = { request: async () => { throw new Error('SecurityError'); } };
  Object.defineProperty(globalThis, 'navigator', { value: { locks }, configurable: true });
  t.after(() => (navigator ? Object.defineProperty(globalThis, 'navigator', navigator) : delete globalThis.navigator));
  const fake = await FakeServer.start(t, ({ op }, send) => {
    if (op !== 2) return;
    accept(send, 'alice');
    send(13, { d: { first: 1, last: 1, missed: null } });
    send(0, { d: { n: 1 }, t: 'NUMBER', s: 1 });
  });
  const alice = startClient(t, fake.url);
  await alice.client.authenticate('alice', { resume: true });
  await fake.waitUntil('the acknowledgement', () => fake.frames.some(({ op, d }) => op === 3 && d.s === 1));
  assert.deepEqual(alice.errors, []);
});

test('promises_and_loops_of_an_ended_client_end', async (t) => {
  const never = createClient('ws://127.0.0.1:1/', { autoConnect: false });
  const loop = (async () => {
    for await (const message of never) assert.fail(`unexpected message ${message}`);
  })();
  never.disconnect();
  await withTimeout('the loop to end', loop);

  const fake = await FakeServer.start(t, () => {}, (_, socket) => socket.close(1008, 'not allowed'));
  const { client } = startClient(t, fake.url, { reconnect: true });
  client.on('error', () => {});
  await once(client, 'disconnected');
  await withTimeout('an empty queue', client.drained());
  client.send(0, { n: 1 }, 'NUMBER');
  await assert.rejects(withTimeout('drained() to settle', client.drained()), { code: 1008 });
});
