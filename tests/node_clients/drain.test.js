'use strict';
// Tests that the clients of a stopped server do not return all at once.

const assert = require('node:assert/strict');
const { pollUntil } = require('./lib/wait');
const { range, testWithEachClient } = require('./lib/suite');

const CLIENTS = 50;
const INTERVAL = 2000;
const CONFIG = { reconnect: { enabled: true, interval: INTERVAL } };

testWithEachClient('clients_of_a_stopped_server_return_spread_over_time', CONFIG, async ({ server, kind, connect }) => {
  const returnedAt = [];
  const clients = await Promise.all(range(CLIENTS).map(async (n) => {
    const client = await connect();
    await client.authenticateAs(`user-${n}`);
    client.onConnected = () => { returnedAt[n] ??= Date.now(); };
    return client;
  }));
  const stoppedAt = Date.now();
  await server.stop();
  await server.restart({ port: server.port });
  await pollUntil('all clients to return', () => returnedAt.filter(Boolean).length === CLIENTS);
  // Each client got an interval of its own before it was closed. A busy machine calls many timers late, and at once. So the
  // intervals are compared with each other, and a return only with the end of its interval.
  const intervals = clients.map((client) => client.frames.filter((frame) => frame.op === 10)[1].d.c_reconnect_interval);
  const near = (interval) => intervals.filter((other) => other >= interval && other < interval + INTERVAL / 10).length;
  const most = Math.max(...intervals.map(near));
  assert.ok(most <= CLIENTS / 4, `${kind}: ${most} of ${CLIENTS} intervals are within ${INTERVAL / 10} ms`);
  // The delay of mesa-client is a random part of the interval.
  const early = returnedAt.filter((at, n) => at - stoppedAt < intervals[n] * 0.9);
  assert.ok(kind === 'mesa-client' || early.length === 0, `${kind}: ${early.length} clients returned before their interval`);
  // The client works as before.
  const [client] = clients;
  await client.authenticateAs('user-0');
  await server.dispatchNumber(7, 'user-0');
  await client.waitForNumber(7);
});
