'use strict';
// A real server, in a process of its own, on a store of its own.

const { spawn } = require('node:child_process');
const fs = require('node:fs');
const http = require('node:http');
const os = require('node:os');
const path = require('node:path');
const { PATIENCE, eventually, within } = require('./wait');

const KEY = 'test-key-0123456789';

/** Resolved at once: a test may change its directory later. */
const BIN = process.env.MESA_BIN && path.resolve(process.env.MESA_BIN);

/** What every server here is told unless a test says otherwise. */
const DEFAULTS = {
  host: '127.0.0.1',
  port: 0,
  sync: { enabled: true },
  authentication: { insecure: true },
  api: { keys: [KEY] },
};

const running = new Set();
process.on('exit', () => running.forEach((child) => child.kill('SIGKILL')));

/** Later objects go over earlier ones, key by key. */
function merged(base, over) {
  const both = { ...base };
  for (const [key, value] of Object.entries(over ?? {})) {
    const nested = value && typeof value === 'object' && !Array.isArray(value);
    both[key] = nested ? merged(base?.[key] ?? {}, value) : value;
  }
  return both;
}

class Server {
  #directory = fs.mkdtempSync(path.join(os.tmpdir(), 'mesa-interop-'));
  #agent = new http.Agent({ keepAlive: true, maxSockets: 64 });
  #config;
  #child;
  #starts = 0;

  constructor(config) {
    this.#config = merged(DEFAULTS, config);
  }

