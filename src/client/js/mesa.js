// mesa-client: connects to a mesa server from browsers, Node, Deno, Bun and React Native.
//
// `build.cjs` writes `mesa.cjs` (CommonJS) from this file, and `tests/node_clients/lib/minify.js` writes `mesa.min.js`
// (served at /client.js).
//
// Without `resume` the client acts like the clients of the original: it passes a message on as it arrives, and answers op 1
// (heartbeat) at once. With `resume` messages go through `#waiting`. Each is handled, then its position is saved, then it is
// acknowledged by op 3.

/** Version of this package. With `/client.js?v=VERSION` browsers cache the file for a year. */
export const version = '0.1.0';

/** Messages held for handlers. One more closes the connection; the client resumes when half of them are handled. */
const WAITING_MAX = 4096;

/** Frames kept in `messages.sent`, and messages in `messages.received`, with `options.storeMessages` of the server. */
const STORED_MAX = 1000;

/** Bytes in the socket's buffer above which messages stay in the queue. */
const BUFFERED_MAX = 1_048_576;

/** Milliseconds after which more messages are sent, if the buffer of the socket or the rate of messages was at its bound. */
const FLUSH_INTERVAL = 20;

/** Milliseconds of `sendRate` that may be sent at once. The server averages its limit over the same time. */
const SEND_WINDOW = 10_000;

/** Milliseconds after which a connection counts as working, so that the next delay is short again. */
const STABLE_TIME = 10_000;

/** Milliseconds by which an acknowledgement is delayed at most. Servers limit the frames per second. */
const ACK_DELAY = 50;

/** Milliseconds without a frame before a probe, if neither the server nor the application has set an interval. */
const HEARTBEAT_INTERVAL = 25_000;

/** Close codes after which another attempt fails the same way. The server defines them in `close_code.rs`. */
const FINAL_CODES = [1000, 1002, 1003, 1007, 1008, 1009];

/**
 * Resumes after the last entry that the server knows as acknowledged, because this is above the end of every log.
 *
 * A saved position in op 2 would acknowledge the messages of another user, if one has logged in. So the client first
 * resumes here, and learns the user from op 22. If it then misses sequences, it connects again with its own position.
 * Without a store the position is of this client only. With the same credentials it belongs to the same user, so it is sent.
 */
const AFTER_ACKNOWLEDGED = Number.MAX_SAFE_INTEGER;

const DEFAULTS = {
  autoConnect: true,
  reconnectDelayMax: 30_000,
  timeout: 10_000,
  queueMax: 1024,
  sendRate: 50,
  version: '1.5.3',
};

/** Reason of a message that a loop left by `break`, `return` or `throw`. It stays the next message. */
const UNHANDLED = Symbol();

const OPEN = 1;

function deferred() {
  const result = {};
  result.promise = new Promise((resolve, reject) => Object.assign(result, { resolve, reject }));
  // A caller that ignores the promise must not get an unhandled rejection.
  result.promise.catch(() => {});
  return result;
}

/** A message, as in the original. */
export class Message {
  constructor(opcode, data, type, options) {
    Object.assign(this, { opcode, data, type });
    if (options) this.options = { sync: true, ...options };
  }

  /** Returns the frame as JSON text, or with `toJson` as an object. */
  serialize(toJson, { sentByServer } = {}) {
    const frame = { op: this.opcode, d: this.data, t: this.type };
    if (!sentByServer) frame.o = this.options;
    else if (this.sequence) frame.s = this.sequence;
    return toJson ? frame : JSON.stringify(frame);
  }
}

/** A client that reconnects and resumes. It emits `connected`, `message`, `gap`, `disconnected` and `error`. */
export class Client {
  authenticated = false;
  messages = { sent: [], received: [] };
  ws = null;

  #options;
  #listeners = new Map();

  /** State of the connection: op 10, user object of op 22, whether it resumes (op 2), whether op 13 has arrived. */
  #hello = {};
  #user;
  #resumes;
  #resumed;
  /** The socket on which op 2 was sent or its token is awaited. */
  #authenticating;
  /**
   * The first op 2 of this connection, whose user op 22 names: its `auth`, its `data`, which is no function, and `exact` if it
   * had the position of `#log`.
   */
  #login;
  #watchTimer;
  #stableTimer;

