'use strict';
// Portals of the stock package, unmodified, with this server for their Redis. (1.3.8 has none.)

const assert = require('node:assert/strict');
const { spawn } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');
const readline = require('node:readline');
const test = require('node:test');
const { Peer } = require('./lib/clients');
const { start } = require('./lib/server');
const { KINDS, portal } = require('./lib/stock');
const { range } = require('./lib/suite');
const { Changes, eventually, within } = require('./lib/wait');

const CONFIG = { redisProtocol: { port: 0 }, portal: { enabled: true } };
const WITH_PORTAL = KINDS.filter((kind) => kind.startsWith('stock158'));

function overAll(promise, config, scenario) {
  test(promise, { concurrency: WITH_PORTAL.length }, async (t) => {
    await Promise.all(WITH_PORTAL.map((kind) => t.test(kind, async (run) => {
      const server = await start(run, { ...CONFIG, ...config });
      const connect = async (user) => {
        const peer = new Peer('stock158', server.url);
        run.after(() => peer.retire());
        await peer.connect();
        if (user) await peer.is(user);
        return peer;
      };
      const made = async (options) => {
        const before = await portals(server);
        const one = portal(run, kind, server.redis, options);
        await eventually('the portal to take its turns', async () => (await portals(server)) > before);
        await Promise.all([one.made.redis.ping(), one.made.publisher.ping()]);
        return one;
      };
      await scenario({ server, connect, portal: made, t: run, kind });
    })));
  });
}

/** How many portals take turns. */
async function portals(server) {
  const { body } = await server.call('GET', '/metrics');
  return Number(/^mesa_portals (\d+)$/m.exec(body)[1]);
}

const say = (peer, n) => peer.client.ws.send(JSON.stringify({ op: 0, d: { n }, t: 'N' }));

overAll('a_portal_is_told_all_four_events', {}, async ({ connect, portal }) => {
  const one = await portal();
  const alice = await connect();
  say(alice, 0);
  await one.until('a message', () => one.events.length === 2);
  await alice.is('alice');
  say(alice, 1);
  await one.until('another', () => one.events.length === 4);
  await alice.disconnect();
  await one.until('the end', () => one.events.length === 5);
  assert.deepEqual(one.events, [
    ['connection', undefined],
    ['message', { op: 0, d: { n: 0 }, t: 'N', clientId: undefined }],
    ['authentication', 'alice'],
    ['message', { op: 0, d: { n: 1 }, t: 'N', clientId: 'alice' }],
    ['disconnection', 'alice'],
  ]);
});

overAll('two_portals_share_the_load_and_one_that_reports_all_events_has_all', {}, async ({ connect, portal }) => {
  const alice = await connect('alice');
  const portals = [await portal(), await portal(), await portal({ reportAllEvents: true })];
  for (const n of range(30)) say(alice, n);
  const [one, two, all] = portals;
  await all.until('all', () => all.numbers().length === 30);
  assert.deepEqual(all.numbers(), range(30));
  // It is in the pool as well, as in stock, so each has a third.
  for (const each of [one, two]) await each.until('its share', () => each.numbers().length === 10);
  const shared = [...one.numbers(), ...two.numbers()];
  assert.equal(new Set(shared).size, 20, 'no event goes to both');
});

overAll('at_random_each_event_still_goes_to_one', { portal: { enabled: true, distributeLoad: false } }, async (its) => {
  const alice = await its.connect('alice');
  const [one, two] = [await its.portal(), await its.portal()];
  for (const n of range(80)) say(alice, n);
  const all = () => [...one.numbers(), ...two.numbers()];
  await eventually('all', () => all().length >= 80);
  assert.deepEqual(all().sort((a, b) => a - b), range(80));
  assert.ok(one.numbers().length > 15 && two.numbers().length > 15, `${one.numbers().length} of 80`);
});

overAll('names_have_the_namespace_behind_them', { namespace: 'chat' }, async ({ connect, portal }) => {
  const one = await portal({ namespace: 'chat' });
  const alice = await connect('alice');
  say(alice, 0);
  await one.until('a message', () => one.numbers().length === 1);
});

