'use strict';
// Drives the benchmark `original_dispatcher`: `node original_dispatcher.js MESA_BINARY`. Prints a table of medians.

const { execFileSync, spawn } = require('node:child_process');
const fs = require('node:fs');
const net = require('node:net');
const os = require('node:os');
const path = require('node:path');

const modules = path.join(__dirname, '../tests/node_clients/node_modules');
const original = require(path.join(modules, 'stock158'));
const WebSocket = require(path.join(modules, 'ws'));

const ROUNDS = 7;
/** Dispatches per round, all started at once. */
const DISPATCHES = 4000;
/** Offline users; each receives the same number of dispatches. */
const OFFLINE_USERS = 500;
const DATA = 'x'.repeat(256);

const DIRECTORY = fs.mkdtempSync(path.join(os.tmpdir(), 'mesa-bench-'));
const children = [];

process.on('exit', () => {
  children.forEach((child) => child.kill('SIGKILL'));
  fs.rmSync(DIRECTORY, { recursive: true, force: true });
});

const pause = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

async function freePort() {
  const server = net.createServer().listen(0, '127.0.0.1');
  await new Promise((resolve) => { server.once('listening', resolve); });
  const { port } = server.address();
  await new Promise((resolve) => { server.close(resolve); });
  return port;
}

async function waitForListener(port) {
  for (let tries = 0; tries < 500; tries += 1) {
    const open = await new Promise((resolve) => {
      const socket = net.connect(port, '127.0.0.1', () => { socket.destroy(); resolve(true); });
      socket.once('error', () => resolve(false));
    });
    if (open) return;
    await pause(20);
  }
  throw new Error(`no listener on port ${port} after 10 s`);
}

function run(program, args) {
  const child = spawn(program, args, { stdio: ['ignore', 'ignore', 'inherit'], cwd: DIRECTORY });
  children.push(child);
  return child;
}

async function startMesa() {
  const [port, redis] = [await freePort(), await freePort()];
  const file = path.join(DIRECTORY, 'mesa.json');
  fs.writeFileSync(file, JSON.stringify({
    host: '127.0.0.1',
    port,
    sync: { enabled: true },
    authentication: { insecure: true },
    redisProtocol: { port: redis },
    log: { level: 'error' },
  }));
  const child = run(process.argv[2], ['serve', '--config', file, '--store-path', path.join(DIRECTORY, 'store')]);
  await Promise.all([waitForListener(port), waitForListener(redis)]);
  return { port, redis, processes: [child] };
}

async function startOriginal(...options) {
  const [port, redis] = [await freePort(), await freePort()];
  const directory = fs.mkdtempSync(path.join(DIRECTORY, 'redis-'));
  const server = run('redis-server', ['--port', String(redis), '--bind', '127.0.0.1', '--save', '', '--dir', directory, ...options]);
  await waitForListener(redis);
  const node = run(process.execPath, ['-e', `
    const { default: Server } = require(${JSON.stringify(path.join(modules, 'stock158'))});
    const server = new Server({ port: ${port}, redis: 'redis://127.0.0.1:${redis}', sync: { enabled: true } });
    server.on('connection', (client) => client.authenticate(({ token }, done) => done(null, { id: token, user: { id: token } })));
  `]);
  await waitForListener(port);
  return { port, redis, processes: [server, node] };
}

/** Returns the CPU time that processes have used, in ms. */
function cpuTime(processes) {
  const tick = 1000 / Number(execFileSync('getconf', ['CLK_TCK']));
  return processes.reduce((sum, { pid }) => {
    const fields = fs.readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1].split(' ');
    return sum + (Number(fields[11]) + Number(fields[12])) * tick;
  }, 0);
}

const message = () => new original.Message(0, { text: DATA }, 'BENCH');

