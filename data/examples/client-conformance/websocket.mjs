// A WebSocket server with control over each frame, for one connection after the other. It has no dependencies.

import { createHash } from 'node:crypto';
import { createServer } from 'node:http';

const GUID = '258EAFA5-E914-47DA-95CA-C5AB0DC85B11';
const TEXT = 1;
const CLOSE = 8;
const PING = 9;
const PONG = 10;

/** Starts a server on a free port. `onConnection` gets a `Connection` for each WebSocket. */
export async function listen(onConnection) {
  const sockets = new Set();
  const server = createServer((_, response) => response.writeHead(426).end());
  server.on('upgrade', (request, socket) => {
    sockets.add(socket);
    socket.on('close', () => sockets.delete(socket));
    const key = createHash('sha1').update(request.headers['sec-websocket-key'] + GUID).digest('base64');
    socket.write(
      `HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${key}\r\n\r\n`,
    );
    onConnection(new Connection(socket));
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    url: `ws://127.0.0.1:${server.address().port}/`,
    close() {
      for (const socket of sockets) socket.destroy();
      server.close();
    },
  };
}

/** One WebSocket. `onEvent` gets `{ frame }`, `{ pong }`, `{ problem }`, and at the end `{ closed: code }`. */
export class Connection {
  #socket;
  #received = Buffer.alloc(0);
  #parts = [];
  #code = 1006;
  #events = [];
  #onEvent;

  constructor(socket) {
    this.#socket = socket;
    socket.on('data', (bytes) => this.#read(bytes));
    socket.on('close', () => this.#emit({ closed: this.#code }));
    socket.on('error', () => {});
  }

  set onEvent(handler) {
    this.#onEvent = handler;
    for (const event of this.#events.splice(0)) handler(event);
  }

  #emit(event) {
    if (this.#onEvent) this.#onEvent(event);
    else this.#events.push(event);
  }

  send(frame) {
    this.sendText(JSON.stringify(frame));
  }

  /** Sends a text message in this number of fragments. */
  sendText(text, fragments = 1) {
    const bytes = Buffer.from(text);
    const length = Math.ceil(bytes.length / fragments);
    for (let at = 0; at < bytes.length; at += length) {
      const isLast = at + length >= bytes.length;
      this.#write((isLast ? 0x80 : 0) | (at ? 0 : TEXT), bytes.subarray(at, at + length));
    }
  }

  ping(payload) {
    this.#write(0x80 | PING, Buffer.from(payload));
  }

  close(code, reason = '') {
    this.#code = code;
    this.#write(0x80 | CLOSE, Buffer.concat([Buffer.from([code >> 8, code & 0xff]), Buffer.from(reason)]));
  }

  /** Breaks the TCP connection without a close frame. */
  cut() {
    this.#socket.destroy();
  }

  /** Reads and answers nothing more, as a dead network does. */
  freeze() {
    this.#socket.pause();
  }

  #write(first, payload) {
    const { length } = payload;
    const header = length < 126 ? Buffer.from([first, length])
      : length < 1 << 16 ? Buffer.from([first, 126, length >> 8, length & 0xff])
        : Buffer.from([first, 127, 0, 0, 0, 0, ...[24, 16, 8, 0].map((shift) => (length >> shift) & 0xff)]);
    if (!this.#socket.destroyed) this.#socket.write(Buffer.concat([header, payload]));
  }

  #read(bytes) {
    this.#received = Buffer.concat([this.#received, bytes]);
    for (;;) {
      const data = this.#received;
      if (data.length < 2) return;
      let length = data[1] & 0x7f;
      let at = 2;
      if (length === 126 && data.length >= 4) [length, at] = [data.readUInt16BE(2), 4];
      else if (length === 127 && data.length >= 10) [length, at] = [Number(data.readBigUInt64BE(2)), 10];
      else if (length > 125) return;
      const isMasked = data[1] & 0x80;
      if (data.length < at + (isMasked ? 4 : 0) + length) return;
      if (!isMasked) this.#emit({ problem: 'a frame is not masked (RFC 6455, 5.3)' });
      const mask = isMasked ? data.subarray(at, at + 4) : Buffer.alloc(4);
      at += isMasked ? 4 : 0;
      const payload = Buffer.from(data.subarray(at, at + length).map((byte, index) => byte ^ mask[index % 4]));
      this.#received = data.subarray(at + length);
      this.#frame(data[0], payload);
    }
  }

  #frame(first, payload) {
    const opcode = first & 0x0f;
    if (opcode === PING) this.#write(0x80 | PONG, payload);
    else if (opcode === PONG) this.#emit({ pong: payload.toString() });
    else if (opcode === CLOSE) {
      if (this.#code === 1006) {
        this.#code = payload.length > 1 ? payload.readUInt16BE() : 1005;
        this.#write(0x80 | CLOSE, payload.subarray(0, 2));
      }
      this.#socket.end();
    } else if (opcode > TEXT) this.#emit({ problem: 'a frame is binary; the protocol has only text' });
    else {
      this.#parts.push(payload);
      if (first & 0x80) this.#text(Buffer.concat(this.#parts.splice(0)).toString());
    }
  }

  #text(text) {
    try {
      this.#emit({ frame: JSON.parse(text) });
    } catch {
      this.#emit({ problem: `a frame is not JSON: ${text.slice(0, 100)}` });
    }
  }
}
