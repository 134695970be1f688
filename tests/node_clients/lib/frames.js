'use strict';
// WebSocket frames as bytes (RFC 6455 §5.2), for peers that keep the rules and for those that do not.

const { randomBytes } = require('node:crypto');

const OPCODE = { CONTINUATION: 0, TEXT: 1, BINARY: 2, CLOSE: 8, PING: 9, PONG: 10 };

/**
 * One frame. Everything can be wrong on request: `fin`, `reserved` (three bits), `masked`, and `length`, which is what
 * the header says whatever the payload has.
 */
function frame(opcode, payload, { fin = true, reserved = 0, masked = true, length } = {}) {
  const body = Buffer.from(payload);
  const size = BigInt(length ?? body.length);
  const mask = masked ? 0x80 : 0;
  let head = Buffer.alloc(2);
  if (size < 126n) {
    head[1] = mask | Number(size);
  } else if (size < 65_536n) {
    head = Buffer.alloc(4);
    head[1] = mask | 126;
    head.writeUInt16BE(Number(size), 2);
  } else {
    head = Buffer.alloc(10);
    head[1] = mask | 127;
    head.writeBigUInt64BE(size, 2);
  }
  head[0] = (fin ? 0x80 : 0) | (reserved << 4) | opcode;
  if (!masked) return Buffer.concat([head, body]);
  const key = randomBytes(4);
  return Buffer.concat([head, key, body.map((byte, at) => byte ^ key[at % 4])]);
}

const text = (payload, options) => frame(OPCODE.TEXT, payload, options);

/** Cuts a stream of bytes from a server into frames; `handshake`: an HTTP head comes first. */
class FrameReader {
  #rest = Buffer.alloc(0);
  #handshake;

  constructor({ handshake = false } = {}) {
    this.#handshake = handshake;
  }

  /** What is complete: `{ bytes, opcode, payload }` each; the HTTP head has no opcode. */
  push(bytes) {
    this.#rest = Buffer.concat([this.#rest, bytes]);
    const pieces = [];
    for (let piece = this.#next(); piece; piece = this.#next()) pieces.push(piece);
    return pieces;
  }

  #next() {
    if (this.#handshake) {
      const end = this.#rest.indexOf('\r\n\r\n');
      if (end < 0) return undefined;
      this.#handshake = false;
      const bytes = this.#take(end + 4);
      return { bytes, payload: bytes.toString() };
    }
    if (this.#rest.length < 2) return undefined;
    const short = this.#rest[1] & 0x7f;
    const head = { 126: 4, 127: 10 }[short] ?? 2;
    if (this.#rest.length < head) return undefined;
    let length = short;
    if (short === 126) length = this.#rest.readUInt16BE(2);
    if (short === 127) length = Number(this.#rest.readBigUInt64BE(2));
    if (this.#rest.length < head + length) return undefined;
    const bytes = this.#take(head + length);
    return { bytes, opcode: bytes[0] & 0x0f, payload: bytes.subarray(head) };
  }

  #take(length) {
    const bytes = this.#rest.subarray(0, length);
    this.#rest = this.#rest.subarray(length);
    return bytes;
  }
}

module.exports = { FrameReader, OPCODE, frame, text };