  #isInitialConnection = true;
  #isInitialSessionConnection = true;
  /** Set by `disconnect()`. */
  #stopped = false;
  /** Why no attempt to connect follows. */
  #ended;
  #connecting;
  #attempts = 0;
  #retryTimer;

  /** Credentials and options of `authenticate`. Kept for later connections if `managed`. */
  #auth;
  #queue = [];
  #flushTimer;
  /** Time at which the next message is due. It is at most `SEND_WINDOW` ago, so that as much may be sent at once. */
  #dueAt = -Infinity;
  #drains = [];

  /** Messages and gaps that wait for handlers. `to` is the position after an item; absent for unsynced messages. */
  #waiting = [];
  #working;
  /** Positions in the user's log: handled, received, and saved. */
  #log;
  /** Identifies server, user and device. */
  #key;
  /** The login that is repeated on the next connection, with the position of `#log`. Another one could be of another user. */
  #exact;
  /** The last exact attempt was refused. */
  #refused;
  /** The Web Lock of the tab that saves and acknowledges. */
  #lock;
  #ackTimer;

  constructor(url, options) {
    this.url = url;
    this.#options = { ...DEFAULTS, ...options };
    const { signal, autoConnect } = this.#options;
    signal?.addEventListener('abort', () => this.disconnect());
    if (autoConnect) this.connect();
  }

  // Events.

  #onMessage;

  /** Messages may wait for this callback. */
  set onMessage(listener) {
    this.#onMessage = listener;
    this.#work();
  }

  get onMessage() {
    return this.#onMessage;
  }

  on(event, listener) {
    this.#listeners.set(event, [...(this.#listeners.get(event) ?? []), listener]);
    this.#work();
    return this;
  }

  once(event, listener) {
    const wrapper = (...args) => {
      this.off(event, wrapper);
      return listener.apply(this, args);
    };
    wrapper.listener = listener;
    return this.on(event, wrapper);
  }

