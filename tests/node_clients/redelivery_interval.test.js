'use strict';
// sync.redeliveryInterval: what was kept comes at a pace, what is new at once.

const assert = require('node:assert/strict');
const { overAllClients, range } = require('./lib/suite');

const paced = (redeliveryInterval) => ({ sync: { redeliveryInterval } });

overAllClients('live_messages_do_not_wait_for_a_paced_redelivery', paced(50), async ({ server, connect }) => {
  await server.numbers(20, 'alice');
  const alice = await connect();
  const began = Date.now();
  await alice.is('alice');
  await alice.waitFor(1);
  await server.number(1000, 'alice');
  await alice.waitFor(21);
  const took = Date.now() - began;

  const old = alice.messages.filter((message) => message.s !== undefined);
  assert.deepEqual(old.map((message) => message.d.n), range(20));
  assert.deepEqual(old.map((message) => message.s), range(20, 1));
  const live = alice.numbers.indexOf(1000);
  assert.equal(alice.messages[live].s, undefined);
  assert.ok(live < alice.numbers.indexOf(19), `the live message came as number ${live + 1} of 21`);
  assert.ok(took >= 19 * 50 * 0.8, `twenty messages 50 ms apart took only ${took} ms`);
});

overAllClients('what_was_live_during_a_paced_redelivery_is_not_repeated', paced(20), async ({ server, connect }) => {
  await server.numbers(10, 'alice');
  const first = await connect();
  await first.is('alice');
  await first.waitFor(1);
  await server.number(10, 'alice');
  await first.waitFor(11);
  await server.allReceived('alice');
  await first.disconnect();

  const second = await connect();
  await second.is('alice');
  await server.number(11, 'alice');
  await second.waitForNumber(11);
  assert.deepEqual(second.numbers, [11]);
});

overAllClients('a_paced_redelivery_that_breaks_off_is_taken_up_again', paced(20), async ({ server, connect }) => {
  await server.numbers(30, 'alice');
  const first = await connect();
  await first.is('alice');
  await first.waitFor(5);
  await server.number(30, 'alice');
  await first.waitForNumber(30);
  await first.disconnect();

  const second = await connect();
  await second.is('alice');
  await second.waitForNumber(29);
  const all = new Set([...first.numbers, ...second.numbers]);
  assert.deepEqual([...all].sort((a, b) => a - b), range(31));
  const old = second.numbers.filter((n) => n < 30);
  assert.deepEqual(old, range(30 - old[0], old[0]));
});
