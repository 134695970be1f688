'use strict';
// Tests limits on frames of a client, the frames that do not count, and that close codes and reasons reach the client.

const assert = require('node:assert/strict');
const net = require('node:net');
const test = require('node:test');
const WebSocket = require('ws');
const { FrameReader, OPCODE, encodeFrame, encodeText } = require('./lib/frames');
const { HANDSHAKE, connectRaw } = require('./lib/raw');
const { startServer } = require('./lib/server');
const { withTimeout } = require('./lib/wait');

const repeat = (count, createFrame) => Buffer.concat(Array.from({ length: count }, createFrame));
const encodeJson = (object) => encodeText(JSON.stringify(object));

test('first_acknowledgement_of_each_message_does_not_count_as_frame', async (t) => {
  // Limit: 10 frames per second, 100 at once.
  const server = await startServer(t, { limits: { framesPerSecond: 10 } });
  await server.dispatchNumbers(400, 'alice');
  const raw = await connectRaw(t, server);
  await raw.authenticate('alice', { after: 0 });
  await raw.waitUntil('all messages', () => raw.messages.length === 400);
  // In reverse order: an application that processes messages concurrently acknowledges them in any order.
  const sequences = raw.messages.map((message) => message.s).reverse();
  raw.write(Buffer.concat(sequences.map((s) => encodeJson({ op: 3, d: { s } }))));
  await server.waitForNoPending('alice');
  assert.equal(raw.closeCode, undefined);
  // A second acknowledgement of each message counts.
  raw.write(repeat(400, () => encodeJson({ op: 3, d: { s: 1 } })));
  assert.equal(await raw.waitForClose(), 1008);
  assert.equal(raw.closeReason, 'too many frames');
});

test('answers_to_op_1_and_pings_do_not_count_as_frames', async (t) => {
  // Limit: 1 frame per second, 10 at once.
  const server = await startServer(t, { heartbeat: { enabled: true, interval: 100, maxAttempts: 100 }, limits: { framesPerSecond: 1 } });
  for (const answer of ['op 11', 'pong']) {
    const raw = await connectRaw(t, server);
    await raw.authenticate('alice');
    for (let n = 0; n < 20; n += 1) {
      if (answer === 'op 11') {
        await raw.waitUntil('op 1', () => raw.frames.filter(({ op }) => op === 1).length > n);
        raw.send({ op: 11, d: {} });
      } else {
        await raw.waitUntil('a ping', () => raw.pings.length > n);
        raw.sendPong(raw.pings[n]);
      }
    }
    assert.equal(raw.closeCode, undefined, answer);
    raw.drop();
  }
});

for (const [kind, bytes] of Object.entries({
  op_11_frames: encodeJson({ op: 11, d: {} }),
  pongs: encodeFrame(OPCODE.PONG, 'unrequested'),
  pings: encodeFrame(OPCODE.PING, ''),
  messages: encodeJson({ op: 0, d: {}, t: 'T' }),
})) {
  test(`${kind}_above_the_frame_rate_close_with_1008`, async (t) => {
    const server = await startServer(t, { limits: { framesPerSecond: 10 } });
    const raw = await connectRaw(t, server);
    await raw.authenticate('alice');
    raw.write(repeat(500, () => bytes));
    assert.equal(await raw.waitForClose(), 1008);
    assert.equal(raw.closeReason, 'too many frames');
  });
}

/** Connects with the library `ws`, and resolves with the close code and reason that it reports. */
function closeOf(t, server, send) {
  const socket = new WebSocket(server.url);
  t.after(() => socket.terminate());
  socket.on('error', () => {});
  socket.once('open', () => send(socket));
  return withTimeout('the connection to close', new Promise((resolve) => {
    socket.once('close', (code, reason) => resolve([code, reason.toString()]));
  }));
}

test('close_code_reaches_client_with_unread_data_in_flight', async (t) => {
  const server = await startServer(t);
  for (let round = 0; round < 5; round += 1) {
    const large = await closeOf(t, server, (socket) => socket.send('x'.repeat(10_000_000)));
    assert.deepEqual(large, [1009, 'the frame is too large']);
    const flood = await closeOf(t, server, (socket) => {
      for (let n = 0; n < 20_000; n += 1) socket.send('{"op":0,"d":{"n":"0123456789012345678901234567890123456789"},"t":"T"}');
    });
    assert.deepEqual(flood, [1008, 'too many frames']);
    const rejected = await closeOf(t, server, (socket) => {
      socket.send('{"op":2,"d":{}}');
      for (let n = 0; n < 5_000; n += 1) socket.send(JSON.stringify({ op: 0, d: 'x'.repeat(1000) }));
    });
    assert.deepEqual(rejected, [1008, 'authentication failed']);
  }
});

