'use strict';
// Measures the original Mesa (`@cryb/mesa`) for the benchmark `cluster`: `node cluster.js REDIS_URL DATA_BYTES`. Reads commands
// from standard input, one JSON object per line. Writes one line of JSON per command; times are in milliseconds.

const { spawn } = require('node:child_process');
const net = require('node:net');
const path = require('node:path');
const readline = require('node:readline');

const modules = path.join(__dirname, '../tests/node_clients/node_modules');
const original = require(path.join(modules, 'stock158'));
const WebSocket = require(path.join(modules, 'ws'));

const [redis, bytes] = process.argv.slice(2);
const DATA = 'x'.repeat(Number(bytes));
/** A message that takes longer counts as lost. */
const MESSAGE_TIMEOUT_MS = 60_000;

let server;
let dispatcher;
let onMessage = () => {};
process.on('exit', () => server?.kill('SIGKILL'));

const pause = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });
const dispatch = () => dispatcher.dispatch(new original.Message(0, DATA, 'BENCH'), ['alice']);

async function freePort() {
  const listener = net.createServer().listen(0, '127.0.0.1');
  await new Promise((resolve) => { listener.once('listening', resolve); });
  const { port } = listener.address();
  await new Promise((resolve) => { listener.close(resolve); });
  return port;
}

async function connect(port) {
  for (let tries = 0; tries < 500; tries += 1) {
    const socket = new WebSocket(`ws://127.0.0.1:${port}/`);
    const opened = await new Promise((resolve) => {
      socket.once('open', () => resolve(true));
      socket.once('error', () => resolve(false));
    });
    if (opened) return socket;
    await pause(20);
  }
  throw new Error('the original server does not listen after 10 s');
}

/** Calls `start` with a callback, and resolves with what the callback gets. Rejects after MESSAGE_TIMEOUT_MS. */
function withTimeout(start) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`no message within ${MESSAGE_TIMEOUT_MS} ms`)), MESSAGE_TIMEOUT_MS);
    start((result) => { clearTimeout(timer); resolve(result); });
  });
}

const commands = {
  async start() {
    const port = await freePort();
    server = spawn(process.execPath, ['-e', `
      const { default: Server } = require(${JSON.stringify(path.join(modules, 'stock158'))});
      const server = new Server({ port: ${port}, redis: ${JSON.stringify(redis)}, namespace: 'original', sync: { enabled: true } });
      server.on('connection', (client) => client.authenticate(({ token }, done) => done(null, { id: token, user: { id: token } })));
    `], { stdio: ['ignore', 'ignore', 'inherit'] });
    dispatcher = new original.Dispatcher(redis, { namespace: 'original', sync: { enabled: true } });
    await Promise.all([dispatcher.redis.ping(), dispatcher.publisher.ping()]);
    const socket = await connect(port);
    await withTimeout((authenticated) => {
      socket.on('message', (data) => {
        const { op } = JSON.parse(data);
        if (op === 1) socket.send('{"op":11,"d":{}}');
        if (op === 22) authenticated();
        if (op === 0) onMessage();
      });
      socket.send(JSON.stringify({ op: 2, d: { token: 'alice', shouldSync: true } }));
    });
    while (!(await dispatcher.redis.sismember('connected_clients_original', 'alice'))) await pause(5);
    return 'started';
  },
  async sequential({ count }) {
    const latencies = [];
    for (let n = 0; n < count; n += 1) {
      latencies.push(await withTimeout((done) => {
        const start = performance.now();
        onMessage = () => done(performance.now() - start);
        dispatch();
      }));
    }
    return latencies;
  },
  concurrent({ count, inFlight }) {
    return withTimeout((done) => {
      const start = performance.now();
      let [sent, received] = [0, 0];
      const sendNext = () => { if (sent < count) { sent += 1; dispatch(); } };
      onMessage = () => {
        received += 1;
        if (received === count) done(performance.now() - start); else sendNext();
      };
      for (let n = 0; n < inFlight; n += 1) sendNext();
    });
  },
  exit() { process.exit(0); },
};

readline.createInterface({ input: process.stdin }).on('line', async (line) => {
  const { command, ...parameters } = JSON.parse(line);
  try {
    console.log(JSON.stringify(await commands[command](parameters)));
  } catch (error) {
    console.error(error);
    process.exit(1);
  }
}).on('close', () => process.exit(0));
