'use strict';
// Dispatchers of the stock package, unmodified, with this server for their Redis.

const assert = require('node:assert/strict');
const test = require('node:test');
const { Peer } = require('./lib/clients');
const { start } = require('./lib/server');
const { KINDS, REDIS, dispatcher } = require('./lib/stock');
const { range } = require('./lib/suite');
const { eventually } = require('./lib/wait');

const REDIS_PROTOCOL = { redisProtocol: { port: 0 } };
const SYNC = { sync: { enabled: true } };

/** Runs `scenario` for each stock package over each Redis client, with a server of its own. */
function overAll(promise, config, scenario) {
  test(promise, { concurrency: KINDS.length }, async (t) => {
    await Promise.all(KINDS.map((kind) => t.test(kind, async (run) => {
      const server = await start(run, { ...REDIS_PROTOCOL, ...config });
      const connect = async (user) => {
        const peer = new Peer('stock158', server.url);
        run.after(() => peer.retire());
        await peer.connect();
        if (user) await peer.is(user);
        return peer;
      };
      const all = [];
      const made = (options) => {
        all.push(dispatcher(run, kind, server.redis, options));
        return all.at(-1);
      };
      await scenario({ server, connect, dispatcher: made, kind, t: run });
      // A Dispatcher waits for no answer; one that is not there when its connection ends would be an error of nobody's.
      await Promise.all(all.map(({ answered }) => answered()));
    })));
  });
}

const waits = async (server, user, count) => eventually(`${count} to wait for ${user}`, async () => {
  const { pending } = await server.user(user).catch(() => ({ pending: 0 }));
  return pending === count;
});

/** The numbers that wait for a user, in order. */
async function waiting(server, user) {
  const { messages } = await server.ask('GET', `/v1/users/${user}/messages?limit=1000`);
  return messages.map(({ d }) => d.n);
}

overAll('who_is_here_gets_it_and_who_is_away_gets_it_when_he_comes', {}, async ({ server, connect, dispatcher }) => {
  const { send } = dispatcher(SYNC);
  const alice = await connect('alice');
  for (const n of range(3)) {
    send(n, ['alice', 'bob', 'carol'], n === 1 ? ['carol'] : undefined);
    // A Dispatcher asks recipient by recipient, so that one with fewer of them overtakes one with more.
    await alice.waitFor(n + 1);
    await waits(server, 'bob', n + 1);
  }
  assert.deepEqual(alice.messages, range(3).map((n) => ({ op: 0, d: { n }, t: 'NUMBER' })));
  await waits(server, 'bob', 3);
  await waits(server, 'carol', 2);
  const bob = await connect('bob');
  await bob.waitFor(3);
  assert.deepEqual(bob.messages, range(3).map((n) => ({ op: 0, d: { n }, t: 'NUMBER', s: n + 1 })));
  const carol = await connect('carol');
  await carol.waitFor(2);
  assert.deepEqual(carol.numbers, [0, 2]);
});

overAll('a_dispatcher_without_sync_reaches_who_is_here_and_the_server_keeps_it_for_who_is_not', {}, async (its) => {
  const { send } = its.dispatcher();
  const alice = await its.connect('alice');
  for (const n of range(3)) send(n, ['alice', 'bob']);
  await alice.waitFor(3);
  assert.deepEqual(alice.numbers, [0, 1, 2]);
  await waits(its.server, 'bob', 3);
});

const OFF = { sync: { enabled: false } };
overAll('dispatcher_with_sync_at_a_server_without_it_reaches_online_users_and_goes_on', OFF, async (its) => {
  const { send } = its.dispatcher(SYNC);
  const alice = await its.connect('alice');
  for (const n of range(3)) send(n, ['alice', 'bob']);
  await alice.waitFor(3);
  assert.deepEqual(alice.numbers, [0, 1, 2]);
  await eventually('three messages to be counted as dropped', async () => {
    const { body } = await its.server.call('GET', '/metrics');
    return /^mesa_messages_dropped_sync_off_total 3$/m.test(body);
  });
  // The server writes its log on a thread of its own.
  await eventually('a line about it', () => /see mesa_messages_dropped_sync_off_total\b/.test(its.server.log()));
  const bob = await its.connect('bob');
  send(3, ['bob']);
  await bob.waitFor(1);
  assert.deepEqual(bob.numbers, [3], 'nothing was stored');
});

