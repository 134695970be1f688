'use strict';
// Gaps are computed from the log, not announced once: a connection that breaks before or in an op 13 does not lose it.

const assert = require('node:assert/strict');
const test = require('node:test');
const { range } = require('./lib/suite');
const { open } = require('./lib/raw');
const { start } = require('./lib/server');

test('gap_that_was_not_received_is_sent_again_with_its_reason_over_breaks_and_a_kill', async (t) => {
  const server = await start(t, { sync: { enabled: true, maxMessages: 3, overflow: 'dropOldest' } });
  for (const n of range(5)) await server.number(n, 'alice');
  const gaps = (raw) => raw.frames.filter((frame) => frame.op === 13).map((frame) => frame.d);
  const expected = { first: 3, last: 5, missed: { from: 1, to: 2, reason: 'quota' } };

  // The connection breaks behind op 22.
  const before = await open(t, server);
  await before.authenticate('alice', { after: 0 });
  before.socket.destroy();
  // It breaks behind op 13, and nothing that follows was acknowledged.
  const behind = await open(t, server);
  await behind.authenticate('alice', { after: 0 });
  await behind.until('op 13', () => gaps(behind).length === 1);
  assert.deepEqual(gaps(behind), [expected]);
  behind.socket.destroy();

  for (const kill of [false, true]) {
    if (kill) {
      await server.kill();
      await server.restart();
    }
    const again = await open(t, server);
    await again.authenticate('alice', { after: 0 });
    await again.until('three messages', () => again.messages.length === 3);
    assert.deepEqual(gaps(again), [expected]);
    assert.deepEqual(again.messages.map(({ d, s }) => [d.n, s]), [[2, 3], [3, 4], [4, 5]]);
    again.socket.destroy();
  }
});
