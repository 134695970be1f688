// The client under test, and the server that it connects to.

import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';

import { listen } from './websocket.mjs';

/** Milliseconds for anything that a client must do. */
let timeout = 30_000;

export function setTimeoutSeconds(seconds) {
  timeout = seconds * 1000;
}

export const TOKEN = 'token-of-alice';
export const DEVICE = 'phone-1';

/** Waits for values one after the other. */
class Arrivals {
  #values = [];
  #wake = () => {};

  push(value) {
    this.#values.push(value);
    this.#wake();
  }

  get length() {
    return this.#values.length;
  }

  /** Removes and returns the next value that passes `accepts`. Values before it are dropped. */
  async next(what, accepts = () => true) {
    const until = Date.now() + timeout;
    for (;;) {
      while (this.#values.length) {
        const value = this.#values.shift();
        if (accepts(value)) return value;
      }
      const left = until - Date.now();
      if (left <= 0) throw new Error(`expected ${what} within ${timeout / 1000} s`);
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, left);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }
}

/** A connection of the client, with the frames that it sends. */
export class Peer {
  frames = new Arrivals();
  pongs = new Arrivals();
  closed = new Arrivals();
  /** Called with each frame before it can be waited for. */
  onFrame = () => {};

  constructor(connection, onProblem) {
    this.connection = connection;
    connection.onEvent = ({ frame, pong, problem, closed }) => {
      if (problem) onProblem(problem);
      if (frame) {
        this.onFrame(frame);
        this.frames.push(frame);
      }
      if (pong !== undefined) this.pongs.push(pong);
      if (closed !== undefined) this.closed.push(closed);
    };
  }

  send(op, fields = {}) {
    this.connection.send({ op, ...fields });
  }

  /** Sends op 10. */
  greet(intervals = {}) {
    this.send(10, { d: { c_reconnect_interval: 100, c_authentication_timeout: 10_000, rules: ['sends_user_object'], ...intervals } });
  }

  /** Greets the client, waits for op 2, and accepts it. Returns the data of op 2. */
  async authenticate(intervals) {
    this.greet(intervals);
    const { d } = await this.frame(2, 'op 2 after op 10');
    this.send(22, { d: { id: 'alice' } });
    return d;
  }

  frame(op, what, accepts = () => true) {
    return this.frames.next(what, (frame) => frame.op === op && accepts(frame));
  }
}

/** A run of the client under test with a server of its own. */
export class Session {
  lines = new Arrivals();
  problems = [];
  #peers = new Arrivals();
  #server;
  #client;

  static async start(command) {
    const session = new Session();
    session.#server = await listen((connection) => {
      session.#peers.push(new Peer(connection, (problem) => session.problems.push(problem)));
    });
    const [program, ...args] = command;
    const env = { ...process.env, MESA_URL: session.#server.url, MESA_TOKEN: TOKEN, MESA_DEVICE: DEVICE };
    session.#client = spawn(program, args, { env, stdio: ['ignore', 'pipe', 'inherit'] });
    session.#client.on('error', (error) => session.problems.push(`cannot start ${program}: ${error.message}`));
    createInterface({ input: session.#client.stdout }).on('line', (line) => session.#read(line));
    return session;
  }

  #read(line) {
    try {
      const value = JSON.parse(line);
      if (value.message || value.gap) this.lines.push(value);
    } catch {
      // A log line of the client.
    }
  }

  /** Returns the next connection of the client. */
  connection(what = 'a connection') {
    return this.#peers.next(what);
  }

  /** Number of connections that were not taken. */
  get waiting() {
    return this.#peers.length;
  }

  /** Returns the next message that the client has passed to its application. */
  async message(what) {
    return (await this.lines.next(what, (line) => line.message)).message;
  }

  stop() {
    this.#client.kill('SIGKILL');
    this.#server.close();
  }
}

export function assert(condition, why) {
  if (!condition) throw new Error(why);
}

/** Waits until `condition()` holds, for as long as a client may take. The caller checks whether it holds. */
export async function waitUntil(condition) {
  const until = Date.now() + timeout;
  while (!condition() && Date.now() < until) await sleep(20);
}

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
