'use strict';
// Runs the built server in its own process, on its own store.

const { spawn } = require('node:child_process');
const fs = require('node:fs');
const http = require('node:http');
const os = require('node:os');
const path = require('node:path');
const { WAIT_TIMEOUT, pollUntil, withTimeout } = require('./wait');

const KEY = 'test-key-0123456789';

/** Absolute path: a test may change the working directory later. */
const BIN = process.env.MESA_BIN && path.resolve(process.env.MESA_BIN);

/** Configuration of every server, before that of the test. */
const DEFAULTS = {
  host: '127.0.0.1',
  port: 0,
  sync: { enabled: true },
  authentication: { insecure: true },
  api: { keys: [KEY] },
};

const running = new Set();
process.on('exit', () => running.forEach((child) => child.kill('SIGKILL')));

/** Returns `base` with the keys of `overrides` merged into it, recursively. */
function mergeConfig(base, overrides) {
  const merged = { ...base };
  for (const [key, value] of Object.entries(overrides ?? {})) {
    const nested = value && typeof value === 'object' && !Array.isArray(value);
    merged[key] = nested ? mergeConfig(base?.[key] ?? {}, value) : value;
  }
  return merged;
}

class Server {
  #directory = fs.mkdtempSync(path.join(os.tmpdir(), 'mesa-interop-'));
  #agent = new http.Agent({ keepAlive: true, maxSockets: 64 });
  #config;
  #args;
  #child;
  #starts = 0;

  /** `args` are further arguments of the command line. */
  constructor(config, args = []) {
    this.#config = mergeConfig(DEFAULTS, config);
    this.#args = args;
  }

