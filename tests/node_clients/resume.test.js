'use strict';
// Tests clients that resume, and devices, with a raw client that follows the protocol.

const assert = require('node:assert/strict');
const test = require('node:test');
const { range } = require('./lib/suite');
const { connectRaw } = require('./lib/raw');
const { startServer } = require('./lib/server');
const { pollUntil } = require('./lib/wait');

/** Connects a raw client and authenticates it with `after`, `device` or both in `options`. */
async function connectWith(t, server, options, user = 'alice') {
  const raw = await connectRaw(t, server);
  await raw.authenticate(user, options);
  return raw;
}

/** Returns the op 13 frames received: range of the log, and gap. */
const resumed = (raw) => raw.frames.filter((frame) => frame.op === 13).map((frame) => frame.d);
/** Returns number and sequence of each message received. */
const sequences = (raw) => raw.messages.map(({ d, s }) => [d.n, s]);
const acknowledge = (raw, s) => raw.send({ op: 3, d: { s } });

test('client_that_resumes_receives_log_sequences_for_backlog_and_live_messages', async (t) => {
  const server = await startServer(t);
  await server.dispatchNumbers(3, 'alice');
  const raw = await connectWith(t, server, { after: 0 });
  await raw.waitUntil('three messages', () => raw.messages.length === 3);
  await server.dispatchNumber(3, 'alice');
  await raw.waitUntil('a fourth message', () => raw.messages.length === 4);
  assert.deepEqual(sequences(raw), [[0, 1], [1, 2], [2, 3], [3, 4]]);
  assert.deepEqual(resumed(raw), [{ first: 1, last: 3, missed: null }]);
  const order = raw.frames.map((frame) => frame.op).filter((op) => op !== 1);
  assert.deepEqual(order, [10, 22, 13, 0, 0, 0, 0]);
});

// covers: G2
test('acknowledged_messages_are_trimmed_and_others_resent_on_resume', async (t) => {
  const server = await startServer(t);
  await server.dispatchNumbers(5, 'alice');
  const first = await connectWith(t, server, { after: 0 });
  await first.waitUntil('five messages', () => first.messages.length === 5);
  acknowledge(first, 2);
  await pollUntil('two messages to be acknowledged', async () => (await server.userState('alice')).pending === 3);
  first.drop();

  const second = await connectWith(t, server, { after: 2 });
  await second.waitUntil('the other three messages', () => second.messages.length === 3);
  assert.deepEqual(sequences(second), [[2, 3], [3, 4], [4, 5]]);
  acknowledge(second, 5);
  await server.waitForNoPending('alice');
  second.drop();

  const third = await connectWith(t, server, { after: 5 });
  await server.dispatchNumber(5, 'alice');
  await third.waitUntil('a sixth message', () => third.messages.length === 1);
  assert.deepEqual(sequences(third), [[5, 6]]);
  assert.equal(resumed(third)[0].missed, null);
});

// covers: G1, G5
test('client_resumes_at_its_sequence_after_a_kill', async (t) => {
  const server = await startServer(t);
  await server.dispatchNumbers(4, 'alice');
  const first = await connectWith(t, server, { after: 0 });
  await first.waitUntil('four messages', () => first.messages.length === 4);
  await server.kill();
  await server.restart();
  await server.dispatchNumber(4, 'alice');
  const second = await connectWith(t, server, { after: 4 });
  await second.waitUntil('the fifth message', () => second.messages.length === 1);
  assert.deepEqual(sequences(second), [[4, 5]]);
});

// covers: G4
test('cleared_messages_are_reported_as_gap_on_resume', async (t) => {
  const server = await startServer(t);
  await server.dispatchNumbers(3, 'alice');
  await server.request('DELETE', '/v1/users/alice/messages');
  await server.dispatchNumber(3, 'alice');
  const raw = await connectWith(t, server, { after: 1 });
  await raw.waitUntil('the remaining message', () => raw.messages.length === 1);
  assert.deepEqual(sequences(raw), [[3, 4]]);
  assert.deepEqual(resumed(raw), [{ first: 4, last: 4, missed: { from: 2, to: 3, reason: 'cleared' } }]);
});

test('message_acknowledged_by_one_device_is_still_delivered_to_the_other', async (t) => {
  const server = await startServer(t);
  const phone = await connectWith(t, server, { after: 0, device: 'phone-1' });
  const tablet = await connectWith(t, server, { after: 0, device: 'tablet' });
  tablet.drop();
  await server.waitForConnections('alice', 1);
  await server.dispatchNumbers(3, 'alice');
  await phone.waitUntil('three messages', () => phone.messages.length === 3);
  acknowledge(phone, 3);
  const pending = async () => {
    const { devices } = await server.userState('alice');
    return Object.fromEntries(devices.map(({ device, pending }) => [device, pending]));
  };
  await pollUntil('the phone to have acknowledged the messages', async () => (await pending())['phone-1'] === 0);
  assert.deepEqual(await pending(), { 'phone-1': 0, tablet: 3 });
  const { devices } = await server.userState('alice');
  assert.ok(devices.every(({ lastSeen }) => !Number.isNaN(Date.parse(lastSeen))), JSON.stringify(devices));

  const reconnected = await connectWith(t, server, { device: 'tablet' });
  await reconnected.waitUntil('all three messages', () => reconnected.messages.length === 3);
  assert.deepEqual(reconnected.messages.map((message) => message.d.n), range(3));
});

test('device_without_after_acknowledges_by_op_11_as_clients_of_the_original_do', async (t) => {
  const server = await startServer(t);
  await (await connectWith(t, server, { device: 'phone-1' })).drop();
  await server.dispatchNumbers(3, 'alice');
  const phone = await connectWith(t, server, { device: 'phone-1' });
  phone.send({ op: 11, d: {} });
  await phone.waitUntil('three messages and an op 1', () => phone.messages.length === 3 && phone.frames.at(-1).op === 1);
  assert.deepEqual(phone.messages.map((message) => message.s), range(3, 1));
  assert.deepEqual(resumed(phone), []);
  phone.send({ op: 11, d: {} });
  await server.waitForNoPending('alice');
});

test('op_3_of_client_that_does_not_resume_closes_with_1008', async (t) => {
  const server = await startServer(t);
  const raw = await connectWith(t, server, {});
  acknowledge(raw, 1);
  assert.equal(await raw.waitForClose(), 1008);
});
