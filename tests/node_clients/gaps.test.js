'use strict';
// Tests that a gap is reported again if the connection broke before the client received it (op 13).

const assert = require('node:assert/strict');
const test = require('node:test');
const { range } = require('./lib/suite');
const { connectRaw } = require('./lib/raw');
const { startServer } = require('./lib/server');

// covers: G4, G5
test('unreceived_gap_is_reported_again_after_broken_connections_and_a_kill', async (t) => {
  const server = await startServer(t, { sync: { enabled: true, maxMessages: 3, overflow: 'dropOldest' } });
  for (const n of range(5)) await server.dispatchNumber(n, 'alice');
  const gaps = (raw) => raw.frames.filter((frame) => frame.op === 13).map((frame) => frame.d);
  const expected = { first: 3, last: 5, missed: { from: 1, to: 2, reason: 'quota' } };

  // The connection breaks after op 22.
  const first = await connectRaw(t, server);
  await first.authenticate('alice', { after: 0 });
  first.socket.destroy();
  // The connection breaks after op 13, without an acknowledgement.
  const second = await connectRaw(t, server);
  await second.authenticate('alice', { after: 0 });
  await second.waitUntil('op 13', () => gaps(second).length === 1);
  assert.deepEqual(gaps(second), [expected]);
  second.socket.destroy();

  for (const kill of [false, true]) {
    if (kill) {
      await server.kill();
      await server.restart();
    }
    const resumed = await connectRaw(t, server);
    await resumed.authenticate('alice', { after: 0 });
    await resumed.waitUntil('three messages', () => resumed.messages.length === 3);
    assert.deepEqual(gaps(resumed), [expected]);
    assert.deepEqual(resumed.messages.map(({ d, s }) => [d.n, s]), [[2, 3], [3, 4], [4, 5]]);
    resumed.socket.destroy();
  }
});
