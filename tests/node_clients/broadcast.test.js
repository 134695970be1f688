'use strict';
// Messages to `*`, and telling clients to go.

const assert = require('node:assert/strict');
const { overAllClients } = require('./lib/suite');

overAllClients('everyone_connected_is_reached_and_nothing_is_kept', {}, async ({ server, connect }) => {
  await server.number(100, 'carol');
  const alice = await connect();
  await alice.is('alice');
  const bob = await connect();
  await bob.is('bob');
  const nobody = await connect();
  await nobody.until('a hello', () => nobody.hello);
  const result = await server.number(0, '*');
  assert.equal(result.recipients, 3);
  for (const peer of [alice, bob, nobody]) {
    await peer.waitForNumber(0);
    assert.deepEqual(peer.messages, [{ op: 0, d: { n: 0 }, t: 'NUMBER' }]);
  }
  for (const user of ['alice', 'bob']) assert.equal((await server.user(user)).lastSequence, 0);
  const carol = await connect();
  await carol.is('carol');
  await carol.waitForNumber(100);
  assert.deepEqual(carol.numbers, [100]);
});

overAllClients('those_excluded_from_everyone_get_nothing', {}, async ({ server, connect }) => {
  const alice = await connect();
  await alice.is('alice');
  const bob = await connect();
  await bob.is('bob');
  await server.number(0, '*', { excluding: ['alice'] });
  await server.number(1, '*');
  await Promise.all([alice.waitForNumber(1), bob.waitForNumber(1)]);
  assert.deepEqual([alice.numbers, bob.numbers], [[1], [0, 1]]);
});

const required = { authentication: { required: true } };
overAllClients('strangers_get_nothing_where_authentication_is_required', required, async ({ server, connect }) => {
  const alice = await connect();
  await alice.is('alice');
  const late = await connect();
  await late.until('a hello', () => late.hello);
  await server.number(0, '*');
  await alice.waitForNumber(0);
  await late.is('bob');
  await server.number(1, '*');
  await late.waitForNumber(1);
  assert.deepEqual(late.numbers, [1]);
});

const GO = { op: 5, d: {}, t: 'DISCONNECT_CLIENT' };
const ways = {
  a_dispatched_event: (server) => server.dispatch(GO, ['alice']),
  a_call_of_the_api: (server) => server.ask('POST', '/v1/users/alice/disconnect'),
};
for (const [way, disconnect] of Object.entries(ways)) {
  overAllClients(`${way}_closes_all_connections_of_a_user_and_no_other`, {}, async ({ server, connect }) => {
    const [one, two, bob] = [await connect(), await connect(), await connect()];
    await one.is('alice');
    await two.is('alice');
    await bob.is('bob');
    await disconnect(server);
    assert.deepEqual([await one.waitForClose(), await two.waitForClose()], [1000, 1000]);
    assert.deepEqual([one.messages, two.messages], [[], []]);
    await server.connections('alice', 0);
    await server.number(0, ['alice', 'bob']);
    await bob.waitForNumber(0);
    assert.deepEqual(bob.closes, []);
    const back = await connect();
    await back.is('alice');
    await back.waitForNumber(0);
  });
}
