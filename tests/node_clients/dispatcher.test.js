'use strict';
// Tests Dispatchers of the original, unmodified, with this server as their Redis.

const assert = require('node:assert/strict');
const test = require('node:test');
const { TestClient } = require('./lib/clients');
const { startServer } = require('./lib/server');
const { KINDS, REDIS, createDispatcher } = require('./lib/original');
const { range } = require('./lib/suite');
const { pollUntil } = require('./lib/wait');

const REDIS_PROTOCOL = { redisProtocol: { port: 0 } };
const SYNC = { sync: { enabled: true } };

/** Runs `scenario` for each version of the original over each Redis client, each with its own server. */
function testWithEachPackage(name, config, scenario) {
  test(name, { concurrency: KINDS.length }, async (t) => {
    await Promise.all(KINDS.map((kind) => t.test(kind, async (run) => {
      const server = await startServer(run, { ...REDIS_PROTOCOL, ...config });
      const connect = async (user) => {
        const client = new TestClient('original158', server.url);
        run.after(() => client.discard());
        await client.connect();
        if (user) await client.authenticateAs(user);
        return client;
      };
      const created = [];
      const dispatcher = (options) => {
        created.push(createDispatcher(run, kind, server.redisUrl, options));
        return created.at(-1);
      };
      await scenario({ server, connect, dispatcher, kind, t: run });
      // A Dispatcher does not await replies. One that is missing when its connection ends is an unhandled rejection.
      await Promise.all(created.map(({ waitForReplies }) => waitForReplies()));
    })));
  });
}

/** Resolves once a user has `count` pending messages; an unknown user has 0. */
const waitForPending = async (server, user, count) => pollUntil(`${user} to have ${count} pending messages`, async () => {
  const { pending } = await server.userState(user).catch(() => ({ pending: 0 }));
  return pending === count;
});

/** Returns the numbers that are pending for a user, in order. */
async function pendingNumbers(server, user) {
  const { messages } = await server.request('GET', `/v1/users/${user}/messages?limit=1000`);
  return messages.map(({ d }) => d.n);
}

testWithEachPackage('dispatcher_with_sync_reaches_online_and_offline_users', {}, async ({ server, connect, dispatcher }) => {
  const { send } = dispatcher(SYNC);
  const alice = await connect('alice');
  for (const n of range(3)) {
    send(n, ['alice', 'bob', 'carol'], n === 1 ? ['carol'] : undefined);
    // A Dispatcher queries one recipient after another. A dispatch with fewer recipients could overtake one with more.
    await alice.waitForCount(n + 1);
    await waitForPending(server, 'bob', n + 1);
  }
  assert.deepEqual(alice.messages, range(3).map((n) => ({ op: 0, d: { n }, t: 'NUMBER' })));
  await waitForPending(server, 'bob', 3);
  await waitForPending(server, 'carol', 2);
  const bob = await connect('bob');
  await bob.waitForCount(3);
  assert.deepEqual(bob.messages, range(3).map((n) => ({ op: 0, d: { n }, t: 'NUMBER', s: n + 1 })));
  const carol = await connect('carol');
  await carol.waitForCount(2);
  assert.deepEqual(carol.numbers, [0, 2]);
});

testWithEachPackage('dispatcher_without_sync_reaches_online_users_and_the_server_stores_for_offline_users', {}, async (run) => {
  const { send } = run.dispatcher();
  const alice = await run.connect('alice');
  for (const n of range(3)) send(n, ['alice', 'bob']);
  await alice.waitForCount(3);
  assert.deepEqual(alice.numbers, [0, 1, 2]);
  await waitForPending(run.server, 'bob', 3);
});

const SYNC_OFF = { sync: { enabled: false } };
testWithEachPackage('dispatcher_with_sync_at_server_with_sync_off_reaches_online_users_and_keeps_working', SYNC_OFF, async (run) => {
  const { send } = run.dispatcher(SYNC);
  const alice = await run.connect('alice');
  for (const n of range(3)) send(n, ['alice', 'bob']);
  await alice.waitForCount(3);
  assert.deepEqual(alice.numbers, [0, 1, 2]);
  await pollUntil('three messages to be counted as dropped', async () => {
    const { body } = await run.server.call('GET', '/metrics');
    return /^mesa_messages_dropped_sync_off_total 3$/m.test(body);
  });
  // The server writes its log on another thread, so the line may come later.
  await pollUntil('a log line that names the counter', () => /see mesa_messages_dropped_sync_off_total\b/.test(run.server.log()));
  const bob = await run.connect('bob');
  send(3, ['bob']);
  await bob.waitForCount(1);
  assert.deepEqual(bob.numbers, [3], 'expected the first three messages not to be stored');
});

