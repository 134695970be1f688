'use strict';
// Tests the conformance checks for clients: mesa-client passes all of them, and each fault of a client fails its check.

const assert = require('node:assert/strict');
const { spawn } = require('node:child_process');
const path = require('node:path');
const { describe, test } = require('node:test');

const DIRECTORY = path.resolve(__dirname, '../../data/examples/client-conformance');

/** Runs the checks, and returns the exit code and the printed lines. */
async function check(options, command, env = {}) {
  const args = [path.join(DIRECTORY, 'conformance.mjs'), '--resume', ...options, process.execPath, ...command];
  const child = spawn(process.execPath, args, { env: { ...process.env, ...env }, stdio: ['ignore', 'pipe', 'ignore'] });
  let output = '';
  child.stdout.on('data', (text) => { output += text; });
  const code = await new Promise((resolve) => child.on('close', resolve));
  return { code, output };
}

/** Node 20 has no WebSocket without this option. */
const WEBSOCKET = globalThis.WebSocket ? [] : ['--experimental-websocket'];

/** A client that passes takes long to start on a busy machine. */
const LONG_TIMEOUT = ['--timeout', '120'];

const FAULTY_CLIENT = path.join(__dirname, 'lib/faulty_client.js');

test('mesa-client passes every check', async () => {
  const { code, output } = await check(LONG_TIMEOUT, [...WEBSOCKET, path.join(DIRECTORY, 'mesa-client.mjs')]);
  assert.equal(code, 0, output);
  assert.match(output, /^26 passed, 0 failed$/m);
});

test('a client without a fault passes every check', async () => {
  const { code, output } = await check(LONG_TIMEOUT, [FAULTY_CLIENT]);
  assert.equal(code, 0, output);
});

test('a failed check counts while others pass', async () => {
  const { code, output } = await check(['--only', 'waits longer'], [FAULTY_CLIENT], { FAULT: 'resets at op 22' });
  assert.equal(code, 1, output);
  assert.match(output, /^1 passed, 1 failed$/m);
});

// Most of the time is waiting.
describe('a client with a fault fails its check', { concurrency: 4 }, () => {
  for (const [fault, name] of [
    ['no op 11', 'answers each op 1'],
    ['no pong', 'answers WebSocket pings'],
    ['passes op 11', 'passes no frame of the protocol on'],
    ['comes back', 'does not reconnect after close 1008'],
    ['no backoff', 'waits longer after each failed attempt'],
    ['resets at op 22', 'waits longer when each connection is closed after op 22'],
    ['no position', 'resumes by `after`'],
    ['passes repeats', 'drops repeats'],
    ['acknowledges too much', 'acknowledges by op 3'],
    ['no gaps', 'passes gaps on'],
    ['no watchdog', 'finds a dead connection'],
  ]) {
    test(`${fault}: ${name}`, async () => {
      const { code, output } = await check(['--timeout', '5', '--only', name], [FAULTY_CLIENT], { FAULT: fault });
      assert.equal(code, 1, output);
      assert.match(output, new RegExp(`^FAILED  ${name}`, 'm'));
    });
  }
});