test('close_code_reaches_client_that_reads_only_after_sending_everything', async (t) => {
  const server = await startServer(t);
  const socket = net.connect(server.port, '127.0.0.1');
  t.after(() => socket.destroy());
  const reader = new FrameReader({ handshake: true });
  let code;
  const ended = new Promise((resolve, reject) => socket.once('close', resolve).once('error', reject));
  socket.pause();
  socket.on('data', (bytes) => {
    for (const { opcode, payload } of reader.push(bytes)) if (opcode === OPCODE.CLOSE) code = payload.readUInt16BE(0);
  });
  socket.write(`GET / HTTP/1.1\r\n${HANDSHAKE.join('\r\n')}\r\n\r\n`);
  await withTimeout('all frames to be sent', new Promise((resolve) => {
    socket.write(repeat(20_000, () => encodeJson({ op: 0, d: 'x'.repeat(1000) })), resolve);
  }));
  socket.resume();
  await withTimeout('the connection to close', ended);
  assert.equal(code, 1008);
});

test('unlimited_fragments_close_with_1008', async (t) => {
  const first = encodeText('{"op":', { fin: false });
  const empty = encodeFrame(OPCODE.CONTINUATION, '', { fin: false });
  const ping = encodeFrame(OPCODE.PING, '');
  for (const [limits, unit, reason] of [
    [{}, [empty], 'too many frames'],
    [{}, [empty, ping], 'too many frames'],
    [{ framesPerSecond: 1_000_000 }, [empty], 'too many fragments of one message'],
    [{ framesPerSecond: 1_000_000 }, [encodeFrame(OPCODE.CONTINUATION, ' ', { fin: false })], 'too many fragments of one message'],
  ]) {
    const server = await startServer(t, { limits });
    const raw = await connectRaw(t, server);
    raw.write(Buffer.concat([first, repeat(5_000, () => Buffer.concat(unit))]));
    assert.equal(await raw.waitForClose(), 1008);
    assert.equal(raw.closeReason, reason);
  }
});

test('message_in_many_fragments_is_accepted', async (t) => {
  const server = await startServer(t);
  const raw = await connectRaw(t, server);
  const whole = '{"op":2,"d":{"token":"alice"}}';
  const fragments = [...whole].map((character, index) =>
    encodeFrame(index === 0 ? OPCODE.TEXT : OPCODE.CONTINUATION, character, { fin: index === whole.length - 1 }));
  const empty = encodeFrame(OPCODE.CONTINUATION, '', { fin: false });
  raw.write(Buffer.concat([fragments[0], repeat(500, () => empty), encodeFrame(OPCODE.PING, ''), ...fragments.slice(1)]));
  await raw.waitUntil('op 22', () => raw.frames.some(({ op }) => op === 22));
});

test('each_cause_of_a_close_has_its_own_reason', async (t) => {
  const server = await startServer(t);
  const causes = {
    'a client must mask its frames': [1002, encodeText('{"op":1}', { masked: false })],
    'reserved bits are set, and no extension was agreed on': [1002, encodeText('{"op":1}', { reserved: 4 })],
    'a reserved WebSocket opcode': [1002, encodeFrame(3, 'x')],
    'a continuation frame without a message': [1002, encodeFrame(OPCODE.CONTINUATION, 'x')],
    'a new message before the last one was complete': [1002, Buffer.concat([encodeText('{', { fin: false }), encodeText('{}')])],
    'a control frame must not be fragmented': [1002, encodeFrame(OPCODE.PING, 'x', { fin: false })],
    'a control frame has at most 125 bytes': [1002, encodeFrame(OPCODE.PING, 'x'.repeat(126))],
    'a close frame has no body, or a code of two bytes and a reason': [1002, encodeFrame(OPCODE.CLOSE, 'x')],
    '1005, 1006 and 1015 must not stand in a close frame': [1002, encodeFrame(OPCODE.CLOSE, Buffer.from([3, 0xed]))],
    'a close code is needed that is defined, or one from 3000 to 4999': [1002, encodeFrame(OPCODE.CLOSE, Buffer.from([0, 1]))],
    'the reason in a close frame must be UTF-8': [1007, encodeFrame(OPCODE.CLOSE, Buffer.from([3, 0xe8, 0xff]))],
    'binary frames are not understood': [1003, encodeFrame(OPCODE.BINARY, 'x')],
    'a text frame must be UTF-8': [1007, encodeText(Buffer.from([0xff]))],
    'not a JSON text': [1007, encodeText('{')],
    'the frame is too large': [1009, encodeText('x', { length: 10_000_000 })],
    'this opcode is not for clients': [1008, encodeJson({ op: 10, d: {} })],
    'the data of an authentication must be an object': [1008, encodeJson({ op: 2 })],
    'nested too deeply': [1008, encodeText(`{"op":0,"d":${'['.repeat(200)}${']'.repeat(200)}}`)],
    'authentication failed': [1008, encodeJson({ op: 2, d: { token: '' } })],
  };
  for (const [reason, [code, bytes]] of Object.entries(causes)) {
    const raw = await connectRaw(t, server);
    raw.write(bytes);
    await raw.waitForClose();
    assert.deepEqual([raw.closeCode, raw.closeReason], [code, reason]);
  }
});

test('first_subprotocol_offered_is_chosen', async (t) => {
  const server = await startServer(t);
  for (const [offered, chosen] of [[['mesa'], 'mesa'], [['chat.v2', 'mesa'], 'chat.v2'], [[], '']]) {
    const socket = new WebSocket(server.url, offered);
    t.after(() => socket.terminate());
    await withTimeout('a hello', new Promise((resolve, reject) => socket.once('message', resolve).once('error', reject)));
    assert.equal(socket.protocol, chosen);
  }
});
