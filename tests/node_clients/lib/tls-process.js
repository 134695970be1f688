'use strict';
// Connects each published client over TLS, and dispatches to it over `rediss:`. A process of its own, because Node reads
// NODE_EXTRA_CA_CERTS when it starts. Arguments: URL of the WebSocket, URL of the Redis protocol.

const { KINDS, TestClient } = require('./clients');
const { createDispatcher } = require('./original');

async function run([url, redisUrl]) {
  const unlimited = { after() {} };
  const dispatchers = ['original158 over ioredis4', 'original158 over ioredis5'].map((kind) =>
    createDispatcher(unlimited, kind, redisUrl, { sync: { enabled: true } }));
  for (const [index, kind] of KINDS.entries()) {
    const user = `user-${index}`;
    const client = new TestClient(kind, url);
    await client.connect();
    await client.authenticateAs(user);
    for (const [n, dispatcher] of dispatchers.entries()) {
      dispatcher.send(n, [user]);
      await client.waitForNumber(n);
    }
    console.log(`${kind} received all`);
  }
}

run(process.argv.slice(2)).then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
