'use strict';
// Tests the published clients over `wss:`, and Dispatchers over `rediss:`.

const assert = require('node:assert/strict');
const path = require('node:path');
const test = require('node:test');
const { KINDS } = require('./lib/clients');
const { Program } = require('./lib/program');
const { startServer } = require('./lib/server');

const key = (name) => path.resolve(__dirname, '../../data/test_keys', name);
const certificate = key('localhost.certificate.pem');

const run = (server, environment) => new Program(
  process.execPath,
  [
    path.join(__dirname, 'lib/tls-process.js'),
    server.url.replace('ws:', 'wss:'),
    server.redisUrl.replace('redis:', 'rediss:'),
  ],
  environment,
);

test('published_clients_and_dispatchers_work_over_tls', async (t) => {
  const tls = { cert: certificate, key: key('localhost.private.pem') };
  const server = await startServer(t, { tls, redisProtocol: { port: 0, tls: true } });
  const program = run(server, { NODE_EXTRA_CA_CERTS: certificate });
  t.after(() => program.ended ?? program.kill());
  for (const kind of KINDS) await program.waitForLine(new RegExp(`^${kind} received all$`));
  assert.equal(await program.exited, 0);
});
