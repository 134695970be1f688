'use strict';
// Tests the Redis protocol with the program `redis-cli`.

const assert = require('node:assert/strict');
const { spawnSync } = require('node:child_process');
const test = require('node:test');
const { TestClient } = require('./lib/clients');
const { startServer } = require('./lib/server');

const installed = spawnSync('redis-cli', ['--version']).status === 0;
if (!installed && process.env.CI) throw new Error('redis-cli is not installed: install redis-tools');

test('redis_cli_reads_users_and_pending_messages', { skip: installed ? false : 'redis-cli is not installed' }, async (t) => {
  const server = await startServer(t, { redisProtocol: { port: 0, password: 'open sesame' }, portal: { enabled: true } });
  const cli = (...command) => {
    const args = ['-p', String(server.redisProtocolPort), '-a', 'open sesame', '--no-auth-warning', ...command];
    const { stdout, stderr } = spawnSync('redis-cli', args, { encoding: 'utf8', timeout: 15_000 });
    return (stdout + stderr).trim();
  };
  assert.equal(cli('PING'), 'PONG');
  assert.match(cli('INFO'), /redis_mode:standalone/);
  assert.equal(cli('SMEMBERS', 'connected_clients'), '');
  const alice = new TestClient('original158', server.url);
  t.after(() => alice.discard());
  await alice.connect();
  await alice.authenticateAs('alice');
  assert.equal(cli('SMEMBERS', 'connected_clients'), 'alice');
  assert.equal(cli('GET', 'connected_clients_count'), '1');
  const payload = JSON.stringify({ message: { op: 0, d: { n: 1 }, t: 'NUMBER' }, recipients: ['alice', 'bob'] });
  assert.equal(cli('PUBLISH', 'ws', payload), '2');
  await alice.waitForNumber(1);
  assert.equal(cli('HKEYS', 'undelivered_messages'), 'bob');
  assert.equal(cli('HGET', 'undelivered_messages', 'bob'), '[{"op":0,"d":{"n":1},"t":"NUMBER"}]');
  assert.equal(cli('HDEL', 'undelivered_messages', 'bob'), '1');
  assert.equal(cli('HGET', 'undelivered_messages', 'bob'), '');
  assert.match(cli('FLUSHALL'), /^ERR unknown command 'FLUSHALL'/);
  const unauthenticated = spawnSync('redis-cli', ['-p', String(server.redisProtocolPort), 'PING'], { encoding: 'utf8' });
  assert.match(unauthenticated.stdout + unauthenticated.stderr, /NOAUTH Authentication required/);
});