overAll('what_is_not_to_be_kept_is_not_kept', {}, async ({ server, connect, dispatcher, kind }) => {
  const alice = await connect('alice');
  for (const config of [SYNC, {}]) {
    const { send, answered } = dispatcher(config);
    alice.messages.length = 0;
    send(0, ['alice', 'bob'], undefined, { sync: false });
    await alice.waitForNumber(0);
    await answered();
  }
  // 1.3.8 does not say it on the wire.
  if (kind.startsWith('stock138')) await waits(server, 'bob', 2);
  else assert.equal((await server.call('GET', '/v1/users/bob')).status, 404, 'nobody has ever heard of him');
});

overAll('everyone_is_reached_and_nothing_is_kept', {}, async ({ server, connect, dispatcher }) => {
  await server.number(100, 'carol');
  const peers = [await connect('alice'), await connect('bob'), await connect()];
  for (const config of [SYNC, {}]) {
    const { send } = dispatcher(config);
    for (const recipients of [['*'], undefined, ['*', 'alice']]) {
      peers.forEach((peer) => { peer.messages.length = 0; });
      send(7, recipients);
      send(8, recipients);
      for (const peer of peers) {
        await peer.waitFor(2);
        assert.deepEqual(peer.numbers, [7, 8]);
      }
    }
  }
  assert.deepEqual(await waiting(server, 'carol'), [100]);
});

overAll('an_event_disconnects', {}, async ({ server, connect, dispatcher }) => {
  const { disconnect } = dispatcher(SYNC);
  const [one, two, bob] = [await connect('alice'), await connect('alice'), await connect('bob')];
  disconnect(['alice', 'nobody']);
  assert.deepEqual([await one.waitForClose(), await two.waitForClose()], [1000, 1000]);
  await server.connections('alice', 0);
  assert.deepEqual(bob.closes, []);
  disconnect(['*']);
  assert.equal(await bob.waitForClose(), 1000);
});

overAll('a_burst_to_one_who_is_away_is_kept_whole_and_in_order', {}, async ({ server, connect, dispatcher }) => {
  const { send } = dispatcher(SYNC);
  for (const n of range(50)) send(n, ['alice']);
  await waits(server, 'alice', 50);
  assert.deepEqual(await waiting(server, 'alice'), range(50));
  const alice = await connect('alice');
  await alice.waitFor(50);
  assert.deepEqual(alice.numbers, range(50));
});

overAll('two_bursts_at_once_to_one_who_is_away_are_kept_whole_and_each_in_order', {}, async ({ server, dispatcher }) => {
  const [one, two] = [dispatcher(SYNC), dispatcher(SYNC)];
  for (const n of range(50)) {
    one.send(n, ['alice']);
    two.send(100 + n, ['alice', 'bob']);
  }
  await waits(server, 'alice', 100);
  const numbers = await waiting(server, 'alice');
  assert.deepEqual(numbers.filter((n) => n < 100), range(50));
  assert.deepEqual(numbers.filter((n) => n >= 100), range(50, 100));
  await waits(server, 'bob', 50);
  assert.deepEqual(await waiting(server, 'bob'), range(50, 100));
});

overAll('names_have_the_namespace_behind_them', { namespace: 'chat' }, async ({ server, connect, dispatcher }) => {
  for (const config of [{ ...SYNC, namespace: 'chat' }, { namespace: 'chat' }]) {
    const { send } = dispatcher(config);
    const alice = await connect('alice');
    send(0, ['alice', 'bob']);
    await alice.waitForNumber(0);
    await alice.disconnect();
    await server.connections('alice', 0);
  }
  await waits(server, 'bob', 2);
});

overAll('another_namespace_is_refused_aloud', {}, async ({ dispatcher, server }) => {
  const { made } = dispatcher({ ...SYNC, namespace: 'other' });
  const field = ['undelivered_messages_other', 'alice', '[{"op":0}]'];
  await assert.rejects(made.redis.hset(...field), /does not keep 'undelivered_messages_other'/);
  await assert.rejects(made.publisher.publish('ws_other', '{}'), /does not keep 'ws_other'/);
  assert.equal((await server.call('GET', '/v1/users/alice')).status, 404);
});

