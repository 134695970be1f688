'use strict';
// Tests that the clients of a stopped server do not return all at once.

const assert = require('node:assert/strict');
const { pollUntil } = require('./lib/wait');
const { range, testWithEachClient } = require('./lib/suite');

const CLIENTS = 50;
const INTERVAL = 2000;
const CONFIG = { reconnect: { enabled: true, interval: INTERVAL } };

testWithEachClient('clients_of_a_stopped_server_return_spread_over_time', CONFIG, async ({ server, kind, connect }) => {
  const returned = [];
  const clients = await Promise.all(range(CLIENTS).map(async (n) => {
    const client = await connect();
    await client.authenticateAs(`user-${n}`);
    client.onConnected = () => returned.push(Date.now());
    return client;
  }));
  await server.stop();
  await server.restart({ port: server.port });
  await pollUntil('all clients to return', () => returned.length >= CLIENTS);
  returned.sort((a, b) => a - b);
  // Without a spread, all of the published clients return within some milliseconds.
  const most = Math.max(...returned.map((at) => returned.filter((other) => other >= at && other < at + INTERVAL / 10).length));
  assert.ok(most <= CLIENTS / 2, `${kind}: ${most} of ${CLIENTS} clients returned within ${INTERVAL / 10} ms`);
  // The client works as before.
  const [client] = clients;
  await client.authenticateAs('user-0');
  await server.dispatchNumber(7, 'user-0');
  await client.waitForNumber(7);
});
