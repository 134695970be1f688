'use strict';
// A TCP proxy between client and server, which breaks or stalls connections on request.

const net = require('node:net');
const { ChangeNotifier } = require('./wait');
const { FrameReader } = require('./frames');

class Proxy {
  #listener = net.createServer((socket) => this.#accept(socket));
  #pairs = new Set();
  #changes = new ChangeNotifier();
  #cutAfter;
  #frozen = false;

  /** `target` is a server, or null: then the proxy closes new connections at once. */
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

  /** Stops forwarding in both directions, and leaves the sockets open, as a dead network does. */
  freeze() {
    this.#frozen = true;
    for (const { client, server } of this.#pairs) {
      client.pause();
      server.pause();
    }
  }

  /** Serves new connections again. Frozen ones stay as they are. */
  thaw() {
    this.#frozen = false;
  }

  /** Breaks every connection. */
  cut() {
    for (const pair of this.#pairs) this.#break(pair);
  }

  /** Forwards `count` messages (op 0) to the client, then breaks the connection. */
  cutAfter(count) {
    this.#cutAfter = count;
  }

  /** Resolves once `cutAfter` has broken a connection. */
  waitUntilCut() {
    return this.#changes.waitUntil('the proxy to cut a connection', () => this.#cutAfter === 'done');
  }

  close() {
    this.cut();
    this.#listener.close();
  }

  #accept(client) {
    client.on('error', () => {});
    if (!this.target || this.#frozen) {
      if (!this.#frozen) client.destroy();
      return;
    }
    const server = net.connect(this.target.port, '127.0.0.1');
    const pair = { client, server, reader: new FrameReader({ handshake: true }), forwarded: 0 };
    this.#pairs.add(pair);
    server.on('error', () => {});
    client.on('data', (bytes) => this.#frozen || server.write(bytes));
    server.on('data', (bytes) => this.#frozen || this.#forwardToClient(pair, bytes));
    for (const [one, other] of [[client, server], [server, client]]) {
      one.on('end', () => this.#frozen || other.end());
      one.on('close', () => {
        if (this.#frozen) return;
        this.#pairs.delete(pair);
        other.destroy();
      });
    }
  }

  /** Forwards what the server sends, up to the limit of `cutAfter`. */
  #forwardToClient(pair, bytes) {
    if (typeof this.#cutAfter !== 'number') {
      pair.client.write(bytes);
      return;
    }
    for (const frame of pair.reader.push(bytes)) {
      pair.client.write(frame.bytes);
      if (frame.opcode !== 1 || JSON.parse(frame.payload).op !== 0) continue;
      pair.forwarded += 1;
      if (pair.forwarded < this.#cutAfter) continue;
      this.#cutAfter = 'done';
      pair.server.destroy();
      pair.client.end();
      this.#changes.notify();
      return;
    }
  }

  #break({ client, server }) {
    client.destroy();
    server.destroy();
  }
}

/** Starts a proxy to `server` that is closed when test `t` ends. */
async function startProxy(t, server) {
  const proxy = await new Proxy(server).listen();
  t.after(() => proxy.close());
  return proxy;
}

module.exports = { Proxy, startProxy };