testWithEachPackage('unsynced_message_of_dispatcher_is_not_stored', {}, async ({ server, connect, dispatcher, kind }) => {
  const alice = await connect('alice');
  for (const config of [SYNC, {}]) {
    const { send, waitForReplies } = dispatcher(config);
    alice.messages.length = 0;
    send(0, ['alice', 'bob'], undefined, { sync: false });
    await alice.waitForNumber(0);
    await waitForReplies();
  }
  // 1.3.8 does not transmit the option `sync`.
  if (kind.startsWith('original138')) await waitForPending(server, 'bob', 2);
  else assert.equal((await server.call('GET', '/v1/users/bob')).status, 404, 'expected bob to be unknown');
});

testWithEachPackage('broadcast_reaches_all_clients_and_is_not_stored', {}, async ({ server, connect, dispatcher }) => {
  await server.dispatchNumber(100, 'carol');
  const clients = [await connect('alice'), await connect('bob'), await connect()];
  for (const config of [SYNC, {}]) {
    const { send } = dispatcher(config);
    for (const recipients of [['*'], undefined, ['*', 'alice']]) {
      clients.forEach((client) => { client.messages.length = 0; });
      send(7, recipients);
      send(8, recipients);
      for (const client of clients) {
        await client.waitForCount(2);
        assert.deepEqual(client.numbers, [7, 8]);
      }
    }
  }
  assert.deepEqual(await pendingNumbers(server, 'carol'), [100]);
});

testWithEachPackage('disconnect_event_closes_the_connections_of_the_user', {}, async ({ server, connect, dispatcher }) => {
  const { disconnect } = dispatcher(SYNC);
  const [one, two, bob] = [await connect('alice'), await connect('alice'), await connect('bob')];
  disconnect(['alice', 'unknown']);
  assert.deepEqual([await one.waitForClose(), await two.waitForClose()], [1000, 1000]);
  await server.waitForConnections('alice', 0);
  assert.deepEqual(bob.closeCodes, []);
  disconnect(['*']);
  assert.equal(await bob.waitForClose(), 1000);
});

testWithEachPackage('burst_to_offline_user_is_stored_completely_and_in_order', {}, async ({ server, connect, dispatcher }) => {
  const { send } = dispatcher(SYNC);
  for (const n of range(50)) send(n, ['alice']);
  await waitForPending(server, 'alice', 50);
  assert.deepEqual(await pendingNumbers(server, 'alice'), range(50));
  const alice = await connect('alice');
  await alice.waitForCount(50);
  assert.deepEqual(alice.numbers, range(50));
});

testWithEachPackage('concurrent_bursts_to_offline_user_are_stored_completely_in_order', {}, async ({ server, dispatcher }) => {
  const [one, two] = [dispatcher(SYNC), dispatcher(SYNC)];
  for (const n of range(50)) {
    one.send(n, ['alice']);
    two.send(100 + n, ['alice', 'bob']);
  }
  await waitForPending(server, 'alice', 100);
  const numbers = await pendingNumbers(server, 'alice');
  assert.deepEqual(numbers.filter((n) => n < 100), range(50));
  assert.deepEqual(numbers.filter((n) => n >= 100), range(50, 100));
  await waitForPending(server, 'bob', 50);
  assert.deepEqual(await pendingNumbers(server, 'bob'), range(50, 100));
});

const NAMESPACE = { namespace: 'chat' };
testWithEachPackage('dispatcher_in_namespace_of_the_server_reaches_its_users', NAMESPACE, async ({ server, connect, dispatcher }) => {
  for (const config of [{ ...SYNC, ...NAMESPACE }, NAMESPACE]) {
    const { send } = dispatcher(config);
    const alice = await connect('alice');
    send(0, ['alice', 'bob']);
    await alice.waitForNumber(0);
    await alice.disconnect();
    await server.waitForConnections('alice', 0);
  }
  await waitForPending(server, 'bob', 2);
});

testWithEachPackage('commands_for_another_namespace_fail_with_an_error', {}, async ({ dispatcher, server }) => {
  const { dispatcher: { redis, publisher } } = dispatcher({ ...SYNC, namespace: 'other' });
  const field = ['undelivered_messages_other', 'alice', '[{"op":0}]'];
  await assert.rejects(redis.hset(...field), /has no 'undelivered_messages_other'/);
  await assert.rejects(publisher.publish('ws_other', '{}'), /has no 'ws_other'/);
  assert.equal((await server.call('GET', '/v1/users/alice')).status, 404);
});

