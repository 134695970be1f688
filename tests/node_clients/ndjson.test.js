'use strict';
// Tests NDJSON streams of dispatches, sent by a backend in Node.

const assert = require('node:assert/strict');
const test = require('node:test');
const { testWithEachClient, range } = require('./lib/suite');
const { startServer } = require('./lib/server');
const { WAIT_TIMEOUT, withTimeout } = require('./lib/wait');

const line = (n, recipients = ['alice'], more = {}) =>
  `${JSON.stringify({ message: { d: { n }, t: 'NUMBER' }, recipients, ...more })}\n`;

/** Reads the remaining results to the end of the stream. */
function readAll(results) {
  const collect = async () => {
    const all = [];
    for await (const result of results) all.push(result);
    return all;
  };
  return withTimeout('the end of a stream', collect());
}

testWithEachClient('dispatches_of_a_stream_arrive_in_order', {}, async ({ server, connect }) => {
  const { request, results } = server.openStream();
  for (const n of range(500)) request.write(line(n));
  request.end();
  assert.equal((await readAll(results)).length, 500);
  const alice = await connect();
  await alice.authenticateAs('alice');
  await alice.waitForCount(500);
  assert.deepEqual(alice.numbers, range(500));
});

test('result_arrives_before_the_next_line_is_sent', async (t) => {
  const server = await startServer(t);
  const { request, results } = server.openStream();
  for (const n of range(20)) {
    request.write(line(n));
    const { value } = await withTimeout('a result', results.next());
    assert.equal(value.offline, 1);
  }
  request.end();
  assert.deepEqual(await withTimeout('the end of the stream', results.next()), { value: undefined, done: true });
});

test('invalid_line_gets_an_error_and_the_next_is_accepted', async (t) => {
  const server = await startServer(t);
  const { request, results } = server.openStream();
  request.end(`${line(0)}{\n\n${line(1, ['alice', ''])}${line(2, ['*', 'a'])}${line(3, ['alice'], { id: 'x' })}${line(4, ['alice'], { id: 'x' })}`);
  const all = await readAll(results);
  assert.deepEqual(all.map((result) => result.error?.code), [undefined, 'bad_json', undefined, 'bad_dispatch', undefined, undefined]);
  assert.deepEqual(all[2].rejected, [{ user: '', reason: 'invalid' }]);
  assert.deepEqual(all[5], { ...all[4], duplicate: true });
  const { messages } = await server.request('GET', '/v1/users/alice/messages');
  assert.deepEqual(messages.map((message) => message.d.n), [0, 1, 3]);
});

// covers: G1
test('answered_dispatches_of_a_stream_are_durable_after_a_kill', async (t) => {
  const server = await startServer(t);
  const { request, results } = server.openStream();
  request.on('error', () => {});
  let answered = 0;
  const reading = (async () => {
    for await (const { offline } of results) answered += offline;
  })().catch(() => {});
  let n = 0;
  const end = Date.now() + WAIT_TIMEOUT;
  while (answered < 2000) {
    assert.ok(Date.now() < end, `expected 2000 results in time, got ${answered} for ${n} lines`);
    request.write(line(n));
    n += 1;
    if (n % 100 === 0) await new Promise((resolve) => setImmediate(resolve));
  }
  await server.kill();
  await reading;
  await server.restart();
  const { lastSequence } = await server.userState('alice');
  assert.ok(lastSequence >= answered, `expected ${answered} stored messages or more, got ${lastSequence}`);
  const { messages } = await server.request('GET', '/v1/users/alice/messages?limit=1000');
  assert.deepEqual(messages.map((message) => message.d.n), range(messages.length));
});

test('stream_without_api_key_is_rejected', async (t) => {
  const server = await startServer(t);
  const response = await new Promise((resolve, reject) => {
    const request = require('node:http').request(
      { port: server.port, host: '127.0.0.1', method: 'POST', path: '/v1/dispatch', headers: { 'content-type': 'application/x-ndjson' } },
      resolve,
    );
    request.on('error', reject);
    request.end(line(0));
  });
  response.resume();
  assert.equal(response.statusCode, 401);
});
