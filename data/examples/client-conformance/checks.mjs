// What a client of the server must do. Each check runs the client against a server that behaves in one way.

import { Log } from './log.mjs';
import { DEVICE, TOKEN, assert, sleep, waitUntil } from './session.mjs';

const CLOSES_TO_RETRY = [1001, 1011, 1012, 1013];
const CLOSES_TO_OBEY = [1000, 1002, 1003, 1007, 1008, 1009];

/** Milliseconds in which a client that must not reconnect is watched. Op 10 names an interval of 100 ms. */
const QUIET_TIME = 2_000;

export const CHECKS = [
  ['authenticates by op 2 with the token', async (session) => {
    const peer = await session.connection();
    const data = await peer.authenticate();
    assert(data?.token === TOKEN, `op 2 must have d.token from MESA_TOKEN; it has ${JSON.stringify(data)}`);
  }],

  ['answers each op 1 by one op 11', async (session) => {
    const peer = await session.connection();
    await peer.authenticate();
    for (let n = 0; n < 20; n += 1) {
      peer.send(1, { d: n % 2 ? { tries: 1, max: 3 } : {} });
      peer.send(0, { d: { n }, t: 'NEWS' });
    }
    for (let n = 1; n <= 20; n += 1) await peer.frame(11, `op 11 number ${n} of 20`);
    await sleep(200);
    assert(!peer.frames.length, 'more frames than op 1 were answered');
  }],

  ['passes messages on, in order, with any JSON as data', async (session) => {
    const peer = await session.connection();
    await peer.authenticate();
    const sent = [{ n: 1 }, 'text', 7, null, [1, [2]], { text: 'ü€😀', deep: { a: [] } }, true];
    sent.forEach((d, at) => peer.send(at % 2 ? 23 + at : 0, { d, t: 'NEWS', unknown: 'field' }));
    for (const d of sent) {
      const message = await session.message(`the message with the data ${JSON.stringify(d)}`);
      assert(JSON.stringify(message.d) === JSON.stringify(d), `expected ${JSON.stringify(d)}, got ${JSON.stringify(message.d)}`);
      assert(message.t === 'NEWS', `expected the type NEWS, got ${message.t}`);
    }
  }],

  ['passes no frame of the protocol on as a message', async (session) => {
    const peer = await session.connection();
    await peer.authenticate();
    peer.send(1, { d: {} });
    peer.send(11, { d: {} });
    peer.send(10, { d: { c_reconnect_interval: 100, rules: [] } });
    peer.send(0, { d: 'the only message', t: 'NEWS' });
    const message = await session.message('the message after op 1, 11 and 10');
    assert(message.d === 'the only message', `a frame was passed on as a message: ${JSON.stringify(message)}`);
  }],

  ['reads fragmented and large messages', async (session) => {
    const peer = await session.connection();
    await peer.authenticate();
    const text = 'ü'.repeat(50_000);
    peer.connection.sendText(JSON.stringify({ op: 0, d: text, t: 'NEWS' }), 7);
    const message = await session.message('the fragmented message');
    assert(message.d === text, 'the fragmented message has other data');
  }],

  ['answers WebSocket pings', async (session) => {
    const peer = await session.connection();
    await peer.authenticate();
    peer.connection.ping('nonce 17');
    await peer.pongs.next('a pong with the payload of the ping', (payload) => payload === 'nonce 17');
  }],

  ...CLOSES_TO_RETRY.map((code) => [`reconnects after close ${code}`, async (session) => {
    const peer = await session.connection();
    await peer.authenticate();
    peer.connection.close(code);
    await (await session.connection('another connection')).authenticate();
  }]),

  ['reconnects after a lost connection', async (session) => {
    for (let time = 0; time < 3; time += 1) {
      const peer = await session.connection(`connection ${time + 1} of 3`);
      await peer.authenticate();
      peer.connection.cut();
    }
    await session.connection('the last connection');
  }],

  ...CLOSES_TO_OBEY.map((code) => [`does not reconnect after close ${code}`, async (session) => {
    const peer = await session.connection();
    await peer.authenticate();
    peer.connection.close(code, 'not allowed');
    await sleep(QUIET_TIME);
    assert(!session.waiting, 'it has connected again, and will fail the same way');
  }]),

  ['does not reconnect after refused credentials', async (session) => {
    const peer = await session.connection();
    peer.greet();
    await peer.frame(2, 'op 2 after op 10');
    peer.connection.close(1008, 'authentication failed');
    await sleep(QUIET_TIME);
    assert(!session.waiting, 'it has connected again with the same credentials');
  }],

  ['waits longer after each failed attempt', async (session) => {
    await expectPause(session, async (peer) => peer.connection.close(1013));
  }],

  ['waits longer when each connection is closed after op 22', async (session) => {
    await expectPause(session, async (peer) => {
      await peer.authenticate();
      peer.connection.close(1011);
    });
  }],
];

