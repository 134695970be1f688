'use strict';
// Tests malformed frames and handshakes: their connection closes, and other connections are not affected.

const assert = require('node:assert/strict');
const test = require('node:test');
const { TestClient } = require('./lib/clients');
const { FrameReader, OPCODE, encodeFrame, encodeText } = require('./lib/frames');
const { HANDSHAKE, RawClient, connectRaw } = require('./lib/raw');
const { AUTHENTICATIONS, BYTES, TEXTS, UNUSUAL } = require('./lib/malformed_frames');
const { startServer } = require('./lib/server');

/** Starts a server with a client that must not be affected. `assertUnaffected()` sends that client a message. */
async function startWithBystander(t, config) {
  const server = await startServer(t, config);
  const bystander = new TestClient('original158', server.url);
  t.after(() => bystander.discard());
  await bystander.connect();
  await bystander.authenticateAs('bystander');
  let n = 0;
  const assertUnaffected = async (cause) => {
    n += 1;
    await server.dispatchNumber(n, 'bystander');
    await bystander.waitForNumber(n);
    assert.deepEqual(bystander.closeCodes, [], cause);
  };
  return { server, assertUnaffected };
}

/** Sends each row on its own connection, and asserts the close code. */
async function assertClosed(t, rows, { authenticated }) {
  const { server, assertUnaffected } = await startWithBystander(t);
  for (const [name, content, codes] of rows) {
    await t.test(name, async (run) => {
      const raw = await connectRaw(run, server);
      if (authenticated) await raw.authenticate('mallory');
      raw.write(typeof content === 'string' ? encodeText(content) : content);
      const code = await raw.waitForClose();
      assert.ok(codes.includes(code), `expected close code ${codes.join(' or ')}, got ${code}`);
      await assertUnaffected(name);
    });
  }
}

test('malformed_texts_before_authentication_close_their_connection', (t) =>
  assertClosed(t, [...TEXTS, ...AUTHENTICATIONS], { authenticated: false }));
test('malformed_texts_after_authentication_close_their_connection', (t) => assertClosed(t, TEXTS, { authenticated: true }));
test('malformed_bytes_before_authentication_close_their_connection', (t) => assertClosed(t, BYTES, { authenticated: false }));
test('malformed_bytes_after_authentication_close_their_connection', (t) => assertClosed(t, BYTES, { authenticated: true }));

test('invalid_close_frame_is_answered_with_its_cause', async (t) => {
  const { server, assertUnaffected } = await startWithBystander(t);
  const closeBody = (code, reason = '') => Buffer.concat([Buffer.from([code >> 8, code & 0xff]), Buffer.from(reason)]);
  const expected = [
    [Buffer.from('x'), 1002, /^a close frame has no body, or a code/],
    ...[1005, 1006, 1015].map((code) => [closeBody(code), 1002, /^1005, 1006 and 1015 must not stand/]),
    ...[0, 7, 999, 1004, 1016, 2999, 5000, 65_535].map((code) => [closeBody(code), 1002, /^a close code is needed/]),
    [closeBody(1000, Buffer.from([0xff])), 1007, /^the reason in a close frame must be UTF-8/],
    [closeBody(4000, Buffer.from([0xed, 0xa0, 0xbd])), 1007, /^the reason in a close frame must be UTF-8/],
    ...[1000, 1003, 1007, 1014, 3000, 4999].map((code) => [closeBody(code, 'é'), code, /^é$/]),
    [Buffer.alloc(0), 1005, /^$/],
  ];
  for (const [body, code, reason] of expected) {
    for (const byteByByte of [false, true]) {
      const raw = await connectRaw(t, server);
      await raw.waitUntil('a hello', () => raw.texts.length > 0);
      const whole = Buffer.concat([encodeText('{"op":1}'), encodeFrame(OPCODE.CLOSE, body)]);
      if (byteByByte) for (const byte of whole) raw.write(Buffer.from([byte]));
      else raw.write(whole);
      assert.equal(await raw.waitForClose(), code, body.toString('hex'));
      assert.match(raw.closeReason, reason);
      assert.ok(raw.frames.some(({ op }) => op === 11), 'expected an answer to the op 1 before the close frame');
      await raw.waitUntil('the end of the connection', () => raw.socket.readableEnded || raw.socket.destroyed);
      await assertUnaffected(body.toString('hex'));
    }
  }
});

test('unusual_frames_do_not_affect_other_connections', async (t) => {
  const { server, assertUnaffected } = await startWithBystander(t);
  for (const [name, content] of UNUSUAL) {
    const raw = await connectRaw(t, server);
    raw.write(encodeText(content));
    raw.send({ op: 2, d: { token: 'mallory' } });
    await raw.waitUntil('op 22 or a close', () => raw.closeCode || raw.frames.some((each) => each.op === 22));
    await assertUnaffected(name);
    raw.drop();
  }
});

test('valid_message_in_fragments_is_accepted', async (t) => {
  const { server } = await startWithBystander(t);
  const raw = await connectRaw(t, server);
  const whole = Buffer.from('{"op":2,"d":{"token":"Jürgen"}}');
  const middle = whole.indexOf('ü') + 1; // inside the two bytes of the character
  for (const byte of encodeText(whole.subarray(0, middle), { fin: false })) raw.write(Buffer.from([byte]));
  raw.write(encodeFrame(OPCODE.PING, 'between'));
  raw.write(encodeFrame(OPCODE.CONTINUATION, whole.subarray(middle)));
  await raw.waitUntil('op 22', () => raw.frames.some((each) => each.op === 22));
  assert.deepEqual(raw.frames.find((each) => each.op === 22).d, { id: 'Jürgen' });
});