  /** Starts the process; resolves once it listens. */
  async start() {
    if (!BIN) throw new Error('MESA_BIN must name the server to be tested (tests/run sets it)');
    this.#starts += 1;
    const file = (name) => path.join(this.#directory, `${name}.${this.#starts}`);
    fs.writeFileSync(file('config'), JSON.stringify(this.#config));
    const log = fs.openSync(file('log'), 'w');
    const args = ['serve', '--config', file('config'), '--store-path', this.storePath, '--ready-file', file('ready')];
    const child = spawn(BIN, args, { cwd: this.#directory, stdio: ['ignore', log, log], env: environment() });
    fs.closeSync(log);
    running.add(child);
    this.#child = child;
    this.exited = new Promise((resolve) => {
      child.once('error', (error) => resolve({ error }));
      child.once('exit', (code, signal) => resolve({ code, signal }));
    }).then((end) => {
      running.delete(child);
      this.ended = end;
      return end;
    });
    this.ended = undefined;
    const { address, redisProtocol } = await eventually('the server to listen', () => {
      if (this.ended) throw new Error(`the server ended at start-up: ${JSON.stringify(this.ended)}\n${this.log()}`);
      return fs.existsSync(file('ready')) && JSON.parse(fs.readFileSync(file('ready'), 'utf8'));
    }).catch((error) => {
      child.kill('SIGKILL');
      throw new Error(`${error.message}\n${this.log()}`);
    });
    this.address = address;
    this.port = Number(address.slice(address.lastIndexOf(':') + 1));
    this.redisProtocolPort = redisProtocol && Number(redisProtocol.slice(redisProtocol.lastIndexOf(':') + 1));
    return this;
  }

  get storePath() {
    return path.join(this.#directory, 'store');
  }

  get url() {
    return `ws://127.0.0.1:${this.port}${this.#config.path ?? '/'}`;
  }

  /** What a stock service is given as its Redis. */
  get redis() {
    const { password } = this.#config.redisProtocol;
    return `redis://${password ? `:${password}@` : ''}127.0.0.1:${this.redisProtocolPort}`;
  }

  /** What the server has written about its last run. */
  log() {
    return fs.readFileSync(path.join(this.#directory, `log.${this.#starts}`), 'utf8');
  }

  /** Ends the process without a word. */
  async kill() {
    this.#child.kill('SIGKILL');
    await within('the killed server to end', this.exited);
  }

  /** Asks the process to end; resolves with its exit code. */
  async stop() {
    this.#child.kill('SIGTERM');
    const { code, signal } = await within('the server to stop', this.exited);
    return code ?? signal;
  }

  /** Starts again on the same store, with `config` over what it was told before. */
  async restart(config) {
    if (!this.ended) throw new Error('the server still runs');
    this.#agent.destroy();
    this.#config = merged(this.#config, config);
    return this.start();
  }

  /** Leaves nothing behind. */
  async remove() {
    if (!this.ended && this.#child) await this.kill();
    this.#agent.destroy();
    fs.rmSync(this.#directory, { recursive: true, force: true });
  }

  /** One call of the HTTP API: resolves with `{ status, body }`. */
  call(method, target, body, headers = {}) {
    const text = body === undefined ? undefined : JSON.stringify(body);
    const options = {
      host: '127.0.0.1',
      port: this.port,
      agent: this.#agent,
      method,
      path: target,
      headers: { authorization: `Bearer ${KEY}`, ...(text && { 'content-type': 'application/json' }), ...headers },
      timeout: PATIENCE,
    };
    return new Promise((resolve, reject) => {
      const request = http.request(options, (response) => {
        const chunks = [];
        response.on('data', (chunk) => chunks.push(chunk));
        response.on('error', reject);
        response.on('end', () => {
          const answer = Buffer.concat(chunks).toString();
          const json = /json/.test(response.headers['content-type'] ?? '');
          resolve({ status: response.statusCode, body: json ? JSON.parse(answer) : answer });
        });
      });
      request.on('timeout', () => request.destroy(new Error(`no answer to ${method} ${target}`)));
      request.on('error', reject);
      request.end(text);
    });
  }

  /** As `call`, and refuses to be refused. */
  async ask(method, target, body) {
    const answer = await this.call(method, target, body);
    if (answer.status >= 300) {
      throw new Error(`${method} ${target}: ${answer.status} ${JSON.stringify(answer.body)}`);
    }
    return answer.body;
  }

  dispatch(message, recipients, excluding, id) {
    return this.ask('POST', '/v1/dispatch', { message, recipients, ...(excluding && { excluding }), ...(id && { id }) });
  }

  /** Dispatches the number `n`. */
  number(n, recipients, { excluding, id, ...options } = {}) {
    const o = Object.keys(options).length ? { o: options } : {};
    return this.dispatch({ op: 0, d: { n }, t: 'NUMBER', ...o }, [recipients].flat(), excluding, id);
  }

  /** A request for a stream of dispatches: lines are written to it, and `answers()` yields what comes back. */
  stream() {
    const request = http.request({
      port: this.port,
      host: '127.0.0.1',
      method: 'POST',
      path: '/v1/dispatch',
      headers: { authorization: `Bearer ${KEY}`, 'content-type': 'application/x-ndjson' },
    });
    request.flushHeaders();
    const responded = new Promise((resolve, reject) => {
      request.on('response', resolve);
      request.on('error', reject);
    });
    // Whoever does not wait for the response is told by its answers.
    responded.catch(() => {});
    async function* answers() {
      const response = await within('the head of a stream', responded);
      if (response.statusCode !== 200) throw new Error(`a stream was answered with ${response.statusCode}`);
      let begun = '';
      for await (const piece of response) {
        const lines = (begun + piece).split('\n');
        begun = lines.pop();
        for (const line of lines) yield JSON.parse(line);
      }
      if (begun) throw new Error(`half an answer: ${begun}`);
    }
    return { request, answers: answers() };
  }

  /** Connects a portal; yields its events once they have begun. */
  async events(query = '') {
    const headers = { authorization: `Bearer ${KEY}` };
    const request = http.get({ port: this.port, host: '127.0.0.1', path: `/v1/events${query}`, headers });
    const response = await within('the head of a stream of events', new Promise((resolve, reject) => {
      request.on('response', resolve);
      request.on('error', reject);
    }));
    if (response.statusCode !== 200) throw new Error(`events were answered with ${response.statusCode}`);
    return (async function* events() {
      let begun = '';
      for await (const piece of response) {
        const lines = (begun + piece).split('\n');
        begun = lines.pop();
        for (const line of lines) if (line.startsWith('data:')) yield JSON.parse(line.slice(5));
      }
    })();
  }

  /** Dispatches `from`, `from + 1` … one after the other. */
  async numbers(count, recipients, from = 0) {
    for (let n = from; n < from + count; n += 1) await this.number(n, recipients);
  }

  user(id) {
    return this.ask('GET', `/v1/users/${encodeURIComponent(id)}`);
  }

  /** Resolves once everything of a user has been received. */
  allReceived(id) {
    return eventually(`nothing to be pending for ${id}`, async () => (await this.user(id)).pending === 0);
  }

  /** Resolves once a user has this many connections. */
  connections(id, count, ms) {
    return eventually(`${id} to have ${count} connections`, async () => (await this.user(id)).connections === count, ms);
  }
}

/** The environment without anything that would configure a server. */
function environment() {
  const ours = /^(MESA_|REDIS_|WS_KEY|SYNC_|PORTALS?_|HEARTBEATS?_|RECONNECTS?_|AUTH_|ENFORCE_|STORE_)/;
  return Object.fromEntries(Object.entries(process.env).filter(([name]) => !ours.test(name)));
}

/** A running server that is removed when test `t` ends. */
async function start(t, config) {
  const server = new Server(config);
  t.after(() => server.remove());
  return server.start();
}

module.exports = { KEY, Server, start };
