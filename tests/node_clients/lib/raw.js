'use strict';
// A WebSocket client on a plain socket: it sends only what a test sends, except the answer to a close frame.

const net = require('node:net');
const { FrameReader, OPCODE, encodeFrame, encodeText } = require('./frames');
const { ChangeNotifier } = require('./wait');

const HANDSHAKE = [
  'Host: localhost',
  'Connection: Upgrade',
  'Upgrade: websocket',
  'Sec-WebSocket-Version: 13',
  'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==',
];

class RawClient {
  #changes = new ChangeNotifier();
  #reader = new FrameReader({ handshake: true });

  /** Payloads of the text frames received so far. */
  texts = [];
  /** HTTP head of the response to the handshake. */
  responseHead = '';
  /** Payloads of the pings received so far. */
  pings = [];
  /** Close code received: 1005 for a close frame without a code, 1006 for a connection that ended without a close frame. */
  closeCode;
  /** Reason in the close frame. */
  closeReason;

  constructor(port, target = '/') {
    this.socket = net.connect(port, '127.0.0.1');
    this.socket.setNoDelay(true);
    this.target = target;
    this.socket.on('data', (bytes) => {
      for (const frame of this.#reader.push(bytes)) this.#handle(frame);
      this.#changes.notify();
    });
    this.socket.on('error', () => {});
    this.socket.on('close', () => {
      this.closeCode ??= 1006;
      this.#changes.notify();
    });
  }

  /** Performs the WebSocket handshake. */
  async upgrade() {
    this.write(`GET ${this.target} HTTP/1.1\r\n${HANDSHAKE.join('\r\n')}\r\n\r\n`);
    await this.waitUntil('a response to the handshake', () => this.responseHead || this.closeCode);
    const accepted = this.responseHead.startsWith('HTTP/1.1 101 ');
    if (!accepted) throw new Error(`the handshake failed: ${this.responseHead || 'closed'}`);
    return this;
  }

  /** Frames received so far, parsed. */
  get frames() {
    return this.texts.map((text) => JSON.parse(text));
  }

  /** Messages (op 0) among these frames. */
  get messages() {
    return this.frames.filter((frame) => frame.op === 0);
  }

  write(bytes) {
    this.socket.write(bytes);
  }

  send(object) {
    this.write(encodeText(JSON.stringify(object)));
  }

  sendPong(payload) {
    this.write(encodeFrame(OPCODE.PONG, payload));
  }

  async authenticate(token, options = { shouldSync: true }) {
    this.send({ op: 2, d: { token, ...options } });
    await this.waitUntil('op 22', () => this.frames.some((frame) => frame.op === 22));
  }

  waitUntil(description, condition, ms) {
    const received = () => `${this.texts.join(' ').slice(-500)}, close code ${this.closeCode}`;
    return this.#changes.waitUntil(() => `${description}; received ${received()}`, condition, ms);
  }

  /** Resolves with the close code. */
  waitForClose(ms) {
    return this.waitUntil('the connection to close', () => this.closeCode, ms);
  }

  /** Drops the connection without a close frame. */
  drop() {
    this.socket.destroy();
  }

  #handle({ opcode, payload }) {
    if (opcode === undefined) this.responseHead = payload;
    if (opcode === OPCODE.TEXT) this.texts.push(payload.toString());
    if (opcode === OPCODE.PING) this.pings.push(payload);
    if (opcode === OPCODE.CLOSE) {
      this.closeCode = payload.length >= 2 ? payload.readUInt16BE(0) : 1005;
      this.closeReason = payload.subarray(2).toString();
      this.write(encodeFrame(OPCODE.CLOSE, payload));
    }
  }
}

/** Connects a raw client that is dropped when test `t` ends. */
async function connectRaw(t, server, target) {
  const raw = new RawClient(server.port, target);
  t.after(() => raw.drop());
  return raw.upgrade();
}

module.exports = { HANDSHAKE, RawClient, connectRaw };
