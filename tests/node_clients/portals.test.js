'use strict';
// Tests Portals of the original (1.5.8), unmodified, with this server as their Redis. Version 1.3.8 has no Portal.

const assert = require('node:assert/strict');
const { spawn } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');
const readline = require('node:readline');
const test = require('node:test');
const { TestClient } = require('./lib/clients');
const { startServer } = require('./lib/server');
const { KINDS, createPortal } = require('./lib/original');
const { range } = require('./lib/suite');
const { ChangeNotifier, pollUntil, withTimeout } = require('./lib/wait');

const CONFIG = { redisProtocol: { port: 0 }, portal: { enabled: true } };
const PORTAL_KINDS = KINDS.filter((kind) => kind.startsWith('original158'));

/** Runs `scenario` for a Portal over each Redis client, each with its own server. */
function testWithEachPortal(name, config, scenario) {
  test(name, { concurrency: PORTAL_KINDS.length }, async (t) => {
    await Promise.all(PORTAL_KINDS.map((kind) => t.test(kind, async (run) => {
      const server = await startServer(run, { ...CONFIG, ...config });
      const connect = async (user) => {
        const client = new TestClient('original158', server.url);
        run.after(() => client.discard());
        await client.connect();
        if (user) await client.authenticateAs(user);
        return client;
      };
      const portal = async (options) => {
        const countBefore = await portalCount(server);
        const created = createPortal(run, kind, server.redisUrl, options);
        await pollUntil('the portal to be registered', async () => (await portalCount(server)) > countBefore);
        await Promise.all([created.portal.redis.ping(), created.portal.publisher.ping()]);
        return created;
      };
      await scenario({ server, connect, portal, t: run, kind });
    })));
  });
}

/** Reads the number of portals that receive events. */
async function portalCount(server) {
  const { body } = await server.call('GET', '/metrics');
  return Number(/^mesa_portals (\d+)$/m.exec(body)[1]);
}

/** Sends a message with the data `{ n }` as a raw frame, without the checks of the client. */
const sendNumber = (client, n) => client.client.ws.send(JSON.stringify({ op: 0, d: { n }, t: 'N' }));

testWithEachPortal('portal_receives_all_four_event_types', {}, async ({ connect, portal }) => {
  const one = await portal();
  const alice = await connect();
  sendNumber(alice, 0);
  await one.waitUntil('a message', () => one.events.length === 2);
  await alice.authenticateAs('alice');
  sendNumber(alice, 1);
  await one.waitUntil('the second message', () => one.events.length === 4);
  await alice.disconnect();
  await one.waitUntil('the disconnection', () => one.events.length === 5);
  assert.deepEqual(one.events, [
    ['connection', undefined],
    ['message', { op: 0, d: { n: 0 }, t: 'N', clientId: undefined }],
    ['authentication', 'alice'],
    ['message', { op: 0, d: { n: 1 }, t: 'N', clientId: 'alice' }],
    ['disconnection', 'alice'],
  ]);
});

testWithEachPortal('portals_share_events_in_turn_and_portal_with_all_events_receives_all', {}, async ({ connect, portal }) => {
  const alice = await connect('alice');
  const portals = [await portal(), await portal(), await portal({ reportAllEvents: true })];
  for (const n of range(30)) sendNumber(alice, n);
  const [one, two, all] = portals;
  await all.waitUntil('all messages', () => all.numbers().length === 30);
  assert.deepEqual(all.numbers(), range(30));
  // The portal with all events is in the pool as well, as in the original. So each of the others receives a third.
  for (const each of [one, two]) await each.waitUntil('10 messages', () => each.numbers().length === 10);
  const shared = [...one.numbers(), ...two.numbers()];
  assert.equal(new Set(shared).size, 20, 'expected no event to go to both');
});

const AT_RANDOM = { portal: { enabled: true, distributeLoad: false } };
testWithEachPortal('event_at_random_goes_to_exactly_one_portal', AT_RANDOM, async ({ connect, portal }) => {
  const alice = await connect('alice');
  const [one, two] = [await portal(), await portal()];
  for (const n of range(80)) sendNumber(alice, n);
  const all = () => [...one.numbers(), ...two.numbers()];
  await pollUntil('80 messages', () => all().length >= 80);
  assert.deepEqual(all().sort((a, b) => a - b), range(80));
  const [first, second] = [one.numbers().length, two.numbers().length];
  assert.ok(first > 15 && second > 15, `expected more than 15 of 80 for each portal, got ${first} and ${second}`);
});

testWithEachPortal('portal_in_namespace_of_the_server_receives_events', { namespace: 'chat' }, async ({ connect, portal }) => {
  const one = await portal({ namespace: 'chat' });
  const alice = await connect('alice');
  sendNumber(alice, 0);
  await one.waitUntil('a message', () => one.numbers().length === 1);
});