testWithEachPackage('dispatches_to_reconnecting_user_are_delivered_and_stored_once', {}, async ({ server, connect, dispatcher }) => {
  const COUNT = 300;
  const { send, waitForReplies } = dispatcher(SYNC);
  let done = false;
  const received = new Set();
  const reconnecting = (async () => {
    while (!done) {
      const alice = await connect('alice');
      await alice.waitUntil('messages', () => alice.messages.length > 2 || done);
      alice.numbers.forEach((n) => received.add(n));
      await alice.disconnect();
    }
  })();
  for (const n of range(COUNT)) {
    send(n, ['alice']);
    if (n % 5 === 4) await waitForReplies();
  }
  await pollUntil('all messages to be in the log', async () => (await server.userState('alice')).lastSequence >= COUNT);
  done = true;
  await server.dispatchNumber(COUNT, 'alice');
  await reconnecting;
  const last = await connect('alice');
  await pollUntil('no message to be pending', async () => {
    last.numbers.forEach((n) => received.add(n));
    return (await server.userState('alice')).pending === 0;
  });
  last.numbers.forEach((n) => received.add(n));
  assert.deepEqual([...received].sort((a, b) => a - b), range(COUNT + 1));
  assert.equal((await server.userState('alice')).lastSequence, COUNT + 1, 'expected each message once in the log');
});

testWithEachPackage('dispatcher_keeps_working_after_a_restart_of_the_server', REDIS_PROTOCOL, async ({ server, dispatcher }) => {
  const { send, dispatcher: { redis, publisher } } = dispatcher(SYNC);
  send(0, ['alice']);
  await waitForPending(server, 'alice', 1);
  const port = server.redisProtocolPort;
  await server.kill();
  await server.restart({ redisProtocol: { port } });
  await pollUntil('the dispatcher to reconnect', () => redis.status === 'ready' && publisher.status === 'ready');
  send(1, ['alice']);
  await waitForPending(server, 'alice', 2);
  assert.deepEqual(await pendingNumbers(server, 'alice'), [0, 1]);
});

// covers: G1
test('answered_commands_are_durable_after_a_kill', async (t) => {
  const server = await startServer(t, REDIS_PROTOCOL);
  const redis = new REDIS.ioredis5(server.redisUrl);
  redis.on('error', () => {});
  t.after(() => redis.disconnect());
  const pipeline = redis.pipeline();
  for (const n of range(200)) {
    pipeline.publish('ws', JSON.stringify({ message: { op: 0, d: { n } }, recipients: ['alice'] }));
    pipeline.hset('undelivered_messages', 'bob', JSON.stringify([{ op: 0, d: { n } }]));
  }
  const replies = await pipeline.exec();
  await server.kill();
  assert.deepEqual(replies, range(400).map(() => [null, 1]));
  await server.restart();
  assert.deepEqual(await pendingNumbers(server, 'alice'), range(200));
  assert.deepEqual(await pendingNumbers(server, 'bob'), range(200));
});

for (const [name, Redis] of Object.entries(REDIS)) {
  test(`commands_without_the_password_fail (${name})`, async (t) => {
    const server = await startServer(t, { redisProtocol: { port: 0, password: 'open sesame' } });
    const client = (password) => {
      const redis = new Redis({ port: server.redisProtocolPort, password, retryStrategy: null, lazyConnect: true });
      redis.on('error', () => {});
      t.after(() => redis.disconnect());
      return redis;
    };
    assert.equal(await client('open sesame').ping(), 'PONG');
    await assert.rejects(client(undefined).publish('ws', '{"message":{},"recipients":["*"]}'), /NOAUTH/);
    await assert.rejects(client('wrong').smembers('connected_clients'), /NOAUTH|WRONGPASS/);
  });

  test(`pipelined_commands_are_answered_in_order (${name})`, async (t) => {
    const server = await startServer(t, REDIS_PROTOCOL);
    const redis = new Redis(server.redisUrl);
    t.after(() => redis.disconnect());
    const pipeline = redis.pipeline();
    const text = (n) => JSON.stringify({ message: { op: 0, d: { n } }, recipients: ['alice'] });
    for (const n of range(2000)) {
      pipeline.publish('ws', text(n)).sismember('connected_clients', 'alice').echo(String(n));
    }
    pipeline.hlen('undelivered_messages').hget('undelivered_messages', 'unknown').call('FLUSHALL');
    const replies = await pipeline.exec();
    const failed = replies.pop();
    assert.match(failed[0].message, /^ERR unknown command/);
    assert.deepEqual(replies.splice(-2).map(([, value]) => value), [1, null]);
    assert.deepEqual(replies.map(([, value]) => value), range(2000).flatMap((n) => [1, 0, String(n)]));
    assert.deepEqual(await pendingNumbers(server, 'alice'), range(1000));
    assert.equal((await server.userState('alice')).pending, 2000);
  });
}
