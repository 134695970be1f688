'use strict';
// Connections that break, hang, or are not the only one.

const assert = require('node:assert/strict');
const { overAllClients, range } = require('./lib/suite');
const { before } = require('./lib/proxy');

overAllClients('a_client_that_drops_after_ten_of_a_hundred_gets_the_rest', {}, async ({ server, t, connect }) => {
  await server.numbers(100, 'alice');
  const proxy = await before(t, server);
  proxy.cutAfter(10);
  const first = await connect(proxy.url);
  await first.is('alice');
  await proxy.wasCut();
  await first.waitForClose();
  assert.deepEqual(first.numbers, range(10));

  const second = await connect();
  await second.is('alice');
  await second.waitForNumber(99);
  const start = second.numbers[0];
  assert.ok(start <= 10, `the second connection begins at ${start}, the first had 0 to 9`);
  assert.deepEqual(second.numbers, range(100 - start, start));
  assert.deepEqual(second.messages.map((message) => message.s), range(100 - start, 1));
});

overAllClients('what_is_sent_into_a_dead_network_arrives_later', {}, async ({ server, t, connect }) => {
  const proxy = await before(t, server);
  const first = await connect(proxy.url);
  await first.is('alice');
  proxy.freeze();
  await server.numbers(50, 'alice');

  const second = await connect();
  await second.is('alice');
  await second.waitFor(50);
  assert.deepEqual(second.numbers, range(50));
  assert.deepEqual(first.numbers, []);
});

overAllClients('one_of_two_connections_closes_and_the_other_goes_on', {}, async ({ server, connect }) => {
  const stays = await connect();
  await stays.is('alice');
  const leaves = await connect();
  await leaves.is('alice');
  await server.number(0, 'alice');
  await Promise.all([stays.waitForNumber(0), leaves.waitForNumber(0)]);
  await leaves.disconnect();
  await server.connections('alice', 1);
  const result = await server.number(1, 'alice');
  assert.deepEqual([result.online, result.offline], [1, 0]);
  await stays.waitForNumber(1);
  assert.deepEqual(stays.numbers, [0, 1]);
});

overAllClients('a_connection_cut_in_the_middle_of_live_messages_loses_none', {}, async ({ server, t, connect }) => {
  const proxy = await before(t, server);
  proxy.cutAfter(20);
  const first = await connect(proxy.url);
  await first.is('alice');
  await server.numbers(60, 'alice');
  await first.waitForClose();
  assert.deepEqual(first.numbers, range(20));

  const second = await connect();
  await second.is('alice');
  await second.waitForNumber(59);
  const start = second.numbers[0];
  assert.ok(start <= 20, `the second connection begins at ${start}, the first had 0 to 19`);
  assert.deepEqual(second.numbers, range(60 - start, start));
});
