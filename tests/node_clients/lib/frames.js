'use strict';
// Encodes WebSocket frames (RFC 6455 §5.2), valid and invalid, and splits a byte stream into frames.

const { randomBytes } = require('node:crypto');

const OPCODE = { CONTINUATION: 0, TEXT: 1, BINARY: 2, CLOSE: 8, PING: 9, PONG: 10 };

/**
 * Encodes one frame.
 *
 * The options can make it invalid: `fin`, `reserved` (three bits), `masked`, and `length`, which the header states instead
 * of the length of the payload.
 */
function encodeFrame(opcode, payload, { fin = true, reserved = 0, masked = true, length } = {}) {
  const body = Buffer.from(payload);
  const size = BigInt(length ?? body.length);
  const mask = masked ? 0x80 : 0;
  let header = Buffer.alloc(2);
  if (size < 126n) {
    header[1] = mask | Number(size);
  } else if (size < 65_536n) {
    header = Buffer.alloc(4);
    header[1] = mask | 126;
    header.writeUInt16BE(Number(size), 2);
  } else {
    header = Buffer.alloc(10);
    header[1] = mask | 127;
    header.writeBigUInt64BE(size, 2);
  }
  header[0] = (fin ? 0x80 : 0) | (reserved << 4) | opcode;
  if (!masked) return Buffer.concat([header, body]);
  const key = randomBytes(4);
  return Buffer.concat([header, key, body.map((byte, index) => byte ^ key[index % 4])]);
}

const encodeText = (payload, options) => encodeFrame(OPCODE.TEXT, payload, options);

/** Splits the byte stream of a server into frames. With `handshake`, the stream begins with an HTTP head. */
class FrameReader {
  #buffered = Buffer.alloc(0);
  #handshake;

  constructor({ handshake = false } = {}) {
    this.#handshake = handshake;
  }

  /** Returns the frames that are now complete: `{ bytes, opcode, payload }`. The HTTP head has no opcode. */
  push(bytes) {
    this.#buffered = Buffer.concat([this.#buffered, bytes]);
    const frames = [];
    for (let frame = this.#next(); frame; frame = this.#next()) frames.push(frame);
    return frames;
  }

  #next() {
    if (this.#handshake) {
      const end = this.#buffered.indexOf('\r\n\r\n');
      if (end < 0) return undefined;
      this.#handshake = false;
      const bytes = this.#take(end + 4);
      return { bytes, payload: bytes.toString() };
    }
    if (this.#buffered.length < 2) return undefined;
    const short = this.#buffered[1] & 0x7f;
    const headerLength = { 126: 4, 127: 10 }[short] ?? 2;
    if (this.#buffered.length < headerLength) return undefined;
    let length = short;
    if (short === 126) length = this.#buffered.readUInt16BE(2);
    if (short === 127) length = Number(this.#buffered.readBigUInt64BE(2));
    if (this.#buffered.length < headerLength + length) return undefined;
    const bytes = this.#take(headerLength + length);
    return { bytes, opcode: bytes[0] & 0x0f, payload: bytes.subarray(headerLength) };
  }

  #take(length) {
    const bytes = this.#buffered.subarray(0, length);
    this.#buffered = this.#buffered.subarray(length);
    return bytes;
  }
}

module.exports = { FrameReader, OPCODE, encodeFrame, encodeText };
