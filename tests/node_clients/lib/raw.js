'use strict';
// A peer that is nothing but a socket: it says exactly what it is told to, and answers nothing by itself.

const net = require('node:net');
const { FrameReader, OPCODE, frame, text } = require('./frames');
const { Changes } = require('./wait');

const HANDSHAKE = [
  'Host: localhost',
  'Connection: Upgrade',
  'Upgrade: websocket',
  'Sec-WebSocket-Version: 13',
  'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==',
];

class Raw {
  #changes = new Changes();
  #reader = new FrameReader({ handshake: true });

  /** The texts received so far, as they came. */
  texts = [];
  /** The HTTP head of the server's answer. */
  head = '';
  /** Payloads of pings received. */
  pings = [];
  /** Close code received: 1005 without one, 1006 when the connection ended without a close frame. */
  closed;
  /** The reason in the close frame. */
  reason;

  constructor(port, target = '/') {
    this.socket = net.connect(port, '127.0.0.1');
    this.socket.setNoDelay(true);
    this.target = target;
    this.socket.on('data', (bytes) => {
      for (const piece of this.#reader.push(bytes)) this.#take(piece);
      this.#changes.notify();
    });
    this.socket.on('error', () => {});
    this.socket.on('close', () => {
      this.closed ??= 1006;
      this.#changes.notify();
    });
  }

  /** Asks for a WebSocket, and waits until there is one. */
  async upgrade() {
    this.write(`GET ${this.target} HTTP/1.1\r\n${HANDSHAKE.join('\r\n')}\r\n\r\n`);
    await this.until('an answer to the handshake', () => this.head || this.closed);
    if (!this.head.startsWith('HTTP/1.1 101 ')) throw new Error(`no WebSocket: ${this.head || 'closed'}`);
    return this;
  }

  /** Everything received, parsed. */
  get frames() {
    return this.texts.map((line) => JSON.parse(line));
  }

  /** The application's messages among them. */
  get messages() {
    return this.frames.filter((each) => each.op === 0);
  }

  write(bytes) {
    this.socket.write(bytes);
  }

  send(object) {
    this.write(text(JSON.stringify(object)));
  }

  pong(payload) {
    this.write(frame(OPCODE.PONG, payload));
  }

  async authenticate(token, options = { shouldSync: true }) {
    this.send({ op: 2, d: { token, ...options } });
    await this.until('op 22', () => this.frames.some((each) => each.op === 22));
  }

  until(what, ok, ms) {
    return this.#changes.until(() => `${what}; got ${this.texts.join(' ').slice(-500)} and close ${this.closed}`, ok, ms);
  }

  /** Resolves with the close code. */
  waitForClose(ms) {
    return this.until('the connection to be closed', () => this.closed, ms);
  }

  end() {
    this.socket.destroy();
  }

  #take({ opcode, payload }) {
    if (opcode === undefined) this.head = payload;
    if (opcode === OPCODE.TEXT) this.texts.push(payload.toString());
    if (opcode === OPCODE.PING) this.pings.push(payload);
    if (opcode === OPCODE.CLOSE) {
      this.closed = payload.length >= 2 ? payload.readUInt16BE(0) : 1005;
      this.reason = payload.subarray(2).toString();
      this.write(frame(OPCODE.CLOSE, payload));
    }
  }
}

/** An upgraded connection that is dropped when test `t` ends. */
async function open(t, server, target) {
  const raw = new Raw(server.port, target);
  t.after(() => raw.end());
  return raw.upgrade();
}

module.exports = { HANDSHAKE, Raw, open };
