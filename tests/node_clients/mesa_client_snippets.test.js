'use strict';
// Runs the snippets in the documentation of the original's clients, as written, with mesa-client.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const test = require('node:test');
const { createToken } = require('./lib/jwt');
const { Client, Message, createClient } = require('./lib/mesa_client');
const { startServer } = require('./lib/server');
const { ChangeNotifier } = require('./lib/wait');

const SECRET = 'a secret of 32 bytes for tests..';
const CONFIG = { portal: { enabled: true }, authentication: { insecure: false, jwt: { secret: SECRET, userClaim: 'user' } } };
const TOKEN = createToken({ id: 'alice', user: { name: 'Alice' } }, SECRET);

/** Returns the JavaScript snippet of a documentation file that contains `text`. */
function snippet(file, text) {
  const blocks = [...fs.readFileSync(require.resolve(file), 'utf8').matchAll(/^```js\n([^]*?)^```/gm)].map(([, code]) => code);
  const found = blocks.find((code) => code.includes(text));
  assert.ok(found, `${file} has no snippet with ${text}`);
  // A function body may have no imports.
  return found.replace(/^import .*\n/gm, '');
}

/**
 * Runs a snippet, with `client` as its client unless it creates one. The URL that it names leads to `server`.
 *
 * `result` is its client, or what it returns. `lines` is what it has printed.
 */
function run(t, server, code, client) {
  const changes = new ChangeNotifier();
  const lines = [];
  const log = (...values) => {
    lines.push(values.map((value) => (typeof value === 'object' ? JSON.stringify(value) : value)).join(' '));
    changes.notify();
  };
  function LocalClient(url, options) {
    assert.equal(url, 'ws://localhost:4000');
    return startClient(t, server, options);
  }
  const names = { Client: LocalClient, MesaClient: LocalClient, Message, fetchToken: () => TOKEN, console: { log } };
  if (!code.includes('const client')) names.client = client;
  const result = new Function(...Object.keys(names), `${code}\nreturn client`)(...Object.values(names));
  return { lines, result, waitForLine: (line) => changes.waitUntil(() => `${line}; printed ${lines}`, () => lines.includes(line)) };
}

/** Creates a client that ends when test `t` ends. */
function startClient(t, server, options) {
  const client = createClient(server.url, options).on('error', () => {});
  t.after(() => client.disconnect());
  return client;
}

test('client_snippet_of_the_readme_prints_events', async (t) => {
  const server = await startServer(t);
  const example = run(t, server, snippet('stock158/README.md', "client.on('connection', () => {"));
  const client = example.result;
  await example.waitForLine('Client connected');
  await client.authenticate({ token: 'alice' });
  await server.dispatch({ op: 0, d: { text: 'hello' }, t: 'GREETING' }, ['alice']);
  await example.waitForLine('Received {"text":"hello"} GREETING');
  await server.request('POST', '/v1/users/alice/disconnect');
  await example.waitForLine('Client disconnected');
  assert.ok(client instanceof Client);
});

test('send_snippet_of_the_readme_reaches_a_backend', async (t) => {
  const server = await startServer(t, { portal: { enabled: true } });
  const events = await server.openEvents();
  run(t, server, snippet('stock158/README.md', "client.send(new Message(0, { status: 'online' }"), startClient(t, server));
  for await (const event of events) {
    if (event.type !== 'message') continue;
    assert.deepEqual([event.message.op, event.message.d, event.message.t], [0, { status: 'online' }, 'STATUS_UPDATE']);
    break;
  }
});

test('authentication_snippet_prints_the_user', async (t) => {
  const server = await startServer(t, CONFIG);
  const example = run(t, server, snippet('stock158/docs/client/authentication.md', 'Hello ${user.name}!'));
  await example.waitForLine('Hello Alice!');
  assert.deepEqual(example.lines, ['Client connected', 'Hello Alice!']);
});

test('option_snippets_connect', async (t) => {
  const server = await startServer(t, CONFIG);
  await server.dispatchNumber(0, 'alice');
  // The file puts a comment where the options go.
  const { result: client } = run(t, server, snippet('stock158/docs/client/configuration.md', '// Options go here'));
  const options = snippet('stock158/docs/client/authentication.md', 'await client.authenticate({ token: fetchToken() }, {');
  await run(t, server, `return (async () => {\n${options}\n})()`, client).result;
  await server.waitForNoPending('alice');
});

// covers: G2
test('sync_snippets_discard_the_first_backlog_and_receive_later_ones', async (t) => {
  const server = await startServer(t, { ...CONFIG, reconnect: { enabled: true, interval: 20 } });
  const file = 'stock158/docs/server/message/sync.md';
  await server.dispatchNumber(0, 'alice');
  const client = startClient(t, server);
  run(t, server, snippet(file, 'shouldSync: !isInitialConnection'), client);
  const changes = new ChangeNotifier();
  const numbers = [];
  client.on('message', ({ data }) => {
    numbers.push(data.n);
    changes.notify();
  });
  const disconnected = new Promise((resolve) => { client.once('disconnected', (...args) => resolve(args)); });
  await server.waitForNoPending('alice');
  client.ws.terminate();
  const [, , { willAttemptReconnect }] = await disconnected;
  assert.equal(willAttemptReconnect, true);
  await server.dispatchNumber(1, 'alice');
  await changes.waitUntil(() => `message 1, got ${numbers}`, () => numbers.includes(1));
  assert.deepEqual(numbers, [1]);

  client.disconnect();
  await server.waitForConnections('alice', 0);
  await server.dispatchNumber(2, 'alice');
  run(t, server, snippet(file, 'client.authenticate({ token: fetchToken() }, { shouldSync: false })'), startClient(t, server));
  await server.waitForNoPending('alice');
});

test('snippets_of_mesa_js_client_use_callbacks', async (t) => {
  const server = await startServer(t);
  const file = 'mesa-js-client/README.md';
  const example = run(t, server, snippet(file, 'import MesaClient'));
  const client = example.result;
  await example.waitForLine('Connected to Mesa server');
  await client.authenticate({ token: 'alice' });
  await server.dispatch({ op: 0, d: {}, t: 'PING' }, ['alice']);
  await example.waitForLine('Recieved 0 {} PING');
  client.disconnect(1000, 'done');
  await example.waitForLine('Disconnected 1000 done');

  const { result: manual } = run(t, server, snippet(file, '{ autoConnect: false }'));
  const connected = new Promise((resolve) => { manual.onConnected = resolve; });
  const initial = { isInitialConnection: true, isInitialSessionConnection: true, isAutomaticReconnection: false };
  assert.deepEqual(await connected, initial);

  await server.dispatchNumber(0, TOKEN);
  const user = startClient(t, server, { autoConnect: false });
  run(t, server, snippet(file, 'client.onConnected = async'), user);
  await user.connect();
  await server.waitForNoPending(TOKEN);
});
