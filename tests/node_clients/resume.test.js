'use strict';
// Clients that resume, and devices: a raw client that says what the protocol says.

const assert = require('node:assert/strict');
const test = require('node:test');
const { range } = require('./lib/suite');
const { open } = require('./lib/raw');
const { start } = require('./lib/server');
const { eventually } = require('./lib/wait');

/** A raw client that has asked to resume, or to be a device. */
async function come(t, server, options, user = 'alice') {
  const raw = await open(t, server);
  await raw.authenticate(user, options);
  return raw;
}

const told = (raw) => raw.frames.filter((frame) => frame.op === 13).map((frame) => frame.d);
const places = (raw) => raw.messages.map(({ d, s }) => [d.n, s]);
const confirm = (raw, s) => raw.send({ op: 3, d: { s } });

test('who_resumes_gets_the_places_in_the_log_old_and_live', async (t) => {
  const server = await start(t);
  await server.numbers(3, 'alice');
  const raw = await come(t, server, { after: 0 });
  await raw.until('three messages', () => raw.messages.length === 3);
  await server.number(3, 'alice');
  await raw.until('a fourth', () => raw.messages.length === 4);
  assert.deepEqual(places(raw), [[0, 1], [1, 2], [2, 3], [3, 4]]);
  assert.deepEqual(told(raw), [{ first: 1, last: 3, missed: null }]);
  const order = raw.frames.map((frame) => frame.op).filter((op) => op !== 1);
  assert.deepEqual(order, [10, 22, 13, 0, 0, 0, 0]);
});

test('a_receipt_lets_the_server_forget_and_none_does_not', async (t) => {
  const server = await start(t);
  await server.numbers(5, 'alice');
  const first = await come(t, server, { after: 0 });
  await first.until('five messages', () => first.messages.length === 5);
  confirm(first, 2);
  await eventually('two to be received', async () => (await server.user('alice')).pending === 3);
  first.end();

  const second = await come(t, server, { after: 2 });
  await second.until('the other three', () => second.messages.length === 3);
  assert.deepEqual(places(second), [[2, 3], [3, 4], [4, 5]]);
  confirm(second, 5);
  await server.allReceived('alice');
  second.end();

  const third = await come(t, server, { after: 5 });
  await server.number(5, 'alice');
  await third.until('a sixth', () => third.messages.length === 1);
  assert.deepEqual(places(third), [[5, 6]]);
  assert.equal(told(third)[0].missed, null);
});

test('the_place_survives_a_kill', async (t) => {
  const server = await start(t);
  await server.numbers(4, 'alice');
  const first = await come(t, server, { after: 0 });
  await first.until('four messages', () => first.messages.length === 4);
  await server.kill();
  await server.restart();
  await server.number(4, 'alice');
  const second = await come(t, server, { after: 4 });
  await second.until('the fifth', () => second.messages.length === 1);
  assert.deepEqual(places(second), [[4, 5]]);
});

test('what_was_cleared_is_told_to_who_resumes', async (t) => {
  const server = await start(t);
  await server.numbers(3, 'alice');
  await server.ask('DELETE', '/v1/users/alice/messages');
  await server.number(3, 'alice');
  const raw = await come(t, server, { after: 1 });
  await raw.until('what is left', () => raw.messages.length === 1);
  assert.deepEqual(places(raw), [[3, 4]]);
  assert.deepEqual(told(raw), [{ first: 4, last: 4, missed: { from: 2, to: 3, reason: 'cleared' } }]);
});

test('what_one_device_has_received_the_other_still_gets', async (t) => {
  const server = await start(t);
  const phone = await come(t, server, { after: 0, device: 'phone-1' });
  const tablet = await come(t, server, { after: 0, device: 'tablet' });
  tablet.end();
  await server.connections('alice', 1);
  await server.numbers(3, 'alice');
  await phone.until('three messages', () => phone.messages.length === 3);
  confirm(phone, 3);
  const pending = async () => {
    const { devices } = await server.user('alice');
    return Object.fromEntries(devices.map((each) => [each.device, each.pending]));
  };
  await eventually('the phone to have received them', async () => (await pending())['phone-1'] === 0);
  assert.deepEqual(await pending(), { 'phone-1': 0, tablet: 3 });
  const { devices } = await server.user('alice');
  assert.ok(devices.every((each) => !Number.isNaN(Date.parse(each.lastSeen))), JSON.stringify(devices));

  const back = await come(t, server, { device: 'tablet' });
  await back.until('all three', () => back.messages.length === 3);
  assert.deepEqual(back.messages.map((message) => message.d.n), range(3));
});

test('a_device_without_after_confirms_as_stock_clients_do', async (t) => {
  const server = await start(t);
  await (await come(t, server, { device: 'phone-1' })).end();
  await server.numbers(3, 'alice');
  const phone = await come(t, server, { device: 'phone-1' });
  phone.send({ op: 11, d: {} });
  await phone.until('three messages and a question', () => phone.messages.length === 3 && phone.frames.at(-1).op === 1);
  assert.deepEqual(phone.messages.map((message) => message.s), range(3, 1));
  assert.deepEqual(told(phone), []);
  phone.send({ op: 11, d: {} });
  await server.allReceived('alice');
});

test('receipts_are_for_clients_that_resume', async (t) => {
  const server = await start(t);
  const raw = await come(t, server, {});
  confirm(raw, 1);
  assert.equal(await raw.waitForClose(), 1008);
});