  /** Starts the process, and resolves once it listens. */
  async start() {
    if (!BIN) throw new Error('MESA_BIN must name the server binary (tests/run sets it)');
    this.#starts += 1;
    const file = (name) => path.join(this.#directory, `${name}.${this.#starts}`);
    fs.writeFileSync(file('config'), JSON.stringify(this.#config));
    const log = fs.openSync(file('log'), 'w');
    const args = ['serve', '--config', file('config'), '--store-path', this.storePath, '--ready-file', file('ready'), ...this.#args];
    const child = spawn(BIN, args, { cwd: this.#directory, stdio: ['ignore', log, log], env: cleanEnvironment() });
    fs.closeSync(log);
    running.add(child);
    this.#child = child;
    this.exited = new Promise((resolve) => {
      child.once('error', (error) => resolve({ error }));
      child.once('exit', (code, signal) => resolve({ code, signal }));
    }).then((result) => {
      running.delete(child);
      this.ended = result;
      return result;
    });
    this.ended = undefined;
    const { address, redisProtocol } = await pollUntil('the server to listen', () => {
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

  /** Redis URL for a Dispatcher or Portal of the original. */
  get redisUrl() {
    const { password } = this.#config.redisProtocol;
    return `redis://${password ? `:${password}@` : ''}127.0.0.1:${this.redisProtocolPort}`;
  }

  /** Returns the log of the latest run. */
  log() {
    return fs.readFileSync(path.join(this.#directory, `log.${this.#starts}`), 'utf8');
  }

  /** Ends the process with SIGKILL. */
  async kill() {
    this.#child.kill('SIGKILL');
    await withTimeout('the killed server to end', this.exited);
  }

  /** Ends the process with SIGTERM, and resolves with its exit code. */
  async stop() {
    this.#child.kill('SIGTERM');
    const { code, signal } = await withTimeout('the server to stop', this.exited);
    return code ?? signal;
  }

  /** Starts again on the same store, with `config` merged into the previous configuration. */
  async restart(config) {
    if (!this.ended) throw new Error('the server must be stopped before a restart');
    this.#agent.destroy();
    this.#config = mergeConfig(this.#config, config);
    return this.start();
  }

  /** Kills the process if it runs, and deletes its directory. */
  async remove() {
    if (!this.ended && this.#child) await this.kill();
    this.#agent.destroy();
    fs.rmSync(this.#directory, { recursive: true, force: true });
  }

  /** Sends one request to the HTTP API, and resolves with `{ status, body }`. */
  call(method, target, body, headers = {}) {
    const requestBody = body === undefined ? undefined : JSON.stringify(body);
    const options = {
      host: '127.0.0.1',
      port: this.port,
      agent: this.#agent,
      method,
      path: target,
      headers: { authorization: `Bearer ${KEY}`, ...(requestBody && { 'content-type': 'application/json' }), ...headers },
      timeout: WAIT_TIMEOUT,
    };
    return new Promise((resolve, reject) => {
      const request = http.request(options, (response) => {
        const chunks = [];
        response.on('data', (chunk) => chunks.push(chunk));
        response.on('error', reject);
        response.on('end', () => {
          const text = Buffer.concat(chunks).toString();
          const json = /json/.test(response.headers['content-type'] ?? '');
          resolve({ status: response.statusCode, body: json ? JSON.parse(text) : text });
        });
      });
      request.on('timeout', () => request.destroy(new Error(`no response to ${method} ${target}`)));
      request.on('error', reject);
      request.end(requestBody);
    });
  }

  /** As `call`, but resolves with the body only, and rejects for an error status. */
  async request(method, target, body) {
    const response = await this.call(method, target, body);
    if (response.status >= 300) {
      throw new Error(`${method} ${target}: ${response.status} ${JSON.stringify(response.body)}`);
    }
    return response.body;
  }

  dispatch(message, recipients, excluding, id) {
    return this.request('POST', '/v1/dispatch', { message, recipients, ...(excluding && { excluding }), ...(id && { id }) });
  }

  /** Dispatches a message with the data `{ n }`. */
  dispatchNumber(n, recipients, { excluding, id, ...options } = {}) {
    const o = Object.keys(options).length ? { o: options } : {};
    return this.dispatch({ op: 0, d: { n }, t: 'NUMBER', ...o }, [recipients].flat(), excluding, id);
  }

  /** Opens an NDJSON stream of dispatches. Lines are written to `request`; `results` yields the parsed result lines. */
  openStream() {
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
    // Without a reader of `results`, a failed request must not be an unhandled rejection.
    responded.catch(() => {});
    async function* readResults() {
      const response = await withTimeout('the response head of a stream', responded);
      if (response.statusCode !== 200) throw new Error(`expected status 200 for a stream, got ${response.statusCode}`);
      let partialLine = '';
      for await (const chunk of response) {
        const lines = (partialLine + chunk).split('\n');
        partialLine = lines.pop();
        for (const line of lines) yield JSON.parse(line);
      }
      if (partialLine) throw new Error(`incomplete result line: ${partialLine}`);
    }
    return { request, results: readResults() };
  }

  /** Opens a stream of client events (`GET /v1/events`), and returns an iterator over them. */
  async openEvents(query = '') {
    const headers = { authorization: `Bearer ${KEY}` };
    const request = http.get({ port: this.port, host: '127.0.0.1', path: `/v1/events${query}`, headers });
    const response = await withTimeout('the response head of the event stream', new Promise((resolve, reject) => {
      request.on('response', resolve);
      request.on('error', reject);
    }));
    if (response.statusCode !== 200) throw new Error(`expected status 200 for the event stream, got ${response.statusCode}`);
    return (async function* readEvents() {
      let partialLine = '';
      for await (const chunk of response) {
        const lines = (partialLine + chunk).split('\n');
        partialLine = lines.pop();
        for (const line of lines) if (line.startsWith('data:')) yield JSON.parse(line.slice(5));
      }
    })();
  }

  /** Dispatches the numbers `from`, `from + 1` …, each after the result of the previous one. */
  async dispatchNumbers(count, recipients, from = 0) {
    for (let n = from; n < from + count; n += 1) await this.dispatchNumber(n, recipients);
  }

  /** Resolves with the state of a user. */
  userState(id) {
    return this.request('GET', `/v1/users/${encodeURIComponent(id)}`);
  }

  /** Resolves once a user has no pending messages. */
  waitForNoPending(id) {
    return pollUntil(`${id} to have no pending messages`, async () => (await this.userState(id)).pending === 0);
  }

  /** Resolves once a user has `count` connections. */
  waitForConnections(id, count, ms) {
    const reached = async () => (await this.userState(id)).connections === count;
    return pollUntil(`${id} to have ${count} connections`, reached, ms);
  }
}

/** Returns the environment without variables that configure a server. */
function cleanEnvironment() {
  const settings = /^(MESA_|REDIS_|WS_KEY|SYNC_|PORTALS?_|HEARTBEATS?_|RECONNECTS?_|AUTH_|ENFORCE_|STORE_)/;
  return Object.fromEntries(Object.entries(process.env).filter(([name]) => !settings.test(name)));
}

/** Starts a server that is removed when test `t` ends. */
async function startServer(t, config, args) {
  const server = new Server(config, args);
  t.after(() => server.remove());
  return server.start();
}

module.exports = { BIN, KEY, Server, startServer };