/** A portal in a process of its own. */
function process_(t, kind, url) {
  const child = spawn(process.execPath, [path.join(__dirname, 'lib/portal-process.js'), kind, url], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  t.after(() => child.kill('SIGKILL'));
  const changes = new Changes();
  const numbers = [];
  readline.createInterface({ input: child.stdout }).on('line', (line) => {
    numbers.push(Number(line));
    changes.notify();
  });
  const ended = new Promise((resolve) => child.once('exit', resolve));
  return {
    numbers,
    end: (signal) => {
      child.kill(signal);
      return within('the portal to end', ended);
    },
    until: (what, ok) => changes.until(() => `${what}; got ${numbers}`, ok),
  };
}

overAll('of_a_portal_that_is_killed_the_others_take_the_turns', {}, async ({ server, connect, portal, t, kind }) => {
  const alice = await connect('alice');
  const one = await portal();
  const doomed = process_(t, kind, server.redis);
  await eventually('both to take turns', async () => (await portals(server)) === 2);
  for (const n of range(10)) say(alice, n);
  await doomed.until('its share', () => doomed.numbers.length === 5);
  await one.until('its share', () => one.numbers().length === 5);
  await doomed.end('SIGKILL');
  await eventually('it to be gone', async () => (await portals(server)) === 1);
  for (const n of range(10, 10)) say(alice, n);
  await one.until('all', () => one.numbers().length === 15);
  assert.deepEqual(one.numbers().slice(5), range(10, 10));
});

overAll('a_portal_that_goes_in_order_leaves_the_pool', {}, async ({ server, portal, t, kind }) => {
  const one = await portal();
  const other = process_(t, kind, server.redis);
  await eventually('both to take turns', async () => (await portals(server)) === 2);
  assert.equal((await one.made.redis.smembers('available_portals_pool')).length, 2);
  await other.end('SIGTERM');
  await eventually('it to be gone', async () => (await portals(server)) === 1);
  assert.deepEqual(await one.made.redis.smembers('available_portals_pool'), [one.made.id]);
});

overAll('portals_go_on_when_the_server_was_started_anew', {}, async ({ server, connect, portal }) => {
  const [one, two] = [await portal(), await portal()];
  const port = server.redisProtocolPort;
  const file = path.join(server.storePath, 'portals.json');
  const remembered = () => (fs.existsSync(file) ? fs.readFileSync(file, 'utf8') : '');
  await eventually('both to be remembered', () => [one, two].every(({ made }) => remembered().includes(made.id)));
  await server.kill();
  await server.restart({ redisProtocol: { port } });
  // They say nothing but that they listen again. What happens before they do waits for them.
  const alice = await connect('alice');
  for (const n of range(20)) say(alice, n);
  const all = () => [...one.numbers(), ...two.numbers()];
  await eventually('all to be told', () => all().length >= 20);
  await eventually('both to take turns', async () => (await portals(server)) === 2);
  for (const n of range(20, 20)) say(alice, n);
  await eventually('all to be told', () => all().length >= 40);
  assert.deepEqual(all().sort((a, b) => a - b), range(40), 'each once');
});

overAll('portals_share_with_a_stream_of_events', {}, async ({ server, connect, portal }) => {
  const alice = await connect('alice');
  const one = await portal();
  const abort = new AbortController();
  const response = await fetch(`http://127.0.0.1:${server.port}/v1/events`, {
    headers: { authorization: 'Bearer test-key-0123456789' },
    signal: abort.signal,
  });
  assert.equal(response.status, 200);
  await eventually('both to take turns', async () => (await portals(server)) === 2);
  const streamed = [];
  (async () => {
    let text = '';
    for await (const piece of response.body) {
      text += Buffer.from(piece).toString();
      const blocks = text.split('\n\n');
      text = blocks.pop();
      for (const block of blocks) {
        const data = /^data: (.*)$/m.exec(block);
        if (data) streamed.push(JSON.parse(data[1]).message.d.n);
      }
    }
  })().catch(() => {});
  for (const n of range(20)) say(alice, n);
  await one.until('its share', () => one.numbers().length === 10);
  await eventually('its share', () => streamed.length === 10);
  assert.deepEqual([...one.numbers(), ...streamed].sort((a, b) => a - b), range(20));
  abort.abort();
});
