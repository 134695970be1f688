'use strict';
// Wraps the three published clients and mesa-client in one interface. Their code is unchanged; the wrapper only adds listeners.

const WebSocket = require('ws');

// mesa-js-client is made for browsers: it reads this global when it is loaded.
globalThis.WebSocket = WebSocket;

const MesaJsClient = require('mesa-js-client');
const original138 = require('stock138');
const original158 = require('stock158');
const mesaClient = require('./mesa_client');
const { ChangeNotifier, withTimeout } = require('./wait');

/** Connects listeners: both versions of the original emit events, mesa-js-client has callbacks. */
const emitterClient = (Client) => (url, on) => {
  const client = new Client(url, { autoConnect: false });
  client.on('connected', on.connected);
  client.on('message', on.message);
  client.on('disconnected', on.disconnected);
  client.on('error', () => {});
  return client;
};

const KINDS = {
  original158: emitterClient(original158.Client),
  original138: emitterClient(original138.Client),
  'mesa-js-client': (url, on) => {
    const client = new MesaJsClient(url, { autoConnect: false });
    client.onConnected = on.connected;
    client.onMessage = on.message;
    client.onDisconnected = on.disconnected;
    client.onError = () => {};
    return client;
  },
  'mesa-client': (url, on) => {
    const client = mesaClient.createClient(url, { autoConnect: false });
    return client.on('connected', on.connected).on('message', on.message).on('disconnected', on.disconnected).on('error', () => {});
  },
};

class TestClient {
  #changes = new ChangeNotifier();

  /** Messages that the client passed to its application: `{ op, d, t, s }`, without absent fields. */
  messages = [];
  /** Frames that the client received over all its connections, parsed, in order. */
  frames = [];
  /** Close codes of its connections so far. */
  closeCodes = [];
  /** Number of connections so far. */
  connectionCount = 0;

  /** `create` makes the client of a kind that is not in `KINDS`. */
  constructor(kind, url, create = KINDS[kind]) {
    this.kind = kind;
    this.client = create(url, {
      connected: () => this.#connected(),
      message: ({ opcode, data, type, sequence }) => {
        const fields = Object.entries({ op: opcode, d: data, t: type, s: sequence });
        this.messages.push(Object.fromEntries(fields.filter(([, value]) => value !== undefined)));
        this.#changes.notify();
      },
      disconnected: (code) => {
        this.closeCodes.push(code);
        this.#changes.notify();
      },
    });
  }

  /** Called after each connection, as by an application whose client reconnects; set by tests. */
  onConnected = () => {};

  async connect() {
    await withTimeout(`${this.kind} to connect`, this.client.connect());
    return this;
  }

  /** Resolves with the `d` of op 22. Asserts that the client's own promise resolves too. */
  async authenticate(data, options) {
    const framesBefore = this.frames.length;
    const promise = this.client.authenticate(data, options);
    const op22 = () => this.frames.slice(framesBefore).find((frame) => frame.op === 22);
    const isClosed = () => this.closeCodes.length >= this.connectionCount;
    const frame = await this.waitUntil('op 22', () => op22() || (isClosed() && { d: null }));
    if (frame.d === null) throw new Error(`closed with ${this.closeCodes.at(-1)} instead of being authenticated`);
    // The promise of 1.3.8 never resolves if the server does not announce the user object.
    const announced = this.hello.rules.includes('sends_user_object');
    if (announced || this.kind !== 'original138') await withTimeout('authenticate() to resolve', promise);
    return frame.d;
  }

  /** Authenticates as `user`: with insecure authentication the token is the user id. */
  authenticateAs(user, options) {
    return this.authenticate({ token: user }, options);
  }

  /** Sends a message (op 0). */
  send(d, t) {
    const { Message } = { original138, original158, 'mesa-client': mesaClient }[this.kind] ?? {};
    if (Message) this.client.send(new Message(0, d, t));
    else this.client.send(0, d, t);
  }

  /** The `d` of op 10 of the latest connection. */
  get hello() {
    return this.frames.findLast((frame) => frame.op === 10)?.d;
  }

  /** The `d.n` of each message, in order of arrival. */
  get numbers() {
    return this.messages.map((message) => message.d.n);
  }

  waitUntil(description, condition, ms) {
    const received = () => `${this.messages.length} messages, the last ${JSON.stringify(this.messages.at(-1))}`;
    const state = () => `${description} at ${this.kind}; received ${received()}, close codes ${this.closeCodes}`;
    return this.#changes.waitUntil(state, condition, ms);
  }

  /** Resolves once `count` messages have arrived. */
  waitForCount(count, ms) {
    return this.waitUntil(`${count} messages`, () => this.messages.length >= count, ms);
  }

  /** Resolves once the message with `d.n === n` has arrived. */
  waitForNumber(n, ms) {
    return this.waitUntil(`message ${n}`, () => this.numbers.includes(n), ms);
  }

  /** Resolves with the first close code. */
  async waitForClose(ms) {
    await this.waitUntil('the connection to close', () => this.closeCodes.length > 0, ms);
    return this.closeCodes[0];
  }

  async disconnect() {
    this.client.disconnect();
    await this.waitForClose();
    this.discard();
  }

  /** Closes the socket, and stops reconnection: 1.5.8 and 1.3.8 reconnect even after `disconnect()`. */
  discard() {
    if (this.kind.startsWith('mesa-client')) this.client.disconnect();
    this.client.registerClose = () => {};
    clearInterval(this.client.reconnectionInterval);
    clearInterval(this.client.reconnectionIntervalId);
    this.client.ws?.terminate();
  }

  #connected() {
    this.connectionCount += 1;
    this.client.ws.addEventListener('message', ({ data }) => {
      this.frames.push(JSON.parse(data));
      this.#changes.notify();
    });
    this.#changes.notify();
    this.onConnected();
  }
}

module.exports = { KINDS: Object.keys(KINDS), TestClient };
