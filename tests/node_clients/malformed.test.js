'use strict';
// Malformed frames: the connection they came on is closed, and nobody else notices.

const assert = require('node:assert/strict');
const test = require('node:test');
const { Peer } = require('./lib/clients');
const { FrameReader, OPCODE, frame, text } = require('./lib/frames');
const { HANDSHAKE, Raw, open } = require('./lib/raw');
const { AUTHENTICATIONS, BYTES, ODD, TEXTS } = require('./lib/shapes');
const { start } = require('./lib/server');

/** A server, and a client that must not notice anything: `goesOn()` sends it a message. */
async function withBystander(t, config) {
  const server = await start(t, config);
  const bystander = new Peer('stock158', server.url);
  t.after(() => bystander.retire());
  await bystander.connect();
  await bystander.is('bystander');
  let n = 0;
  const goesOn = async (after) => {
    n += 1;
    await server.number(n, 'bystander');
    await bystander.waitForNumber(n);
    assert.deepEqual(bystander.closes, [], after);
  };
  return { server, goesOn };
}

/** Sends each of `shapes` on a connection of its own, and asserts the close code. */
async function refused(t, shapes, { authenticated }) {
  const { server, goesOn } = await withBystander(t);
  for (const [what, content, codes] of shapes) {
    await t.test(what, async (run) => {
      const peer = await open(run, server);
      if (authenticated) await peer.authenticate('mallory');
      peer.write(typeof content === 'string' ? text(content) : content);
      const code = await peer.waitForClose();
      assert.ok(codes.includes(code), `closed with ${code} rather than ${codes.join(' or ')}`);
      await goesOn(what);
    });
  }
}

test('malformed_texts_before_authentication_close_their_connection', (t) =>
  refused(t, [...TEXTS, ...AUTHENTICATIONS], { authenticated: false }));
test('malformed_texts_after_authentication_close_their_connection', (t) => refused(t, TEXTS, { authenticated: true }));
test('malformed_bytes_before_authentication_close_their_connection', (t) => refused(t, BYTES, { authenticated: false }));
test('malformed_bytes_after_authentication_close_their_connection', (t) => refused(t, BYTES, { authenticated: true }));

test('an_illegal_close_frame_is_answered_with_its_cause', async (t) => {
  const { server, goesOn } = await withBystander(t);
  const closing = (code, reason = '') => Buffer.concat([Buffer.from([code >> 8, code & 0xff]), Buffer.from(reason)]);
  const expected = [
    [Buffer.from('x'), 1002, /^a close frame has no body, or a code/],
    ...[1005, 1006, 1015].map((code) => [closing(code), 1002, /^1005, 1006 and 1015 must not stand/]),
    ...[0, 7, 999, 1004, 1016, 2999, 5000, 65_535].map((code) => [closing(code), 1002, /^a close code is needed/]),
    [closing(1000, Buffer.from([0xff])), 1007, /^the reason in a close frame must be UTF-8/],
    [closing(4000, Buffer.from([0xed, 0xa0, 0xbd])), 1007, /^the reason in a close frame must be UTF-8/],
    ...[1000, 1003, 1007, 1014, 3000, 4999].map((code) => [closing(code, 'é'), code, /^é$/]),
    [Buffer.alloc(0), 1005, /^$/],
  ];
  for (const [body, code, reason] of expected) {
    for (const inPieces of [false, true]) {
      const peer = await open(t, server);
      await peer.until('a hello', () => peer.texts.length > 0);
      const whole = Buffer.concat([text('{"op":1}'), frame(OPCODE.CLOSE, body)]);
      if (inPieces) for (const byte of whole) peer.write(Buffer.from([byte]));
      else peer.write(whole);
      assert.equal(await peer.waitForClose(), code, body.toString('hex'));
      assert.match(peer.reason, reason);
      assert.ok(peer.frames.some(({ op }) => op === 11), 'what stood before it is answered');
      await peer.until('the end', () => peer.socket.readableEnded || peer.socket.destroyed);
      await goesOn(body.toString('hex'));
    }
  }
});

test('odd_frames_disturb_nobody', async (t) => {
  const { server, goesOn } = await withBystander(t);
  for (const [what, content] of ODD) {
    const peer = await open(t, server);
    peer.write(text(content));
    peer.send({ op: 2, d: { token: 'mallory' } });
    await peer.until('an answer or the end', () => peer.closed || peer.frames.some((each) => each.op === 22));
    await goesOn(what);
    peer.end();
  }
});

test('a_frame_in_pieces_that_is_right_is_taken', async (t) => {
  const { server } = await withBystander(t);
  const peer = await open(t, server);
  const whole = Buffer.from('{"op":2,"d":{"token":"Jürgen"}}');
  const middle = whole.indexOf('ü') + 1; // within the character
  for (const byte of text(whole.subarray(0, middle), { fin: false })) peer.write(Buffer.from([byte]));
  peer.write(frame(OPCODE.PING, 'between'));
  peer.write(frame(OPCODE.CONTINUATION, whole.subarray(middle)));
  await peer.until('op 22', () => peer.frames.some((each) => each.op === 22));
  assert.deepEqual(peer.frames.find((each) => each.op === 22).d, { id: 'Jürgen' });
});