  off(event, listener) {
    const rest = (this.#listeners.get(event) ?? []).filter((each) => each !== listener && each.listener !== listener);
    this.#listeners.set(event, rest);
    return this;
  }

  removeAllListeners(event) {
    if (event) this.#listeners.delete(event);
    else this.#listeners.clear();
    return this;
  }

  listenerCount(event) {
    return this.#called(event).length;
  }

  emit(event, ...args) {
    const results = this.#call(event, args);
    for (const result of results) result.catch((error) => this.#report(error));
    return results.length > 0;
  }

  /** Returns the listeners, and the callback of `mesa-js-client`, such as `onMessage`. */
  #called(event) {
    return [...(this.#listeners.get(event) ?? []), this[`on${event[0].toUpperCase()}${event.slice(1)}`]].filter(Boolean);
  }

  /** Calls listeners at once, and returns a promise for each. */
  #call(event, args) {
    return this.#called(event).map((listener) => new Promise((resolve) => resolve(listener.apply(this, args))));
  }

  #report(error) {
    if (error === UNHANDLED) return;
    const results = this.#call('error', [error]);
    if (!results.length) console.error(error);
    for (const result of results) result.catch(console.error);
  }

  // Connection.

  connect() {
    const { signal } = this.#options;
    // After `disconnect()` the server may not have answered yet.
    if (this.ws?.readyState > OPEN) this.#drop('connect()');
    const connecting = (this.#connecting ??= deferred());
    if (signal?.aborted || this.ws?.readyState === OPEN) {
      this.#connecting = undefined;
      connecting.reject(signal?.aborted ? signal.reason : new Error('Call disconnect() first.'));
      return connecting.promise;
    }
    this.#stopped = false;
    this.#ended = undefined;
    this.#listen('addEventListener');
    if (!this.ws) this.#open(false);
    return connecting.promise;
  }

  disconnect(code, reason) {
    const { ws } = this;
    this.#stopped = true;
    if (ws) {
      this.#flush();
      this.#acknowledge();
      ws.close(code, reason);
      this.#watch(this.#options.timeout, () => this.#drop('the server does not answer'));
    } else if (!this.#ended) this.#closed(1000, 'disconnect()');
  }

  #open(isAutomaticReconnection) {
    this.#stopRetry();
    const WebSocket = this.#options.WebSocket ?? globalThis.WebSocket;
    let ws;
    try {
      if (!WebSocket) throw new Error('No global WebSocket: pass the option `WebSocket`.');
      ws = new WebSocket(this.url);
    } catch (error) {
      // The constructor calls this method before there are listeners.
      queueMicrotask(() => this.#report(error));
      this.#end(error);
      return;
    }
    this.ws = ws;
    this.#hello = {};
    this.#watch(this.#options.timeout, () => this.#drop('the server does not answer'));
    ws.onopen = () => {
      const info = {
        isInitialConnection: this.#isInitialConnection,
        isInitialSessionConnection: this.#isInitialSessionConnection,
        isAutomaticReconnection,
      };
      this.#isInitialConnection = this.#isInitialSessionConnection = false;
      this.#received();
      // Not at once: the server may close each connection right after op 22.
      this.#stableTimer = setTimeout(() => { this.#attempts = 0; }, STABLE_TIME);
      this.#connecting?.resolve();
      this.#connecting = undefined;
      // A listener of `connected` may call `authenticate()`, with the token of another user.
      if (this.#exact) this.#authenticate();
      this.emit('connected', info);
      // The documentation of the original names this event.
      this.emit('connection', info);
      if (this.ws !== ws) return;
      if (this.#auth && this.#authenticating !== ws) this.#authenticate();
      this.#flush();
    };
    ws.onmessage = ({ data }) => this.#stopped || this.#receive(data);
    ws.onerror = ({ error, message }) => {
      if (!this.#stopped) this.#report(error ?? new Error(message || `No connection to ${this.url}.`));
    };
    ws.onclose = ({ code, reason }) => this.#closed(code, reason ?? '');
  }

  /** Ends the connection without waiting for the server, which may be unreachable. */
  #drop(reason, again) {
    const { ws } = this;
    ws.onopen = ws.onmessage = ws.onclose = null;
    ws.onerror = () => {};
    ws.terminate?.();
    ws.close();
    this.#closed(1006, reason, again);
  }

  #closed(code, reason, again) {
    this.ws = null;
    clearTimeout(this.#watchTimer);
    clearTimeout(this.#stableTimer);
    this.#ackTimer = clearTimeout(this.#ackTimer);
    const auth = this.#auth;
    // A new token may be accepted, a token may arrive in time, and the queue is sent slower.
    const isTransient = code === 1008 && (reason === 'too many frames' || (auth?.managed
      && (!this.#login || reason.includes('timed out') || (typeof auth.data === 'function'
        && (reason.includes('expired') || (this.#login.exact && !this.authenticated))))));
    // A token that works once: the next connection starts where the server does.
    this.#refused = this.#login?.exact && !this.authenticated;
    this.authenticated = this.#resumes = this.#resumed = false;
    this.#login = this.#exact = undefined;
    const reconnects = this.#options.reconnect ?? (auth?.managed || this.#reconnectInterval);
    const willAttemptReconnect = !this.#stopped && (again || (!!reconnects && (isTransient || !FINAL_CODES.includes(code))));
    if (willAttemptReconnect) this.#retry();
    const error = new Error(`Closed with ${code}: ${reason}`);
    Object.assign(error, { code, reason });
    if (auth && !(auth.managed && willAttemptReconnect)) {
      auth.reject(error);
      // Credentials of an ended client stay for the next `connect()`.
      if (!auth.managed) this.#auth = undefined;
    }
    if (!willAttemptReconnect) this.#end(error);
    this.emit('disconnected', code, reason, { willAttemptReconnect });
  }

  #end(error) {
    this.#isInitialSessionConnection ||= this.#stopped;
    this.#ended = error;
    this.#stopRetry();
    this.#listen('removeEventListener');
    this.#connecting?.reject(error);
    this.#connecting = undefined;
    this.#rejectDrains(error);
    this.#forgetWaiting();
    if (!this.#working) this.#unlock();
  }

  /** Schedules an attempt with full jitter: after a random part of a delay that doubles with each attempt. */
  #retry() {
    const first = this.#options.reconnectDelay ?? this.#reconnectInterval ?? 1000;
    const delay = Math.min(first * 2 ** this.#attempts, Math.max(first, this.#options.reconnectDelayMax));
    this.#attempts += 1;
    this.#retryTimer = setTimeout(() => this.#attempt(), Math.random() * delay);
  }

  #attempt() {
    this.#stopRetry();
    if (this.#waiting.length > WAITING_MAX / 2) this.#retry();
    else this.#open(true);
  }

  #stopRetry() {
    this.#retryTimer = clearTimeout(this.#retryTimer);
  }

  /** Interval of the server, from the last op 10 that had one. */
  #reconnectInterval;

  /** Adds or removes the listeners that wake the client: the network is back, or the page is visible or unfrozen. */
  #listen(method) {
    globalThis[method]?.('online', this.#wake);
    globalThis[method]?.('pageshow', this.#wake);
    globalThis.document?.[method]('visibilitychange', this.#wake);
    globalThis.document?.[method]('resume', this.#wake);
  }

  #wake = () => {
    if (globalThis.document?.visibilityState === 'hidden') return;
    if (this.#retryTimer !== undefined) this.#attempt();
    else if (this.ws?.readyState === OPEN) this.#probe();
  };

  // Heartbeat. A connection without frames for an interval is probed by op 1. Elapsed time alone never ends it: the page may
  // have been frozen, and frames may wait to be read.

  #watch(delay, then) {
    clearTimeout(this.#watchTimer);
    this.#watchTimer = setTimeout(then, delay);
  }

  #received() {
    const delay = this.#options.heartbeatInterval ?? this.#hello.c_heartbeat_interval ?? HEARTBEAT_INTERVAL;
    this.#watch(delay, () => this.#probe());
  }

  #probe() {
    this.#write(1, {});
    this.#watch(this.#options.timeout, () => this.#drop('the server does not answer'));
  }

  // Frames.

  #write(op, d, t) {
    if (this.ws?.readyState !== OPEN) return;
    const message = new Message(op, d, t);
    this.#store(this.messages.sent, message);
    this.ws.send(message.serialize());
  }

  #receive(text) {
    this.#received();
    let frame;
    try {
      frame = JSON.parse(text);
    } catch (error) {
      this.#report(error);
      return;
    }
    const { op, d, t, s } = frame;
    if (op === 1) this.#write(11, {});
    else if (op === 10) this.#greeted(d);
    else if (op === 13) this.#resume(d);
    else if (op === 22) this.#accepted(d);
    else if (op !== 11) {
      const message = new Message(op, d, t);
      if (s) message.sequence = s;
      this.#deliver(message);
    }
  }

  #greeted(hello) {
    this.#hello = hello;
    this.#reconnectInterval = hello.c_reconnect_interval ?? this.#reconnectInterval;
    if (this.#hasRule('enforce_equal_versions')) this.#write(0, { v: this.#options.version }, 'CLIENT_VERSION');
    if (this.#hasRule('store_messages')) this.messages = { sent: [], received: [] };
  }

  #hasRule(rule) {
    return this.#hello.rules?.includes(rule);
  }

  #store(messages, message) {
    if (!this.#hasRule('store_messages')) return;
    messages.push(message);
    if (messages.length > STORED_MAX) messages.shift();
  }

  // Authentication.

  authenticate(data, options = {}) {
    const managed = typeof data !== 'object' || !!options.resume;
    // `false` discards only what was pending before the first connection, so not after a newer token.
    const shouldSync = (managed && this.authenticated) || (options.shouldSync ?? true);
    const auth = { data, options, managed, shouldSync, ...deferred() };
    this.#auth?.resolve(auth.promise);
    this.#auth = auth;
    this.#exact = undefined;
    const { signal } = options;
    const abort = () => auth.reject(signal.reason);
    if (signal?.aborted) abort();
    signal?.addEventListener('abort', abort);
    if (this.ws?.readyState === OPEN) this.#authenticate();
    return auth.promise;
  }

  async #authenticate() {
    const auth = this.#auth;
    const ws = (this.#authenticating = this.ws);
    const { device, resume } = auth.options;
    const exact = this.#exact;
    this.#exact = undefined;
    try {
      let { data } = exact ?? auth;
      // Without a function, op 2 is written before this method returns, as in the original.
      if (typeof data === 'function') data = await data();
      if (ws !== this.ws || auth !== this.#auth) return;
      const known = this.#knownPosition(data);
      this.#login ??= { auth, data, exact, isKnown: !!known };
      this.#resumes ||= !!resume;
      this.#write(2, {
        ...(typeof data === 'object' ? data : { token: data }),
        shouldSync: auth.shouldSync,
        device,
        after: resume ? (exact ? this.#log.position : known || AFTER_ACKNOWLEDGED) : undefined,
      });
      // The server does not answer a newer token for an authenticated connection.
      if (this.authenticated) auth.resolve(this.#user);
    } catch (error) {
      this.#report(error);
      if (ws === this.ws) this.#drop('no token');
    }
  }

  /** Identifies what op 2 names: the server, the credentials and the device. */
  #credentials(data) {
    return JSON.stringify([this.url.split('?')[0], data, this.#auth.options.device]);
  }

  /** The position of a log without a store, if `data` are the credentials with which the log was opened last. */
  #knownPosition(data) {
    const log = this.#log;
    // Of tabs that share a cursor, only the one that acknowledges advances `saved`.
    return this.#auth.options.resume === true && log?.credentials === this.#credentials(data) ? log.saved : 0;
  }

  #accepted(user) {
    this.authenticated = true;
    this.#user = user;
    const auth = this.#auth;
    if (!auth) return;
    const { device, user: name = user?.id } = auth.options;
    const key = JSON.stringify([this.url.split('?')[0], name, device]);
    if (key !== this.#key) {
      this.#waiting = [];
      this.#log = undefined;
      // Nothing of one user is sent as another.
      if (this.#key) {
        this.#queue = [];
        this.#rejectDrains(new Error('Another user: send again.'));
      }
    }
    this.#key = key;
    if (auth.managed) auth.shouldSync = true;
    auth.resolve(user);
    this.#flush();
  }

  // Sending.

  send(message, data, type) {
    const { queueMax } = this.#options;
    if (this.#queue.length >= queueMax) throw new Error(`${queueMax} messages wait: await drained() first.`);
    if (typeof message !== 'object') message = new Message(message, data, type);
    this.#store(this.messages.sent, message);
    this.#queue.push(message.serialize());
    this.#flush();
    return this.#queue.length;
  }

  /** Resolves when all queued messages were passed to the socket. */
  drained() {
    const drain = deferred();
    this.#drains.push(drain);
    this.#flush();
    if (this.#ended) this.#rejectDrains(this.#ended);
    return drain.promise;
  }

  #rejectDrains(error) {
    for (const { reject } of this.#drains.splice(0)) reject(error);
  }

  #flush() {
    const { ws } = this;
    if (ws?.readyState === OPEN && (this.authenticated || !this.#auth?.managed)) {
      const now = performance.now();
      this.#dueAt = Math.max(this.#dueAt, now - SEND_WINDOW);
      while (this.#queue.length && this.#dueAt < now && !(ws.bufferedAmount > BUFFERED_MAX)) {
        ws.send(this.#queue.shift());
        this.#dueAt += 1000 / this.#options.sendRate;
      }
      clearTimeout(this.#flushTimer);
      if (this.#queue.length) this.#flushTimer = setTimeout(() => this.#flush(), FLUSH_INTERVAL);
    }
    if (!this.#queue.length) for (const { resolve } of this.#drains.splice(0)) resolve();
  }

  // Delivery.

  #deliver(message) {
    if (this.#resumes) this.#enqueue({ event: 'message', value: message, to: this.#resumed ? message.sequence : undefined });
    else {
      this.#attempts = 0;
      this.emit('message', message);
    }
    this.#store(this.messages.received, message);
  }

  /** Handles op 13: the state of the log, at the start of a connection and before each gap. */
  #resume({ first, last, missed }) {
    if (!this.#resumed) {
      this.#resumed = true;
      this.#openLog(first, last);
    }
    if (missed && this.#log) this.#enqueue({ event: 'gap', value: missed, to: missed.to });
  }

  #openLog(first, last) {
    const { resume, user = this.#user?.id } = this.#auth.options;
    if (user === undefined && resume !== true) {
      this.#report(new Error('No user is named: pass the option `user`.'));
      this.disconnect();
      return;
    }
    const credentials = this.#credentials(this.#login.data);
    // A log that ends before our position is another log, with unrelated sequences.
    if (!this.#log || last < this.#log.received) {
      this.#waiting = this.#waiting.filter(({ to }) => !to);
      this.#log = { key: this.#key, last, store: resume === true ? {} : resume, position: 0, received: 0, saved: 0 };
      const log = this.#log;
      log.loaded = this.#load(log).then(() => {
        log.position = log.saved;
        log.received = Math.max(log.received, log.saved);
        if (log === this.#log) this.#checkStart(first, log.saved);
      });
      log.credentials = credentials;
    } else {
      this.#log.credentials = credentials;
      this.#checkStart(first, this.#log.received);
    }
    this.#lead();
    this.#acknowledgeSoon();
  }

  /** Connects again with the client's position, if the server begins above it. The server then reports why, as a gap. */
  #checkStart(first, reached) {
    const { position, store } = this.#log;
    // Without a store, the position before the first message is that of the server.
    const { exact, isKnown } = this.#login ?? {};
    if (!this.#resumed || this.#refused || exact || isKnown || first <= reached + 1 || !(position || store.load)) return;
    const login = this.#login;
    this.#forgetWaiting();
    this.#drop('resumes', true);
    // A listener may have called `disconnect()` or `connect()`.
    if (this.#retryTimer === undefined) return;
    if (login.auth === this.#auth) this.#exact = login;
    this.#attempt();
  }

  /** Loads the position that this tab or another one has saved, unless it belongs to another log. */
  async #load(log) {
    try {
      const saved = Number(await log.store.load?.(log.key)) || 0;
      if (saved <= Math.max(log.last, log.received)) log.saved = Math.max(log.saved, saved);
    } catch (error) {
      this.#report(error);
    }
  }

  /** Waits until this tab is the one that saves and acknowledges. Tabs of a device share a cursor. */
  #lead() {
    const { key } = this.#log;
    if (this.#lock?.key === key) return;
    this.#unlock();
    const lock = { key };
    this.#lock = lock;
    const { locks } = globalThis.navigator ?? {};
    const lead = async () => {
      if (this.#log) await this.#load(this.#log);
      if (this.#lock !== lock) return;
      const released = new Promise((resolve) => { lock.release = resolve; });
      this.#save(this.#log);
      await released;
    };
    const leadAlone = () => {
      lock.release = () => {};
      this.#save(this.#log);
    };
    // Pages without https have no locks. In a sandboxed frame a request rejects.
    if (locks) locks.request(`mesa-client ${key}`, lead).catch(leadAlone);
    else leadAlone();
  }

  #unlock() {
    this.#lock?.release?.();
    this.#lock = undefined;
  }

  #enqueue(item) {
    const log = this.#log;
    if (item.to <= log?.received) {
      // A repeat. The server did not know that it was received.
      this.#acknowledgeSoon();
      return;
    }
    if (item.to) log.received = item.to;
    this.#waiting.push(item);
    if (this.#waiting.length > WAITING_MAX) this.#drop('the application is slower than the server');
    this.#work();
  }

  #forgetWaiting() {
    this.#waiting = [];
    if (this.#log) this.#log.received = this.#log.position;
  }

  /** Passes items to the handlers, one after the other. */
  async #work() {
    if (this.#working) return;
    this.#working = true;
    while (this.#waiting.length && this.#called('message').length) {
      const [item] = this.#waiting;
      const log = this.#log;
      await log?.loaded;
      if (item === this.#waiting[0] && (await this.#handle(item, log))) {
        if (item === this.#waiting[0]) this.#waiting.shift();
        if (item.to) await this.#save(log);
      }
    }
    this.#working = false;
    // The last handler may resolve after the end.
    if (this.#ended) this.#unlock();
  }

  /** Resolves with true once all handlers have resolved. Otherwise the item stays, or is sent again. */
  async #handle({ event, value, to }, log) {
    if (to <= log?.position) return true;
    try {
      if (event === 'gap') value.from = Math.max(value.from, log.position + 1);
      await Promise.all(this.#call(event, [value]));
    } catch (error) {
      if (error === UNHANDLED) return false;
      this.#report(error);
      if (!to) return true;
      // The server sends it again on the next connection.
      this.#forgetWaiting();
      if (this.ws) this.#drop('handler failed');
      return false;
    }
    if (to) {
      log.position = to;
      this.#attempts = 0;
    }
    return true;
  }

  /** Saves the position, then schedules its acknowledgement: an entry acknowledged before could be lost by a crash. */
  async #save(log) {
    if (!log || log !== this.#log || !this.#lock?.release) return;
    const { position } = log;
    if (position > log.saved) {
      try {
        await log.store.save?.(log.key, position);
      } catch (error) {
        this.#report(error);
        return;
      }
      log.saved = Math.max(log.saved, position);
    }
    this.#acknowledgeSoon();
  }

  #acknowledgeSoon() {
    this.#ackTimer ??= setTimeout(() => this.#acknowledge(), ACK_DELAY);
  }

  #acknowledge() {
    this.#ackTimer = clearTimeout(this.#ackTimer);
    if (this.#resumed && this.#log?.saved && this.#lock?.release) this.#write(3, { s: this.#log.saved });
  }

  /** Iterates over messages. A message counts as handled when the loop asks for the next one. */
  async *[Symbol.asyncIterator]() {
    const queue = [];
    let wake;
    const onMessage = (message) => new Promise((resolve, reject) => {
      queue.push({ message, resolve, reject });
      if (queue.length > WAITING_MAX && this.ws) this.#drop('the application is slower than the server');
      wake?.();
    });
    const onDisconnected = () => wake?.();
    this.on('message', onMessage).on('disconnected', onDisconnected);
    try {
      for (;;) {
        while (!queue.length) {
          if (this.#ended && this.#stopped) return;
          if (this.#ended) throw this.#ended;
          await new Promise((resolve) => { wake = resolve; });
        }
        yield queue[0].message;
        queue.shift().resolve();
      }
    } finally {
      this.off('message', onMessage).off('disconnected', onDisconnected);
      for (const { reject } of queue) reject(UNHANDLED);
    }
  }
}

Client.prototype.addListener = Client.prototype.on;
Client.prototype.removeListener = Client.prototype.off;

export default Client;

// Stores of positions. `load(key)` returns the position or nothing, `save(key, position)` stores it; both may return promises.

/** Keeps positions in `localStorage`. */
export function localStorageStore(prefix = 'mesa:') {
  return {
    load: (key) => localStorage.getItem(prefix + key),
    save: (key, position) => localStorage.setItem(prefix + key, position),
  };
}

/** Keeps positions in IndexedDB. */
export function indexedDBStore(name = 'mesa') {
  let opened;
  const open = () => new Promise((resolve, reject) => {
    const request = indexedDB.open(name);
    request.onupgradeneeded = () => request.result.createObjectStore('positions');
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  const run = async (mode, method, ...args) => {
    try {
      opened ??= open();
      const transaction = (await opened).transaction('positions', mode);
      const request = transaction.objectStore('positions')[method](...args);
      return await new Promise((resolve, reject) => {
        transaction.oncomplete = () => resolve(request.result);
        transaction.onabort = () => reject(transaction.error);
      });
    } catch (error) {
      // The browser may have closed the database. The next call opens it again.
      opened = undefined;
      throw error;
    }
  };
  return {
    load: (key) => run('readonly', 'get', key),
    save: (key, position) => run('readwrite', 'put', position, key),
  };
}

/** Keeps positions in a JSON file, for Node, Deno and Bun. One process may use a file. */
export function fileStore(path) {
  const fs = globalThis.process.getBuiltinModule('node:fs');
  const positions = JSON.parse((fs.existsSync(path) && fs.readFileSync(path, 'utf8')) || '{}');
  return {
    load: (key) => positions[key],
    save(key, position) {
      positions[key] = position;
      // A crash leaves the previous file or the new one.
      fs.writeFileSync(`${path}.new`, JSON.stringify(positions));
      fs.renameSync(`${path}.new`, path);
    },
  };
}
