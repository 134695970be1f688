'use strict';
// Tests broadcasts (messages to `*`), and disconnecting clients.

const assert = require('node:assert/strict');
const { testWithEachClient } = require('./lib/suite');

testWithEachClient('broadcast_reaches_all_connected_clients_and_is_not_stored', {}, async ({ server, connect }) => {
  await server.dispatchNumber(100, 'carol');
  const alice = await connect();
  await alice.authenticateAs('alice');
  const bob = await connect();
  await bob.authenticateAs('bob');
  const anonymous = await connect();
  await anonymous.waitUntil('a hello', () => anonymous.hello);
  const result = await server.dispatchNumber(0, '*');
  assert.equal(result.recipients, 3);
  for (const client of [alice, bob, anonymous]) {
    await client.waitForNumber(0);
    assert.deepEqual(client.messages, [{ op: 0, d: { n: 0 }, t: 'NUMBER' }]);
  }
  for (const user of ['alice', 'bob']) assert.equal((await server.userState(user)).lastSequence, 0);
  const carol = await connect();
  await carol.authenticateAs('carol');
  await carol.waitForNumber(100);
  assert.deepEqual(carol.numbers, [100]);
});

testWithEachClient('broadcast_with_excluded_user_does_not_reach_that_user', {}, async ({ server, connect }) => {
  const alice = await connect();
  await alice.authenticateAs('alice');
  const bob = await connect();
  await bob.authenticateAs('bob');
  await server.dispatchNumber(0, '*', { excluding: ['alice'] });
  await server.dispatchNumber(1, '*');
  await Promise.all([alice.waitForNumber(1), bob.waitForNumber(1)]);
  assert.deepEqual([alice.numbers, bob.numbers], [[1], [0, 1]]);
});

const REQUIRED = { authentication: { required: true } };
testWithEachClient('broadcast_with_required_authentication_skips_unauthenticated_client', REQUIRED, async ({ server, connect }) => {
  const alice = await connect();
  await alice.authenticateAs('alice');
  const bob = await connect();
  await bob.waitUntil('a hello', () => bob.hello);
  await server.dispatchNumber(0, '*');
  await alice.waitForNumber(0);
  await bob.authenticateAs('bob');
  await server.dispatchNumber(1, '*');
  await bob.waitForNumber(1);
  assert.deepEqual(bob.numbers, [1]);
});

const DISCONNECT_EVENT = { op: 5, d: {}, t: 'DISCONNECT_CLIENT' };
const METHODS = {
  disconnect_event: (server) => server.dispatch(DISCONNECT_EVENT, ['alice']),
  disconnect_endpoint: (server) => server.request('POST', '/v1/users/alice/disconnect'),
};
for (const [method, disconnect] of Object.entries(METHODS)) {
  testWithEachClient(`${method}_closes_all_connections_of_the_user_and_no_other`, {}, async ({ server, connect }) => {
    const [one, two, bob] = [await connect(), await connect(), await connect()];
    await one.authenticateAs('alice');
    await two.authenticateAs('alice');
    await bob.authenticateAs('bob');
    await disconnect(server);
    assert.deepEqual([await one.waitForClose(), await two.waitForClose()], [1000, 1000]);
    assert.deepEqual([one.messages, two.messages], [[], []]);
    await server.waitForConnections('alice', 0);
    await server.dispatchNumber(0, ['alice', 'bob']);
    await bob.waitForNumber(0);
    assert.deepEqual(bob.closeCodes, []);
    const reconnected = await connect();
    await reconnected.authenticateAs('alice');
    await reconnected.waitForNumber(0);
  });
}