/** Measures dispatches to offline users, until all commands of the Dispatcher are answered. */
async function measureOffline(target) {
  const dispatcher = new original.Dispatcher(`redis://127.0.0.1:${target.redis}`, { sync: { enabled: true } });
  await Promise.all([dispatcher.redis.ping(), dispatcher.publisher.ping()]);
  await dispatcher.redis.hdel('undelivered_messages', ...Array.from({ length: OFFLINE_USERS }, (_, n) => `user-${n}`));
  const [start, cpuBefore] = [performance.now(), cpuTime(target.processes)];
  for (let n = 0; n < DISPATCHES; n += 1) dispatcher.dispatch(message(), [`user-${n % OFFLINE_USERS}`]);
  // Per dispatch the Dispatcher reads whether the user is online, reads the pending messages, and writes them with one more.
  // Each command waits for the reply to the one before.
  for (let step = 0; step < 4; step += 1) await dispatcher.redis.ping();
  await dispatcher.publisher.ping();
  const duration = performance.now() - start;
  const cpu = cpuTime(target.processes) - cpuBefore;
  let stored = 0;
  for (let n = 0; n < OFFLINE_USERS; n += 1) {
    stored += JSON.parse(await dispatcher.redis.hget('undelivered_messages', `user-${n}`) ?? '[]').length;
  }
  dispatcher.redis.disconnect();
  dispatcher.publisher.disconnect();
  return { duration, cpu, delivered: stored };
}

/** Measures dispatches to an online user, until the client has received all of them. */
async function measureOnline(target) {
  const dispatcher = new original.Dispatcher(`redis://127.0.0.1:${target.redis}`, { sync: { enabled: true } });
  await Promise.all([dispatcher.redis.ping(), dispatcher.publisher.ping()]);
  const socket = new WebSocket(`ws://127.0.0.1:${target.port}/`);
  let received = 0;
  let [onComplete, onAuthenticated] = [() => {}, () => {}];
  socket.on('message', (data) => {
    const { op, s } = JSON.parse(data);
    if (op === 1) socket.send('{"op":11,"d":{}}');
    if (op === 22) onAuthenticated();
    // Messages with `s` are redelivered: an earlier round received them and disconnected before it acknowledged them.
    if (op === 0 && s === undefined) {
      received += 1;
      if (received === DISPATCHES) onComplete();
    }
  });
  await new Promise((resolve) => { socket.once('open', resolve); });
  const authenticated = new Promise((resolve) => { onAuthenticated = resolve; });
  socket.send(JSON.stringify({ op: 2, d: { token: 'alice', shouldSync: true } }));
  await authenticated;
  while (!(await dispatcher.redis.sismember('connected_clients', 'alice'))) await pause(5);
  const complete = new Promise((resolve) => { onComplete = resolve; });
  const [start, cpuBefore] = [performance.now(), cpuTime(target.processes)];
  for (let n = 0; n < DISPATCHES; n += 1) dispatcher.dispatch(message(), ['alice']);
  await Promise.race([complete, pause(60_000)]);
  const duration = performance.now() - start;
  const cpu = cpuTime(target.processes) - cpuBefore;
  socket.close();
  while (await dispatcher.redis.sismember('connected_clients', 'alice')) await pause(5);
  dispatcher.redis.disconnect();
  dispatcher.publisher.disconnect();
  return { duration, cpu, delivered: received };
}

const median = (numbers) => numbers.sort((a, b) => a - b)[Math.floor(numbers.length / 2)];

async function main() {
  const targets = {
    'this server (every message synced to disk)': await startMesa(),
    'Redis, nothing on disk, and the original server': await startOriginal('--appendonly', 'no'),
    'Redis, every write synced, and the original server': await startOriginal('--appendonly', 'yes', '--appendfsync', 'always'),
  };
  const rows = [];
  for (const [recipients, measure] of [['to offline users', measureOffline], ['to an online user', measureOnline]]) {
    const results = Object.fromEntries(Object.keys(targets).map((name) => [name, []]));
    for (let round = 0; round < ROUNDS + 1; round += 1) {
      // The targets take turns, so that other load on the machine affects all of them. The first round warms up.
      for (const [name, target] of Object.entries(targets)) {
        const result = await measure(target);
        if (round > 0) results[name].push(result);
      }
    }
    for (const [name, all] of Object.entries(results)) {
      const duration = median(all.map((result) => result.duration));
      const cpu = median(all.map((result) => result.cpu));
      rows.push({
        recipients,
        name,
        'dispatches per second': Math.round((DISPATCHES / duration) * 1000),
        'CPU of the server, µs each': Math.round((cpu / DISPATCHES) * 1000),
        'stored or received': `${median(all.map((result) => result.delivered))} of ${DISPATCHES}`,
      });
    }
  }
  console.log(`\nA Dispatcher of the original, ${DISPATCHES} dispatches of ${DATA.length} bytes started at once, medians of ${ROUNDS} rounds:`);
  for (const row of rows) console.log(`| ${Object.values(row).join(' | ')} |`);
  process.exit(0);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
