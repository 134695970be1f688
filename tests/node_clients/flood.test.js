'use strict';
// How much a client may send, what is free, and that the close code of a client that sends too much reaches it.

const assert = require('node:assert/strict');
const net = require('node:net');
const test = require('node:test');
const WebSocket = require('ws');
const { FrameReader, OPCODE, frame, text } = require('./lib/frames');
const { HANDSHAKE, open } = require('./lib/raw');
const { start } = require('./lib/server');
const { within } = require('./lib/wait');

const many = (count, of) => Buffer.concat(Array.from({ length: count }, of));
const json = (object) => text(JSON.stringify(object));

test('acknowledging_every_replayed_message_is_free', async (t) => {
  // 10 frames a second, and 100 at once.
  const server = await start(t, { limits: { framesPerSecond: 10 } });
  await server.numbers(400, 'alice');
  const raw = await open(t, server);
  await raw.authenticate('alice', { after: 0 });
  await raw.until('all messages', () => raw.messages.length === 400);
  // In any order, as an application that processes several at once has it.
  const seqs = raw.messages.map((message) => message.s).reverse();
  raw.write(Buffer.concat(seqs.map((s) => json({ op: 3, d: { s } }))));
  await server.allReceived('alice');
  assert.equal(raw.closed, undefined);
  // One more for each is not.
  raw.write(many(400, () => json({ op: 3, d: { s: 1 } })));
  assert.equal(await raw.waitForClose(), 1008);
  assert.equal(raw.reason, 'too many frames');
});

test('answers_to_op_1_and_pings_are_free', async (t) => {
  // Ten frames at once, and one a second.
  const server = await start(t, { heartbeat: { enabled: true, interval: 50, maxAttempts: 100 }, limits: { framesPerSecond: 1 } });
  for (const answers of ['op 11', 'pongs']) {
    const raw = await open(t, server);
    await raw.authenticate('alice');
    for (let n = 0; n < 20; n += 1) {
      if (answers === 'op 11') {
        await raw.until('op 1', () => raw.frames.filter(({ op }) => op === 1).length > n);
        raw.send({ op: 11, d: {} });
      } else {
        await raw.until('a ping', () => raw.pings.length > n);
        raw.pong(raw.pings[n]);
      }
    }
    assert.equal(raw.closed, undefined, answers);
    raw.end();
  }
});

for (const [what, bytes] of Object.entries({
  'op 11': json({ op: 11, d: {} }),
  pongs: frame(OPCODE.PONG, 'nothing asked'),
  pings: frame(OPCODE.PING, ''),
  messages: json({ op: 0, d: {}, t: 'T' }),
})) {
  test(`${what}_without_end_are_closed_with_1008`, async (t) => {
    const server = await start(t, { limits: { framesPerSecond: 10 } });
    const raw = await open(t, server);
    await raw.authenticate('alice');
    raw.write(many(500, () => bytes));
    assert.equal(await raw.waitForClose(), 1008);
    assert.equal(raw.reason, 'too many frames');
  });
}

/** The close code and reason as a client's library reports them. */
function closing(t, server, send) {
  const socket = new WebSocket(server.url);
  t.after(() => socket.terminate());
  socket.on('error', () => {});
  socket.once('open', () => send(socket));
  return within('a close', new Promise((resolve) => {
    socket.once('close', (code, reason) => resolve([code, reason.toString()]));
  }));
}

test('close_code_reaches_a_client_with_much_in_flight', async (t) => {
  const server = await start(t);
  for (let round = 0; round < 5; round += 1) {
    const large = await closing(t, server, (socket) => socket.send('x'.repeat(10_000_000)));
    assert.deepEqual(large, [1009, 'the frame is too large']);
    const flood = await closing(t, server, (socket) => {
      for (let n = 0; n < 20_000; n += 1) socket.send('{"op":0,"d":{"n":"0123456789012345678901234567890123456789"},"t":"T"}');
    });
    assert.deepEqual(flood, [1008, 'too many frames']);
    const refused = await closing(t, server, (socket) => {
      socket.send('{"op":2,"d":{}}');
      for (let n = 0; n < 5_000; n += 1) socket.send(JSON.stringify({ op: 0, d: 'x'.repeat(1000) }));
    });
    assert.deepEqual(refused, [1008, 'authentication failed']);
  }
});

test('close_code_reaches_a_client_that_reads_only_after_it_has_sent_everything', async (t) => {
  const server = await start(t);
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
  await within('everything to be sent', new Promise((resolve) => {
    socket.write(many(20_000, () => json({ op: 0, d: 'x'.repeat(1000) })), resolve);
  }));
  socket.resume();
  await within('the end', ended);
  assert.equal(code, 1008);
});