test('a_connection_that_ends_in_the_middle_of_a_frame_disturbs_nobody', async (t) => {
  const { server, goesOn } = await withBystander(t);
  const whole = text('{"op":2,"d":{"token":"mallory"}}');
  for (let length = 1; length < whole.length; length += 1) {
    const peer = await open(t, server);
    peer.write(whole.subarray(0, length));
    await peer.until('a hello', () => peer.texts.length > 0);
    peer.end();
  }
  await goesOn('frames cut at every byte');
});

test('more_frames_than_allowed_close_with_1008', async (t) => {
  const { server, goesOn } = await withBystander(t, { limits: { framesPerSecond: 10 } });
  const peer = await open(t, server);
  await peer.authenticate('mallory');
  peer.write(Buffer.concat(Array.from({ length: 500 }, () => text('{"op":11,"d":{}}'))));
  assert.equal(await peer.waitForClose(), 1008);
  await goesOn('a flood');
});

const request = (...lines) => `${lines.join('\r\n')}\r\n\r\n`;
const without = (name) => HANDSHAKE.filter((line) => !line.startsWith(`${name}:`));
const HANDSHAKES = [
  ['no HTTP at all', '\u0016\u0003\u0001\u0000\u00f4\u0001\u0000\r\n\r\n'],
  ['a request line of garbage', request('\u0001\u0002\u0003 / HTTP/1.1', ...HANDSHAKE)],
  ['HTTP/1.0', request('GET / HTTP/1.0', ...HANDSHAKE)],
  ['a POST', request('POST / HTTP/1.1', ...HANDSHAKE, 'Content-Length: 0')],
  ['no key', request('GET / HTTP/1.1', ...without('Sec-WebSocket-Key'))],
  ['no version', request('GET / HTTP/1.1', ...without('Sec-WebSocket-Version'))],
  ['an old version', request('GET / HTTP/1.1', ...without('Sec-WebSocket-Version'), 'Sec-WebSocket-Version: 8')],
  ['no upgrade', request('GET / HTTP/1.1', ...without('Upgrade'))],
  ['another upgrade', request('GET / HTTP/1.1', ...without('Upgrade'), 'Upgrade: h2c')],
  ['no connection header', request('GET / HTTP/1.1', ...without('Connection'))],
  ['another path', request('GET /elsewhere HTTP/1.1', ...HANDSHAKE)],
  ['two thousand headers', request('GET / HTTP/1.1', ...HANDSHAKE, ...Array.from({ length: 2000 }, (_, i) => `X-${i}: y`))],
  ['a header of a megabyte', request('GET / HTTP/1.1', ...HANDSHAKE, `X: ${'y'.repeat(1 << 20)}`)],
  ['a header folded', request('GET / HTTP/1.1', ...HANDSHAKE, 'X: y', ' z')],
  ['two lengths', request('GET / HTTP/1.1', ...HANDSHAKE, 'Content-Length: 1', 'Content-Length: 2')],
];

test('what_is_no_handshake_gets_no_websocket', async (t) => {
  const { server, goesOn } = await withBystander(t, { limits: { headerTimeout: 500 } });
  for (const [what, bytes] of HANDSHAKES) {
    await t.test(what, async (run) => {
      const peer = new Raw(server.port);
      run.after(() => peer.end());
      peer.write(bytes);
      await peer.until('a refusal or the end', () => peer.head || peer.closed);
      assert.match(peer.head || 'closed', /^(HTTP\/1\.[01] 4\d\d |closed)/);
      await goesOn(what);
    });
  }
});

test('a_handshake_that_never_ends_is_cut_off', async (t) => {
  const { server, goesOn } = await withBystander(t, { limits: { headerTimeout: 400 } });
  const peer = new Raw(server.port);
  t.after(() => peer.end());
  peer.write('GET / HTTP/1.1\r\nHost: localhost\r\n');
  const drip = setInterval(() => peer.write('X-Slow: yes\r\n'), 100);
  await peer.waitForClose(5000).finally(() => clearInterval(drip));
  await goesOn('a slow handshake');
});

test('the_frames_of_these_tests_are_what_they_say', () => {
  const pieces = (bytes) => new FrameReader().push(bytes);
  const [plain] = pieces(text('hello', { masked: false }));
  assert.deepEqual([plain.opcode, plain.payload.toString()], [OPCODE.TEXT, 'hello']);
  const masked = text('hello');
  const body = masked.subarray(6).map((byte, at) => byte ^ masked[2 + (at % 4)]);
  assert.deepEqual([masked[0], masked[1], body.toString()], [0x81, 0x85, 'hello']);
  assert.deepEqual([text('x'.repeat(126)).length, text('x'.repeat(65_536)).length], [126 + 8, 65_536 + 14]);
  assert.equal(text('', { fin: false, reserved: 7 })[0], 0x71);
  assert.equal(text('x', { length: 2n ** 62n }).readBigUInt64BE(2), 2n ** 62n);
});
