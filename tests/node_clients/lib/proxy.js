'use strict';
// A network that can fail on purpose: a TCP proxy between a client and the server.

const net = require('node:net');
const { Changes } = require('./wait');
const { FrameReader } = require('./frames');

class Proxy {
  #listener = net.createServer((socket) => this.#accept(socket));
  #pairs = new Set();
  #changes = new Changes();
  #cutAfter;
  #frozen = false;

  /** `target` is a server, or null: then connections are refused (by closing them). */
  constructor(target) {
    this.target = target;
  }

  async listen() {
    await new Promise((resolve) => this.#listener.listen(0, '127.0.0.1', resolve));
    return this;
  }

  get url() {
    return `ws://127.0.0.1:${this.#listener.address().port}/`;
  }

  /** From now on nothing passes in either direction, and nobody is told: the network is gone, the sockets are open. */
  freeze() {
    this.#frozen = true;
    for (const { near, far } of this.#pairs) {
      near.pause();
      far.pause();
    }
  }

  /** Breaks every connection. */
  cut() {
    for (const pair of this.#pairs) this.#break(pair);
  }

  /** Lets `count` messages of applications through to the client, and breaks the connection right after. */
  cutAfter(count) {
    this.#cutAfter = count;
  }

  /** Resolves once a connection was broken by `cutAfter`. */
  wasCut() {
    return this.#changes.until('the proxy to cut a connection', () => this.#cutAfter === 'done');
  }

  close() {
    this.cut();
    this.#listener.close();
  }

  #accept(near) {
    near.on('error', () => {});
    if (!this.target || this.#frozen) {
      if (!this.#frozen) near.destroy();
      return;
    }
    const far = net.connect(this.target.port, '127.0.0.1');
    const pair = { near, far, reader: new FrameReader({ handshake: true }), passed: 0 };
    this.#pairs.add(pair);
    far.on('error', () => {});
    near.on('data', (bytes) => this.#frozen || far.write(bytes));
    far.on('data', (bytes) => this.#frozen || this.#down(pair, bytes));
    for (const [one, other] of [[near, far], [far, near]]) {
      one.on('end', () => this.#frozen || other.end());
      one.on('close', () => {
        if (this.#frozen) return;
        this.#pairs.delete(pair);
        other.destroy();
      });
    }
  }

  /** Passes on what the server sends, as far as the client may have it. */
  #down(pair, bytes) {
    if (typeof this.#cutAfter !== 'number') {
      pair.near.write(bytes);
      return;
    }
    for (const piece of pair.reader.push(bytes)) {
      pair.near.write(piece.bytes);
      if (piece.opcode !== 1 || JSON.parse(piece.payload).op !== 0) continue;
      pair.passed += 1;
      if (pair.passed < this.#cutAfter) continue;
      this.#cutAfter = 'done';
      pair.far.destroy();
      pair.near.end();
      this.#changes.notify();
      return;
    }
  }

  #break({ near, far }) {
    near.destroy();
    far.destroy();
  }
}

/** A proxy before `server` that is closed when test `t` ends. */
async function before(t, server) {
  const proxy = await new Proxy(server).listen();
  t.after(() => proxy.close());
  return proxy;
}

module.exports = { Proxy, before };