test('fragments_without_end_are_closed_with_1008', async (t) => {
  const begun = text('{"op":', { fin: false });
  const empty = frame(OPCODE.CONTINUATION, '', { fin: false });
  const ping = frame(OPCODE.PING, '');
  for (const [limits, unit, reason] of [
    [{}, [empty], 'too many frames'],
    [{}, [empty, ping], 'too many frames'],
    [{ framesPerSecond: 1_000_000 }, [empty], 'too many fragments of one message'],
    [{ framesPerSecond: 1_000_000 }, [frame(OPCODE.CONTINUATION, ' ', { fin: false })], 'too many fragments of one message'],
  ]) {
    const server = await start(t, { limits });
    const raw = await open(t, server);
    raw.write(Buffer.concat([begun, many(5_000, () => Buffer.concat(unit))]));
    assert.equal(await raw.waitForClose(), 1008);
    assert.equal(raw.reason, reason);
  }
});

test('message_in_many_fragments_is_taken', async (t) => {
  const server = await start(t);
  const raw = await open(t, server);
  const whole = '{"op":2,"d":{"token":"alice"}}';
  const pieces = [...whole].map((letter, at) =>
    frame(at === 0 ? OPCODE.TEXT : OPCODE.CONTINUATION, letter, { fin: at === whole.length - 1 }));
  const empty = frame(OPCODE.CONTINUATION, '', { fin: false });
  raw.write(Buffer.concat([pieces[0], many(500, () => empty), frame(OPCODE.PING, ''), ...pieces.slice(1)]));
  await raw.until('op 22', () => raw.frames.some(({ op }) => op === 22));
});

test('each_cause_of_a_close_has_its_own_reason', async (t) => {
  const server = await start(t);
  const causes = {
    'a client must mask its frames': [1002, text('{"op":1}', { masked: false })],
    'reserved bits are set, and no extension was agreed on': [1002, text('{"op":1}', { reserved: 4 })],
    'a reserved WebSocket opcode': [1002, frame(3, 'x')],
    'a continuation frame without a message': [1002, frame(OPCODE.CONTINUATION, 'x')],
    'a new message before the last one was complete': [1002, Buffer.concat([text('{', { fin: false }), text('{}')])],
    'a control frame must not be fragmented': [1002, frame(OPCODE.PING, 'x', { fin: false })],
    'a control frame has at most 125 bytes': [1002, frame(OPCODE.PING, 'x'.repeat(126))],
    'a close frame has no body, or a code of two bytes and a reason': [1002, frame(OPCODE.CLOSE, 'x')],
    '1005, 1006 and 1015 must not stand in a close frame': [1002, frame(OPCODE.CLOSE, Buffer.from([3, 0xed]))],
    'a close code is needed that is defined, or one from 3000 to 4999': [1002, frame(OPCODE.CLOSE, Buffer.from([0, 1]))],
    'the reason in a close frame must be UTF-8': [1007, frame(OPCODE.CLOSE, Buffer.from([3, 0xe8, 0xff]))],
    'binary frames are not understood': [1003, frame(OPCODE.BINARY, 'x')],
    'a text frame must be UTF-8': [1007, text(Buffer.from([0xff]))],
    'not a JSON text': [1007, text('{')],
    'the frame is too large': [1009, text('x', { length: 10_000_000 })],
    'this opcode is not for clients': [1008, json({ op: 10, d: {} })],
    'the data of an authentication must be an object': [1008, json({ op: 2 })],
    'nested too deeply': [1008, text(`{"op":0,"d":${'['.repeat(200)}${']'.repeat(200)}}`)],
    'authentication failed': [1008, json({ op: 2, d: { token: '' } })],
  };
  for (const [reason, [code, bytes]] of Object.entries(causes)) {
    const raw = await open(t, server);
    raw.write(bytes);
    await raw.waitForClose();
    assert.deepEqual([raw.closed, raw.reason], [code, reason]);
  }
});

test('first_subprotocol_offered_is_chosen', async (t) => {
  const server = await start(t);
  for (const [offered, chosen] of [[['mesa'], 'mesa'], [['chat.v2', 'mesa'], 'chat.v2'], [[], '']]) {
    const socket = new WebSocket(server.url, offered);
    t.after(() => socket.terminate());
    await within('a hello', new Promise((resolve, reject) => socket.once('message', resolve).once('error', reject)));
    assert.equal(socket.protocol, chosen);
  }
});
