'use strict';
// Servers that are killed, stopped, and started again.

const assert = require('node:assert/strict');
const test = require('node:test');
const { overAllClients, range } = require('./lib/suite');
const { before } = require('./lib/proxy');
const { open } = require('./lib/raw');
const { start } = require('./lib/server');

const paced = { sync: { redeliveryInterval: 20 } };

overAllClients('a_server_killed_in_the_middle_of_a_redelivery_sends_the_rest_later', paced, async ({ server, connect }) => {
  await server.numbers(100, 'alice');
  const first = await connect();
  await first.is('alice');
  await first.waitFor(20);
  await server.kill();
  await first.waitForClose();
  const had = first.numbers.length;
  assert.deepEqual(first.numbers, range(had));
  assert.ok(had < 100, 'the server was to be killed before the end');

  await server.restart({ sync: { redeliveryInterval: 0 } });
  const second = await connect();
  await second.is('alice');
  await second.waitForNumber(99);
  const begin = second.numbers[0];
  assert.ok(begin <= had, `the rest begins at ${begin}, the first connection had ${had}`);
  assert.deepEqual(second.numbers, range(100 - begin, begin));
});

overAllClients('what_was_answered_before_a_kill_is_there_after_it', {}, async ({ server, connect }) => {
  await server.numbers(30, 'alice');
  await server.kill();
  await server.restart();
  await server.numbers(10, 'alice', 30);
  const alice = await connect();
  await alice.is('alice');
  await alice.waitFor(40);
  assert.deepEqual(alice.numbers, range(40));
});

overAllClients('a_sequence_goes_on_where_it_was_after_everything_was_read', {}, async ({ server, connect }) => {
  await server.numbers(5, 'alice');
  const first = await connect();
  await first.is('alice');
  await first.waitFor(5);
  await server.allReceived('alice');
  await first.disconnect();
  assert.equal((await server.user('alice')).lastSequence, 5);
  assert.equal(await server.stop(), 0);
  await server.restart();
  await server.number(5, 'alice');
  assert.equal((await server.user('alice')).lastSequence, 6);
  const second = await connect();
  await second.is('alice');
  await second.waitForNumber(5);
  assert.deepEqual(second.numbers, [5]);
});

overAllClients('a_server_told_to_stop_says_goodbye_and_loses_nothing', {}, async ({ server, connect }) => {
  const alice = await connect();
  await alice.is('alice');
  const answered = [];
  const backend = (async () => {
    for (let n = 0; ; n += 1) {
      await server.number(n, ['alice', 'bob']);
      answered.push(n);
    }
  })().catch(() => {});
  await alice.waitFor(20);
  const code = await server.stop();
  await backend;
  assert.equal(code, 0);
  assert.equal(await alice.waitForClose(), 1001);

  await server.restart();
  const bob = await connect();
  await bob.is('bob');
  await bob.waitForNumber(answered.at(-1));
  assert.deepEqual(bob.numbers, range(bob.numbers.length));
  const again = await connect();
  await again.is('alice');
  await server.number(-1, 'alice');
  await again.waitForNumber(-1);
  const all = new Set([...alice.numbers, ...again.numbers]);
  assert.deepEqual(answered.filter((n) => !all.has(n)), []);
});

const returning = { reconnect: { enabled: true, interval: 200 } };

overAllClients('a_client_comes_back_by_itself_and_gets_what_it_missed', returning, async ({ server, t, connect }) => {
  const proxy = await before(t, server);
  const alice = await connect(proxy.url);
  await alice.is('alice');
  assert.equal(typeof alice.hello.c_reconnect_interval, 'number');
  await server.number(0, 'alice');
  await alice.waitFor(1);

  proxy.target = null;
  await server.kill();
  await alice.waitForClose();
  await server.restart();
  await server.numbers(5, 'alice', 1);
  alice.onConnected = () => alice.client.authenticate({ token: 'alice' }).catch(() => {});
  proxy.target = server;
  await alice.waitForNumber(5);
  assert.equal(alice.opened, 2);
  const later = alice.numbers.slice(alice.numbers[1] === 0 ? 1 : 0);
  assert.deepEqual(later, range(6));
});

test('a_store_is_not_opened_under_another_namespace', async (t) => {
  const server = await start(t, { namespace: 'one' });
  await server.number(0, 'alice');
  assert.equal(await server.stop(), 0);
  await assert.rejects(server.restart({ namespace: 'two' }), (error) => {
    assert.match(error.message, /ended at start-up/);
    assert.match(error.message, /namespace/);
    return true;
  });
  await server.restart({ namespace: 'one' });
  const alice = await open(t, server);
  await alice.authenticate('alice');
  await alice.until('the message', () => alice.messages.length === 1);
});