overAll('while_a_user_comes_and_goes_nothing_is_lost_and_nothing_doubled', {}, async ({ server, connect, dispatcher }) => {
  const COUNT = 300;
  const { send, answered } = dispatcher(SYNC);
  let over = false;
  const heard = new Set();
  const coming = (async () => {
    while (!over) {
      const alice = await connect('alice');
      await alice.until('something', () => alice.messages.length > 2 || over);
      alice.numbers.forEach((n) => heard.add(n));
      await alice.disconnect();
    }
  })();
  for (const n of range(COUNT)) {
    send(n, ['alice']);
    if (n % 5 === 4) await answered();
  }
  await eventually('all to be in the log', async () => (await server.user('alice')).lastSequence >= COUNT);
  over = true;
  await server.number(COUNT, 'alice');
  await coming;
  const last = await connect('alice');
  await eventually('all to be received', async () => {
    last.numbers.forEach((n) => heard.add(n));
    return (await server.user('alice')).pending === 0;
  });
  last.numbers.forEach((n) => heard.add(n));
  assert.deepEqual([...heard].sort((a, b) => a - b), range(COUNT + 1));
  assert.equal((await server.user('alice')).lastSequence, COUNT + 1, 'each is in the log once');
});

overAll('a_dispatcher_goes_on_when_the_server_was_started_anew', { redisProtocol: { port: 0 } }, async ({ server, dispatcher }) => {
  const { send, made } = dispatcher(SYNC);
  send(0, ['alice']);
  await waits(server, 'alice', 1);
  const port = server.redisProtocolPort;
  await server.kill();
  await server.restart({ redisProtocol: { port } });
  await eventually('it to be connected', () => made.redis.status === 'ready' && made.publisher.status === 'ready');
  send(1, ['alice']);
  await waits(server, 'alice', 2);
  assert.deepEqual(await waiting(server, 'alice'), [0, 1]);
});

test('what_was_answered_is_there_after_a_kill', async (t) => {
  const server = await start(t, REDIS_PROTOCOL);
  const redis = new REDIS.ioredis5(server.redis);
  redis.on('error', () => {});
  t.after(() => redis.disconnect());
  const pipeline = redis.pipeline();
  for (const n of range(200)) {
    pipeline.publish('ws', JSON.stringify({ message: { op: 0, d: { n } }, recipients: ['alice'] }));
    pipeline.hset('undelivered_messages', 'bob', JSON.stringify([{ op: 0, d: { n } }]));
  }
  const answers = await pipeline.exec();
  await server.kill();
  assert.deepEqual(answers, range(400).map(() => [null, 1]));
  await server.restart();
  assert.deepEqual(await waiting(server, 'alice'), range(200));
  assert.deepEqual(await waiting(server, 'bob'), range(200));
});

for (const [name, Redis] of Object.entries(REDIS)) {
  test(`a_password_is_asked_for (${name})`, async (t) => {
    const server = await start(t, { redisProtocol: { port: 0, password: 'open sesame' } });
    const client = (password) => {
      const made = new Redis({ port: server.redisProtocolPort, password, retryStrategy: null, lazyConnect: true });
      made.on('error', () => {});
      t.after(() => made.disconnect());
      return made;
    };
    assert.equal(await client('open sesame').ping(), 'PONG');
    await assert.rejects(client(undefined).publish('ws', '{"message":{},"recipients":["*"]}'), /NOAUTH/);
    await assert.rejects(client('wrong').smembers('connected_clients'), /NOAUTH|WRONGPASS/);
  });

  test(`commands_of_one_pipeline_are_answered_in_order (${name})`, async (t) => {
    const server = await start(t, REDIS_PROTOCOL);
    const redis = new Redis(server.redis);
    t.after(() => redis.disconnect());
    const pipeline = redis.pipeline();
    const text = (n) => JSON.stringify({ message: { op: 0, d: { n } }, recipients: ['alice'] });
    for (const n of range(2000)) {
      pipeline.publish('ws', text(n)).sismember('connected_clients', 'alice').echo(String(n));
    }
    pipeline.hlen('undelivered_messages').hget('undelivered_messages', 'nobody').call('FLUSHALL');
    const answers = await pipeline.exec();
    const refused = answers.pop();
    assert.match(refused[0].message, /^ERR unknown command/);
    assert.deepEqual(answers.splice(-2).map(([, answer]) => answer), [1, null]);
    assert.deepEqual(answers.map(([, answer]) => answer), range(2000).flatMap((n) => [1, 0, String(n)]));
    assert.deepEqual(await waiting(server, 'alice'), range(1000));
    assert.equal((await server.user('alice')).pending, 2000);
  });
}
