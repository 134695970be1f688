'use strict';
// Runs a test over the published clients and mesa-client, each with its own server.

const assert = require('node:assert/strict');
const test = require('node:test');
const { KINDS, TestClient } = require('./clients');
const { startServer } = require('./server');

/** Functions that create the clients, by kind. */
let clients = Object.fromEntries(KINDS.map((kind) => [kind, undefined]));

/** Replaces the clients of the tests that are defined afterwards. */
function setClients(replacements) {
  clients = replacements;
}

/**
 * Runs `scenario` once for each client.
 *
 * Its argument has `server`, `t`, `kind`, and `connect(url?)`, which returns a connected client of that kind. Server and
 * clients are removed when the scenario ends.
 */
function testWithEachClient(name, config, scenario) {
  const kinds = Object.entries(clients);
  test(name, { concurrency: kinds.length }, async (t) => {
    const runs = kinds.map(([kind, create]) => t.test(kind, async (run) => {
      const server = await startServer(run, config);
      const connect = (url = server.url) => {
        const client = new TestClient(kind, url, create);
        run.after(() => client.discard());
        return client.connect();
      };
      await scenario({ server, t: run, kind, connect });
    }));
    await Promise.all(runs);
  });
}

/** Returns `count` consecutive numbers, beginning with `from`. */
const range = (count, from = 0) => Array.from({ length: count }, (_, index) => from + index);

/** Dispatches `count` numbers as one stream, which is faster than single dispatches. */
async function dispatchStream(server, count, user, from = 0) {
  const { request, results } = server.openStream();
  for (const n of range(count, from)) {
    request.write(`${JSON.stringify({ message: { op: 0, d: { n }, t: 'NUMBER' }, recipients: [user] })}\n`);
  }
  request.end();
  for await (const result of results) assert.equal(result.error, undefined);
}

module.exports = { dispatchStream, range, setClients, testWithEachClient };
