'use strict';
// The backends of data/examples, in Node and in Python: nothing but their standard libraries, the HTTP API and webhooks.

const assert = require('node:assert/strict');
const { createHmac } = require('node:crypto');
const path = require('node:path');
const test = require('node:test');
const { Peer } = require('./lib/clients');
const { EXAMPLES, run } = require('./lib/program');
const { Proxy } = require('./lib/proxy');
const { KEY, start } = require('./lib/server');

const SECRET = 'a-secret-for-webhooks';

const BACKENDS = {
  node: [process.execPath, path.join(EXAMPLES, 'backend.mjs')],
  python: ['python3', path.join(EXAMPLES, 'backend.py')],
};

for (const [name, [command, file]] of Object.entries(BACKENDS)) {
  test(`a_backend_in_${name}_takes_orders_and_answers_them`, async (t) => {
    // The backend has to know the server, and the server the backend: one of them by way of a proxy.
    const proxy = await new Proxy(null).listen();
    t.after(() => proxy.close());
    const environment = (port) => ({
      MESA_URL: proxy.url.replace('ws:', 'http:').replace(/\/$/, ''),
      MESA_API_KEY: KEY,
      WEBHOOK_SECRET: SECRET,
      PORT: `${port}`,
    });
    let backend = await run(t, command, [file], environment(0));
    const url = `http://127.0.0.1:${backend.port}/`;
    const webhook = { url, secret: SECRET, allowPrivate: true, undeliveredAfter: 1000, retryMin: 50, retryMax: 200 };
    const server = await start(t, { portal: { webhook } });
    proxy.target = server;

    const alice = new Peer('stock158', server.url);
    t.after(() => alice.retire());
    await alice.connect();
    await alice.is('alice');
    const taken = () => alice.messages.filter(({ t: type }) => type === 'ORDER_TAKEN').map(({ d }) => d.item);
    alice.say({ item: 'tea' }, 'ORDER');
    alice.say({ item: 'nothing of interest' }, 'TALK');
    await alice.until('the first order', () => taken().length === 1);

    // While the backend is down nothing is lost, and nothing is done twice when it is back.
    await backend.kill();
    for (const item of ['milk', 'honey']) alice.say({ item }, 'ORDER');
    await server.number(1, 'bob');
    backend = await run(t, command, [file], environment(backend.port));
    await alice.until('the other orders', () => taken().length >= 3);
    assert.deepEqual(taken(), ['tea', 'milk', 'honey']);
    // Bob has received nothing for a while: the moment to send him a push notification.
    await backend.line(/^push "bob"$/);

    // Nobody but the server can place an order.
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
    await alice.until('the order that was signed', () => taken().length === 4);
    assert.deepEqual(taken(), ['tea', 'milk', 'honey', null]);
  });
}
