'use strict';
// Driver of the benchmark `original_dispatcher`: `node original_dispatcher.js MESA`. Prints a table of medians.

const { execFileSync, spawn } = require('node:child_process');
const fs = require('node:fs');
const net = require('node:net');
const os = require('node:os');
const path = require('node:path');

const modules = path.join(__dirname, '../tests/node_clients/node_modules');
const stock = require(path.join(modules, 'stock158'));
const WebSocket = require(path.join(modules, 'ws'));

const ROUNDS = 7;
/** Dispatches of a round, all begun at once. */
const COUNT = 4000;
/** Users who are away, each of whom gets as many of them. */
const AWAY = 500;
const DATA = 'x'.repeat(256);

const DIRECTORY = fs.mkdtempSync(path.join(os.tmpdir(), 'mesa-bench-'));
const running = [];

process.on('exit', () => {
  running.forEach((child) => child.kill('SIGKILL'));
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

async function listening(port) {
  for (let tries = 0; tries < 500; tries += 1) {
    const open = await new Promise((resolve) => {
      const socket = net.connect(port, '127.0.0.1', () => { socket.destroy(); resolve(true); });
      socket.once('error', () => resolve(false));
    });
    if (open) return;
    await pause(20);
  }
  throw new Error(`nobody listens on ${port}`);
}

function run(program, args) {
  const child = spawn(program, args, { stdio: ['ignore', 'ignore', 'inherit'], cwd: DIRECTORY });
  running.push(child);
  return child;
}

async function mesa() {
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
  await Promise.all([listening(port), listening(redis)]);
  return { port, redis, children: [child] };
}

async function stockOn(...options) {
  const [port, redis] = [await freePort(), await freePort()];
  const directory = fs.mkdtempSync(path.join(DIRECTORY, 'redis-'));
  const server = run('redis-server', ['--port', String(redis), '--bind', '127.0.0.1', '--save', '', '--dir', directory, ...options]);
  await listening(redis);
  const node = run(process.execPath, ['-e', `
    const { default: Server } = require(${JSON.stringify(path.join(modules, 'stock158'))});
    const server = new Server({ port: ${port}, redis: 'redis://127.0.0.1:${redis}', sync: { enabled: true } });
    server.on('connection', (client) => client.authenticate(({ token }, done) => done(null, { id: token, user: { id: token } })));
  `]);
  await listening(port);
  return { port, redis, children: [server, node] };
}

/** CPU that processes have used, in milliseconds. */
function cpu(children) {
  const tick = 1000 / Number(execFileSync('getconf', ['CLK_TCK']));
  return children.reduce((sum, { pid }) => {
    const fields = fs.readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1].split(' ');
    return sum + (Number(fields[11]) + Number(fields[12])) * tick;
  }, 0);
}

const message = () => new stock.Message(0, { text: DATA }, 'BENCH');

/** To users who are away: until all that the Dispatcher has to say was answered. */
async function away(target) {
  const dispatcher = new stock.Dispatcher(`redis://127.0.0.1:${target.redis}`, { sync: { enabled: true } });
  await Promise.all([dispatcher.redis.ping(), dispatcher.publisher.ping()]);
  await dispatcher.redis.hdel('undelivered_messages', ...Array.from({ length: AWAY }, (_, n) => `user-${n}`));
  const [began, used] = [performance.now(), cpu(target.children)];
  for (let n = 0; n < COUNT; n += 1) dispatcher.dispatch(message(), [`user-${n % AWAY}`]);
  // Whether he is here, what waits for him, that and one more: each behind the answer to the one before.
  for (let step = 0; step < 4; step += 1) await dispatcher.redis.ping();
  await dispatcher.publisher.ping();
  const took = performance.now() - began;
  const spent = cpu(target.children) - used;
  let kept = 0;
  for (let n = 0; n < AWAY; n += 1) {
    kept += JSON.parse(await dispatcher.redis.hget('undelivered_messages', `user-${n}`) ?? '[]').length;
  }
  dispatcher.redis.disconnect();
  dispatcher.publisher.disconnect();
  return { took, spent, kept };
}

/** To a user who is here: until he has them all. */
async function here(target) {
  const dispatcher = new stock.Dispatcher(`redis://127.0.0.1:${target.redis}`, { sync: { enabled: true } });
  await Promise.all([dispatcher.redis.ping(), dispatcher.publisher.ping()]);
  const socket = new WebSocket(`ws://127.0.0.1:${target.port}/`);
  let got = 0;
  let [done, welcome] = [() => {}, () => {}];
  socket.on('message', (data) => {
    const { op, s } = JSON.parse(data);
    if (op === 1) socket.send('{"op":11,"d":{}}');
    if (op === 22) welcome();
    // What an earlier round was sent and did not confirm before it went comes again, with a number.
    if (op === 0 && s === undefined) {
      got += 1;
      if (got === COUNT) done();
    }
  });
  await new Promise((resolve) => { socket.once('open', resolve); });
  const welcomed = new Promise((resolve) => { welcome = resolve; });
  socket.send(JSON.stringify({ op: 2, d: { token: 'alice', shouldSync: true } }));
  await welcomed;
  while (!(await dispatcher.redis.sismember('connected_clients', 'alice'))) await pause(5);
  const all = new Promise((resolve) => { done = resolve; });
  const [began, used] = [performance.now(), cpu(target.children)];
  for (let n = 0; n < COUNT; n += 1) dispatcher.dispatch(message(), ['alice']);
  await Promise.race([all, pause(60_000)]);
  const took = performance.now() - began;
  const spent = cpu(target.children) - used;
  socket.close();
  while (await dispatcher.redis.sismember('connected_clients', 'alice')) await pause(5);
  dispatcher.redis.disconnect();
  dispatcher.publisher.disconnect();
  return { took, spent, kept: got };
}

const median = (numbers) => numbers.sort((a, b) => a - b)[Math.floor(numbers.length / 2)];

async function main() {
  const targets = {
    'this server (every message synced to disk)': await mesa(),
    'Redis, nothing on disk, and the stock server': await stockOn('--appendonly', 'no'),
    'Redis, every write synced, and the stock server': await stockOn('--appendonly', 'yes', '--appendfsync', 'always'),
  };
  const rows = [];
  for (const [what, measure] of [['to users who are away', away], ['to a user who is here', here]]) {
    const results = Object.fromEntries(Object.keys(targets).map((name) => [name, []]));
    for (let round = 0; round < ROUNDS + 1; round += 1) {
      // In turn, so that whatever else goes on is shared by all; the first round warms up.
      for (const [name, target] of Object.entries(targets)) {
        const result = await measure(target);
        if (round > 0) results[name].push(result);
      }
    }
    for (const [name, all] of Object.entries(results)) {
      const took = median(all.map((result) => result.took));
      const spent = median(all.map((result) => result.spent));
      rows.push({
        what,
        name,
        'dispatches a second': Math.round((COUNT / took) * 1000),
        'CPU of the server, µs each': Math.round((spent / COUNT) * 1000),
        'kept or received': `${median(all.map((result) => result.kept))} of ${COUNT}`,
      });
    }
  }
  console.log(`\nA stock Dispatcher, ${COUNT} dispatches of ${DATA.length} bytes begun at once, medians of ${ROUNDS} rounds:`);
  for (const row of rows) console.log(`| ${Object.values(row).join(' | ')} |`);
  process.exit(0);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
