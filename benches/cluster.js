'use strict';
// The stock side of the benchmark `cluster`: `node cluster.js REDIS_URL DATA_BYTES`. Told on standard input what to measure,
// one JSON object a line; one line of answer to each, in milliseconds.

const { spawn } = require('node:child_process');
const net = require('node:net');
const path = require('node:path');
const readline = require('node:readline');

const modules = path.join(__dirname, '../tests/node_clients/node_modules');
const stock = require(path.join(modules, 'stock158'));
const WebSocket = require(path.join(modules, 'ws'));

const [redis, bytes] = process.argv.slice(2);
const DATA = 'x'.repeat(Number(bytes));
/** What is not there by then is lost. */
const PATIENCE_MS = 60_000;

let server;
let dispatcher;
let arrived = () => {};
process.on('exit', () => server?.kill('SIGKILL'));

const pause = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });
const dispatch = () => dispatcher.dispatch(new stock.Message(0, DATA, 'BENCH'), ['alice']);

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
  throw new Error('the stock server does not listen');
}

/** Runs `begin`, and waits until `arrived` has called `done`. */
function until(begin) {
  return new Promise((resolve, reject) => {
    const late = setTimeout(() => reject(new Error('a message was lost')), PATIENCE_MS);
    begin((result) => { clearTimeout(late); resolve(result); });
  });
}

const does = {
  async start() {
    const port = await freePort();
    server = spawn(process.execPath, ['-e', `
      const { default: Server } = require(${JSON.stringify(path.join(modules, 'stock158'))});
      const server = new Server({ port: ${port}, redis: ${JSON.stringify(redis)}, namespace: 'stock', sync: { enabled: true } });
      server.on('connection', (client) => client.authenticate(({ token }, done) => done(null, { id: token, user: { id: token } })));
    `], { stdio: ['ignore', 'ignore', 'inherit'] });
    dispatcher = new stock.Dispatcher(redis, { namespace: 'stock', sync: { enabled: true } });
    await Promise.all([dispatcher.redis.ping(), dispatcher.publisher.ping()]);
    const socket = await connect(port);
    await until((welcome) => {
      socket.on('message', (data) => {
        const { op } = JSON.parse(data);
        if (op === 1) socket.send('{"op":11,"d":{}}');
        if (op === 22) welcome();
        if (op === 0) arrived();
      });
      socket.send(JSON.stringify({ op: 2, d: { token: 'alice', shouldSync: true } }));
    });
    while (!(await dispatcher.redis.sismember('connected_clients_stock', 'alice'))) await pause(5);
    return 'started';
  },
  async singly({ count }) {
    const took = [];
    for (let n = 0; n < count; n += 1) {
      took.push(await until((done) => {
        const began = performance.now();
        arrived = () => done(performance.now() - began);
        dispatch();
      }));
    }
    return took;
  },
  many({ count, atOnce }) {
    return until((done) => {
      const began = performance.now();
      let [sent, came] = [0, 0];
      const more = () => { if (sent < count) { sent += 1; dispatch(); } };
      arrived = () => {
        came += 1;
        if (came === count) done(performance.now() - began); else more();
      };
      for (let n = 0; n < atOnce; n += 1) more();
    });
  },
  end() { process.exit(0); },
};

readline.createInterface({ input: process.stdin }).on('line', async (line) => {
  const { what, ...how } = JSON.parse(line);
  try {
    console.log(JSON.stringify(await does[what](how)));
  } catch (error) {
    console.error(error);
    process.exit(1);
  }
}).on('close', () => process.exit(0));
