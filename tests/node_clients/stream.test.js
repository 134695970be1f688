'use strict';
// Streams of dispatches, as a backend in Node would send them.

const assert = require('node:assert/strict');
const test = require('node:test');
const { overAllClients, range } = require('./lib/suite');
const { start } = require('./lib/server');
const { PATIENCE, within } = require('./lib/wait');

const line = (n, recipients = ['alice'], more = {}) =>
  `${JSON.stringify({ message: { d: { n }, t: 'NUMBER' }, recipients, ...more })}\n`;

/** The answers that are left, to the end of the stream. */
function all(answers) {
  const collect = async () => {
    const found = [];
    for await (const answer of answers) found.push(answer);
    return found;
  };
  return within('the end of a stream', collect());
}

overAllClients('a_stream_arrives_in_order', {}, async ({ server, connect }) => {
  const { request, answers } = server.stream();
  for (const n of range(500)) request.write(line(n));
  request.end();
  assert.equal((await all(answers)).length, 500);
  const alice = await connect();
  await alice.is('alice');
  await alice.waitFor(500);
  assert.deepEqual(alice.numbers, range(500));
});

test('a_result_comes_before_the_next_line_is_said', async (t) => {
  const server = await start(t);
  const { request, answers } = server.stream();
  for (const n of range(20)) {
    request.write(line(n));
    const { value } = await within('a result', answers.next());
    assert.equal(value.offline, 1);
  }
  request.end();
  assert.deepEqual(await within('the end', answers.next()), { value: undefined, done: true });
});

test('a_bad_line_gets_its_error_and_the_next_is_taken', async (t) => {
  const server = await start(t);
  const { request, answers } = server.stream();
  request.end(`${line(0)}{\n\n${line(1, ['alice', ''])}${line(2, ['*', 'a'])}${line(3, ['alice'], { id: 'x' })}${line(4, ['alice'], { id: 'x' })}`);
  const results = await all(answers);
  assert.deepEqual(results.map((result) => result.error?.code), [undefined, 'bad_json', undefined, 'bad_dispatch', undefined, undefined]);
  assert.deepEqual(results[2].rejected, [{ user: '', reason: 'invalid' }]);
  assert.deepEqual(results[5], { ...results[4], duplicate: true });
  const { messages } = await server.ask('GET', '/v1/users/alice/messages');
  assert.deepEqual(messages.map((message) => message.d.n), [0, 1, 3]);
});

test('what_was_answered_in_a_stream_is_there_after_a_kill', async (t) => {
  const server = await start(t);
  const { request, answers } = server.stream();
  request.on('error', () => {});
  let answered = 0;
  const reading = (async () => {
    for await (const answer of answers) answered += answer.offline;
  })().catch(() => {});
  let n = 0;
  const end = Date.now() + PATIENCE;
  while (answered < 2000) {
    assert.ok(Date.now() < end, `${answered} of ${n} were answered`);
    request.write(line(n));
    n += 1;
    if (n % 100 === 0) await new Promise((resolve) => setImmediate(resolve));
  }
  await server.kill();
  await reading;
  await server.restart();
  const { lastSequence } = await server.user('alice');
  assert.ok(lastSequence >= answered, `${answered} were answered, ${lastSequence} are there`);
  const { messages } = await server.ask('GET', '/v1/users/alice/messages?limit=1000');
  assert.deepEqual(messages.map((message) => message.d.n), range(messages.length));
});

test('a_stream_needs_a_key', async (t) => {
  const server = await start(t);
  const answer = await new Promise((resolve, reject) => {
    const request = require('node:http').request(
      { port: server.port, host: '127.0.0.1', method: 'POST', path: '/v1/dispatch', headers: { 'content-type': 'application/x-ndjson' } },
      resolve,
    );
    request.on('error', reject);
    request.end(line(0));
  });
  answer.resume();
  assert.equal(answer.statusCode, 401);
});