test('connection_that_ends_within_a_frame_does_not_affect_other_connections', async (t) => {
  const { server, assertUnaffected } = await startWithBystander(t);
  const whole = encodeText('{"op":2,"d":{"token":"mallory"}}');
  for (let length = 1; length < whole.length; length += 1) {
    const raw = await connectRaw(t, server);
    raw.write(whole.subarray(0, length));
    await raw.waitUntil('a hello', () => raw.texts.length > 0);
    raw.drop();
  }
  await assertUnaffected('frames cut at every byte');
});

test('frames_above_the_frame_rate_close_with_1008', async (t) => {
  const { server, assertUnaffected } = await startWithBystander(t, { limits: { framesPerSecond: 10 } });
  const raw = await connectRaw(t, server);
  await raw.authenticate('mallory');
  raw.write(Buffer.concat(Array.from({ length: 500 }, () => encodeText('{"op":11,"d":{}}'))));
  assert.equal(await raw.waitForClose(), 1008);
  await assertUnaffected('frames above the rate');
});

const request = (...lines) => `${lines.join('\r\n')}\r\n\r\n`;
const without = (name) => HANDSHAKE.filter((line) => !line.startsWith(`${name}:`));
const HANDSHAKES = [
  ['no HTTP', '\u0016\u0003\u0001\u0000\u00f4\u0001\u0000\r\n\r\n'],
  ['an invalid request line', request('\u0001\u0002\u0003 / HTTP/1.1', ...HANDSHAKE)],
  ['HTTP/1.0', request('GET / HTTP/1.0', ...HANDSHAKE)],
  ['a POST', request('POST / HTTP/1.1', ...HANDSHAKE, 'Content-Length: 0')],
  ['no Sec-WebSocket-Key', request('GET / HTTP/1.1', ...without('Sec-WebSocket-Key'))],
  ['no Sec-WebSocket-Version', request('GET / HTTP/1.1', ...without('Sec-WebSocket-Version'))],
  ['an unsupported version', request('GET / HTTP/1.1', ...without('Sec-WebSocket-Version'), 'Sec-WebSocket-Version: 8')],
  ['no Upgrade header', request('GET / HTTP/1.1', ...without('Upgrade'))],
  ['an upgrade to another protocol', request('GET / HTTP/1.1', ...without('Upgrade'), 'Upgrade: h2c')],
  ['no Connection header', request('GET / HTTP/1.1', ...without('Connection'))],
  ['another path', request('GET /elsewhere HTTP/1.1', ...HANDSHAKE)],
  ['two thousand headers', request('GET / HTTP/1.1', ...HANDSHAKE, ...Array.from({ length: 2000 }, (_, i) => `X-${i}: y`))],
  ['a header of a megabyte', request('GET / HTTP/1.1', ...HANDSHAKE, `X: ${'y'.repeat(1 << 20)}`)],
  ['a folded header', request('GET / HTTP/1.1', ...HANDSHAKE, 'X: y', ' z')],
  ['two Content-Length headers', request('GET / HTTP/1.1', ...HANDSHAKE, 'Content-Length: 1', 'Content-Length: 2')],
];

// The bystander and its dispatches have to meet it, also on a machine that stalls.
const HEADER_TIMEOUT = 10_000;

test('invalid_handshake_is_rejected', async (t) => {
  const { server, assertUnaffected } = await startWithBystander(t, { limits: { headerTimeout: HEADER_TIMEOUT } });
  for (const [name, bytes] of HANDSHAKES) {
    await t.test(name, async (run) => {
      const raw = new RawClient(server.port);
      run.after(() => raw.drop());
      raw.write(bytes);
      await raw.waitUntil('a response or the end', () => raw.responseHead || raw.closeCode);
      assert.match(raw.responseHead || 'closed', /^(HTTP\/1\.[01] 4\d\d |closed)/);
      await assertUnaffected(name);
    });
  }
});

test('handshake_that_never_ends_is_closed_at_the_header_timeout', async (t) => {
  const { server, assertUnaffected } = await startWithBystander(t, { limits: { headerTimeout: HEADER_TIMEOUT } });
  const raw = new RawClient(server.port);
  t.after(() => raw.drop());
  raw.write('GET / HTTP/1.1\r\nHost: localhost\r\n');
  const headers = setInterval(() => raw.write('X-Slow: yes\r\n'), 100);
  await raw.waitForClose().finally(() => clearInterval(headers));
  await assertUnaffected('a slow handshake');
});

test('frame_encoder_of_the_tests_encodes_as_specified', () => {
  const readFrames = (bytes) => new FrameReader().push(bytes);
  const [unmasked] = readFrames(encodeText('hello', { masked: false }));
  assert.deepEqual([unmasked.opcode, unmasked.payload.toString()], [OPCODE.TEXT, 'hello']);
  const masked = encodeText('hello');
  const body = masked.subarray(6).map((byte, index) => byte ^ masked[2 + (index % 4)]);
  assert.deepEqual([masked[0], masked[1], body.toString()], [0x81, 0x85, 'hello']);
  assert.deepEqual([encodeText('x'.repeat(126)).length, encodeText('x'.repeat(65_536)).length], [126 + 8, 65_536 + 14]);
  assert.equal(encodeText('', { fin: false, reserved: 7 })[0], 0x71);
  assert.equal(encodeText('x', { length: 2n ** 62n }).readBigUInt64BE(2), 2n ** 62n);
});
