'use strict';
// The three published clients behind one small interface. None of their own code is changed: what is added listens.

const WebSocket = require('ws');

// mesa-js-client is made for browsers, and looks for this when it is loaded.
globalThis.WebSocket = WebSocket;

const MesaJsClient = require('mesa-js-client');
const stock138 = require('stock138');
const stock158 = require('stock158');
const { Changes, within } = require('./wait');

/** How to hear from each: both stock packages emit events, mesa-js-client has callbacks. */
const emitter = (Client) => (url, on) => {
  const client = new Client(url, { autoConnect: false });
  client.on('connected', on.connected);
  client.on('message', on.message);
  client.on('disconnected', on.disconnected);
  client.on('error', () => {});
  return client;
};

const KINDS = {
  stock158: emitter(stock158.Client),
  stock138: emitter(stock138.Client),
  'mesa-js-client': (url, on) => {
    const client = new MesaJsClient(url, { autoConnect: false });
    client.onConnected = on.connected;
    client.onMessage = on.message;
    client.onDisconnected = on.disconnected;
    client.onError = () => {};
    return client;
  },
};

class Peer {
  #changes = new Changes();

  /** Messages that the application was handed: `{ op, d, t, s }`, without what is absent. */
  messages = [];
  /** Every frame the client received, parsed, in order, over all its connections. */
  frames = [];
  /** Close codes of its connections so far. */
  closes = [];
  /** Connections it has opened. */
  opened = 0;

  constructor(kind, url) {
    this.kind = kind;
    this.client = KINDS[kind](url, {
      connected: () => this.#connected(),
      message: ({ opcode, data, type, sequence }) => {
        const given = Object.entries({ op: opcode, d: data, t: type, s: sequence });
        this.messages.push(Object.fromEntries(given.filter(([, value]) => value !== undefined)));
        this.#changes.notify();
      },
      disconnected: (code) => {
        this.closes.push(code);
        this.#changes.notify();
      },
    });
  }

  /** What an application does whenever its client has connected by itself; set by tests. */
  onConnected = () => {};

  async connect() {
    await within(`${this.kind} to connect`, this.client.connect());
    return this;
  }

  /** Resolves with the `d` of op 22, and holds the client's own promise to its word. */
  async authenticate(data, options) {
    const seen = this.frames.length;
    const promise = this.client.authenticate(data, options);
    const answer = () => this.frames.slice(seen).find((frame) => frame.op === 22);
    const ack = await this.until('op 22', () => answer() || (this.closes.length >= this.opened && { d: null }));
    if (ack.d === null) throw new Error(`closed with ${this.closes.at(-1)} instead of being authenticated`);
    // 1.3.8 never resolves where no user object is announced.
    const announced = this.hello.rules.includes('sends_user_object');
    if (announced || this.kind !== 'stock138') await within('authenticate() to resolve', promise);
    return ack.d;
  }

  /** As `authenticate`, with the token that names a user where authentication is insecure. */
  is(user, options) {
    return this.authenticate({ token: user }, options);
  }

  /** Sends a message of its application. */
  say(d, t) {
    const { Message } = { stock138, stock158 }[this.kind] ?? {};
    if (Message) this.client.send(new Message(0, d, t));
    else this.client.send(0, d, t);
  }

  /** What the server said first, on the last connection. */
  get hello() {
    return this.frames.findLast((frame) => frame.op === 10)?.d;
  }

  /** The `n` of each numbered message, in order of arrival. */
  get numbers() {
    return this.messages.map((message) => message.d.n);
  }

  until(what, ok, ms) {
    const got = () => `${this.messages.length} messages, the last ${JSON.stringify(this.messages.at(-1))}`;
    return this.#changes.until(() => `${what} at ${this.kind}; got ${got()}, closes ${this.closes}`, ok, ms);
  }

  /** Resolves once there are `count` messages. */
  waitFor(count, ms) {
    return this.until(`${count} messages`, () => this.messages.length >= count, ms);
  }

  /** Resolves once message number `n` is there. */
  waitForNumber(n, ms) {
    return this.until(`number ${n}`, () => this.numbers.includes(n), ms);
  }

  /** Resolves with the code of the first close. */
  async waitForClose(ms) {
    await this.until('the connection to be closed', () => this.closes.length > 0, ms);
    return this.closes[0];
  }

  async disconnect() {
    this.client.disconnect();
    await this.waitForClose();
    this.retire();
  }

  /** Never comes back, and keeps no timer: 1.5.8 and 1.3.8 go on reconnecting even after `disconnect()`. */
  retire() {
    this.client.registerClose = () => {};
    clearInterval(this.client.reconnectionInterval);
    clearInterval(this.client.reconnectionIntervalId);
    this.client.ws?.terminate();
  }

  #connected() {
    this.opened += 1;
    this.client.ws.addEventListener('message', ({ data }) => {
      this.frames.push(JSON.parse(data));
      this.#changes.notify();
    });
    this.#changes.notify();
    this.onConnected();
  }
}

module.exports = { KINDS: Object.keys(KINDS), Peer };
