'use strict';
// Tests the example backends in data/examples. They use the HTTP API and webhooks, and only standard libraries.

const assert = require('node:assert/strict');
const { createHmac } = require('node:crypto');
const path = require('node:path');
const test = require('node:test');
const { TestClient } = require('./lib/clients');
const { EXAMPLES, startProgram } = require('./lib/program');
const { Proxy } = require('./lib/proxy');
const { KEY, startServer } = require('./lib/server');

const SECRET = 'a-secret-for-webhooks';

const BACKENDS = {
  node: [process.execPath, path.join(EXAMPLES, 'backend.mjs')],
  python: ['python3', path.join(EXAMPLES, 'backend.py')],
};

for (const [name, [command, file]] of Object.entries(BACKENDS)) {
  test(`backend_in_${name}_answers_orders_of_clients_once_over_restarts`, async (t) => {
    // Backend and server each need the address of the other. The proxy has an address before the server starts.
    const proxy = await new Proxy(null).listen();
    t.after(() => proxy.close());
    const environment = (port) => ({
      MESA_URL: proxy.url.replace('ws:', 'http:').replace(/\/$/, ''),
      MESA_API_KEY: KEY,
      WEBHOOK_SECRET: SECRET,
      PORT: `${port}`,
    });
    let backend = await startProgram(t, command, [file], environment(0));
    const url = `http://127.0.0.1:${backend.port}/`;
    const webhook = { url, secret: SECRET, allowPrivate: true, undeliveredAfter: 1000, retryMin: 50, retryMax: 200 };
    const server = await startServer(t, { portal: { webhook } });
    proxy.target = server;

    const alice = new TestClient('original158', server.url);
    t.after(() => alice.discard());
    await alice.connect();
    await alice.authenticateAs('alice');
    const takenItems = () => alice.messages.filter(({ t: type }) => type === 'ORDER_TAKEN').map(({ d }) => d.item);
    alice.send({ item: 'tea' }, 'ORDER');
    alice.send({ item: 'ignored' }, 'TALK');
    await alice.waitUntil('the answer to the first order', () => takenItems().length === 1);

    // Orders that arrive while the backend is down are answered once after its restart.
    await backend.kill();
    for (const item of ['milk', 'honey']) alice.send({ item }, 'ORDER');
    await server.dispatchNumber(1, 'bob');
    backend = await startProgram(t, command, [file], environment(backend.port));
    await alice.waitUntil('the answers to the other orders', () => takenItems().length >= 3);
    assert.deepEqual(takenItems(), ['tea', 'milk', 'honey']);
    // A message for bob has been pending for `undeliveredAfter`, so the backend sends a push notification.
    await backend.waitForLine(/^push "bob"$/);

    // The backend rejects requests without a valid, recent signature.
    const body = JSON.stringify({ events: [{ id: 'x', type: 'message', user: 'alice', message: { op: 0, t: 'ORDER' } }] });
    const now = Math.floor(Date.now() / 1000);
    const signed = (secret, timestamp) => ({
      'mesa-timestamp': `${timestamp}`,
      'mesa-signature': `v1=${createHmac('sha256', secret).update(`${timestamp}.${body}`).digest('hex')}`,
    });
    for (const headers of [
      {}, signed('another-secret-0123', now), signed(SECRET, now - 3600), { ...signed(SECRET, now), 'mesa-timestamp': `${now - 1}` },
    ]) {
      const response = await fetch(url, { method: 'POST', body, headers });
      assert.equal(response.status, 401, JSON.stringify(headers));
    }
    assert.equal((await fetch(url, { method: 'POST', body, headers: signed(SECRET, now) })).status, 204);
    await alice.waitUntil('the answer to the signed order', () => takenItems().length === 4);
    assert.deepEqual(takenItems(), ['tea', 'milk', 'honey', null]);
  });
}