/** Starts a portal in its own process. */
function startPortalProcess(t, kind, url) {
  const child = spawn(process.execPath, [path.join(__dirname, 'lib/portal-process.js'), kind, url], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  t.after(() => child.kill('SIGKILL'));
  const changes = new ChangeNotifier();
  const numbers = [];
  readline.createInterface({ input: child.stdout }).on('line', (line) => {
    numbers.push(Number(line));
    changes.notify();
  });
  const ended = new Promise((resolve) => child.once('exit', resolve));
  return {
    numbers,
    kill: (signal) => {
      child.kill(signal);
      return withTimeout('the portal to end', ended);
    },
    waitUntil: (description, condition) => changes.waitUntil(() => `${description}; received ${numbers}`, condition),
  };
}

testWithEachPortal('killed_portal_is_removed_and_others_receive_its_share', {}, async ({ server, connect, portal, t, kind }) => {
  const alice = await connect('alice');
  const one = await portal();
  const killed = startPortalProcess(t, kind, server.redisUrl);
  await pollUntil('both portals to be registered', async () => (await portalCount(server)) === 2);
  for (const n of range(10)) sendNumber(alice, n);
  await killed.waitUntil('5 messages', () => killed.numbers.length === 5);
  await one.waitUntil('5 messages', () => one.numbers().length === 5);
  await killed.kill('SIGKILL');
  await pollUntil('the ended portal to be removed', async () => (await portalCount(server)) === 1);
  for (const n of range(10, 10)) sendNumber(alice, n);
  await one.waitUntil('15 messages', () => one.numbers().length === 15);
  assert.deepEqual(one.numbers().slice(5), range(10, 10));
});

testWithEachPortal('portal_that_ends_with_sigterm_leaves_the_pool', {}, async ({ server, portal, t, kind }) => {
  const one = await portal();
  const other = startPortalProcess(t, kind, server.redisUrl);
  await pollUntil('both portals to be registered', async () => (await portalCount(server)) === 2);
  assert.equal((await one.portal.redis.smembers('available_portals_pool')).length, 2);
  await other.kill('SIGTERM');
  await pollUntil('the ended portal to be removed', async () => (await portalCount(server)) === 1);
  assert.deepEqual(await one.portal.redis.smembers('available_portals_pool'), [one.portal.id]);
});

testWithEachPortal('portals_keep_receiving_events_after_a_restart_of_the_server', {}, async ({ server, connect, portal }) => {
  const [one, two] = [await portal(), await portal()];
  const port = server.redisProtocolPort;
  const file = path.join(server.storePath, 'portals.json');
  const savedIds = () => (fs.existsSync(file) ? fs.readFileSync(file, 'utf8') : '');
  await pollUntil('both ids to be saved', () => [one, two].every(({ portal: { id } }) => savedIds().includes(id)));
  await server.kill();
  await server.restart({ redisProtocol: { port } });
  // After a restart, Portals of the original only subscribe again. Earlier events are queued for them.
  const alice = await connect('alice');
  for (const n of range(20)) sendNumber(alice, n);
  const all = () => [...one.numbers(), ...two.numbers()];
  await pollUntil('20 messages', () => all().length >= 20);
  await pollUntil('both portals to be registered', async () => (await portalCount(server)) === 2);
  for (const n of range(20, 20)) sendNumber(alice, n);
  await pollUntil('40 messages', () => all().length >= 40);
  assert.deepEqual(all().sort((a, b) => a - b), range(40), 'expected each message once');
});

testWithEachPortal('portal_of_the_original_shares_events_with_an_sse_portal', {}, async ({ server, connect, portal }) => {
  const alice = await connect('alice');
  const one = await portal();
  const abort = new AbortController();
  const response = await fetch(`http://127.0.0.1:${server.port}/v1/events`, {
    headers: { authorization: 'Bearer test-key-0123456789' },
    signal: abort.signal,
  });
  assert.equal(response.status, 200);
  await pollUntil('both portals to be registered', async () => (await portalCount(server)) === 2);
  const streamed = [];
  (async () => {
    let text = '';
    for await (const chunk of response.body) {
      text += Buffer.from(chunk).toString();
      const blocks = text.split('\n\n');
      text = blocks.pop();
      for (const block of blocks) {
        const data = /^data: (.*)$/m.exec(block);
        if (data) streamed.push(JSON.parse(data[1]).message.d.n);
      }
    }
  })().catch(() => {});
  for (const n of range(20)) sendNumber(alice, n);
  await one.waitUntil('10 messages', () => one.numbers().length === 10);
  await pollUntil('10 streamed messages', () => streamed.length === 10);
  assert.deepEqual([...one.numbers(), ...streamed].sort((a, b) => a - b), range(20));
  abort.abort();
});