/** For clients that resume. */
export const RESUME_CHECKS = [
  ['resumes by `after`, and names its device', async (session) => {
    const peer = await session.connection();
    const data = await peer.authenticate();
    assert(Number.isSafeInteger(data.after) && data.after >= 0, `op 2 must have an integer \`after\`; it has ${data.after}`);
    assert(data.device === DEVICE, `op 2 must have \`device\` from MESA_DEVICE; it has ${data.device}`);
  }],

  ['receives 1,000 entries over 20 lost connections, each once and in order', async (session) => {
    const log = new Log();
    log.append(1000);
    const handled = [];
    const serving = (async () => {
      for (let time = 0; ; time += 1) {
        const peer = await session.connection(`connection ${time + 1}`);
        const before = handled.length;
        await log.serve(peer, { count: time < 20 ? 60 : Infinity }).catch(() => {});
        if (time >= 20) return;
        // The connection breaks at any point: before, between or after acknowledgements. A break may also discard what a
        // slow client has not read. On every second connection it makes progress first, or its delay before each attempt
        // would grow: it handles an entry, or acknowledges those that it has handled.
        await sleep(10 * (time % 10));
        const hasProgress = () => handled.length > before || log.acknowledged >= handled.length;
        while (time % 2 === 1 && !hasProgress()) await sleep(5);
        peer.connection.cut();
      }
    })();
    while (handled.length < 1000) handled.push((await session.message(`entry ${handled.length + 1}`)).s);
    await serving;
    assert(handled.every((seq, at) => seq === at + 1), `the order is wrong or an entry is repeated: ${firstWrong(handled)}`);
  }],

  ['acknowledges by op 3 what its application has handled, and no more', async (session) => {
    const log = new Log();
    log.append(100);
    const peer = await session.connection();
    await log.serve(peer, { count: 60 });
    for (let seq = 1; seq <= 60; seq += 1) await session.message(`entry ${seq}`);
    await waitUntil(() => log.acknowledged >= 60);
    // What the client has sent before its answer has arrived.
    peer.send(1, { d: {} });
    await peer.frame(11, 'op 11 in answer to op 1');
    assert(log.acknowledged === 60, `entry 60 is the last one handled, and ${log.acknowledged} is acknowledged by \`d.s\``);
  }],

  ['drops repeats', async (session) => {
    const log = new Log();
    log.append(50);
    await log.serve(await session.connection(), { repeat: 2 });
    const handled = [];
    while (handled.length < 50) handled.push((await session.message(`entry ${handled.length + 1}`)).s);
    assert(handled.every((seq, at) => seq === at + 1), `a repeated entry was passed on: ${firstWrong(handled)}`);
  }],

  ['passes gaps on, at their place', async (session) => {
    const log = new Log();
    log.append(30);
    const first = await session.connection();
    await log.serve(first, { count: 10 });
    for (let seq = 1; seq <= 10; seq += 1) await session.message(`entry ${seq}`);
    await waitUntil(() => log.acknowledged >= 10);
    log.drop(11, 15, 'quota');
    log.drop(21, 22, 'expired');
    first.connection.cut();
    // A client may connect twice, to learn its user first.
    const expected = [[11, 15], 16, 17, 18, 19, 20, [21, 22], 23, 24, 25, 26, 27, 28, 29, 30];
    const serving = (async () => {
      for (;;) await log.serve(await session.connection()).catch(() => {});
    })();
    serving.catch(() => {});
    for (const next of expected) {
      const { message, gap } = await session.lines.next(`the entry or the gap ${next}`);
      const got = message ? message.s : [gap.from, gap.to];
      assert(String(got) === String(next), `expected ${next}, got ${got}`);
    }
  }],

  ['finds a dead connection', async (session) => {
    const peer = await session.connection();
    await peer.authenticate({ c_heartbeat_interval: 500 });
    peer.connection.freeze();
    await session.connection('another connection, because the server answers nothing');
  }],
];

/** A client that doubles its delay pauses for this time before it has made this many attempts. */
const PAUSE = 3_000;
const ATTEMPTS_MAX = 25;

/** Ends each connection by `end`, until the client pauses. */
async function expectPause(session, end) {
  let attempts = 0;
  do {
    const peer = await session.connection('an attempt to connect');
    attempts += 1;
    // A constant interval of 100 ms never pauses.
    assert(attempts <= ATTEMPTS_MAX, `${attempts} attempts without a pause of 3 s: double the delay each time, with a random part`);
    await end(peer);
  } while (attempts < 2 || !(await pauses(session)));
}

/** Resolves with whether the client makes no attempt for `PAUSE`. Counts short steps: a machine that stalls is no pause. */
async function pauses(session) {
  const step = 20;
  for (let time = 0; time < PAUSE; time += step) {
    if (session.waiting) return false;
    await sleep(step);
  }
  return !session.waiting;
}

function firstWrong(handled) {
  const at = handled.findIndex((seq, index) => seq !== index + 1);
  return `expected ${at + 1}, got ${handled[at]}`;
}
