'use strict';
// The services of the published packages, as they are, over one or the other version of the Redis client they use.

const Module = require('node:module');
const { Changes } = require('./wait');

// Each Portal listens for signals to its process, and there are many of them here.
process.setMaxListeners(0);

const REDIS = { ioredis4: require('ioredis4'), ioredis5: require('ioredis5') };

/** A copy of a stock package of its own, which finds `redis` where it asks for ioredis. None of its code is changed. */
function load(name, redis) {
  const usual = Module._load;
  Module._load = (request, ...rest) => (request === 'ioredis' ? REDIS[redis] : usual(request, ...rest));
  const own = () => Object.keys(require.cache).filter((file) => file.includes(`/node_modules/${name}/`));
  const before = own().map((file) => [file, require.cache[file]]);
  before.forEach(([file]) => delete require.cache[file]);
  try {
    return require(name);
  } finally {
    own().forEach((file) => delete require.cache[file]);
    before.forEach(([file, module]) => { require.cache[file] = module; });
    Module._load = usual;
  }
}

const STOCKS = {};
for (const name of ['stock158', 'stock138']) {
  for (const redis of Object.keys(REDIS)) STOCKS[`${name} over ${redis}`] = { name, ...load(name, redis) };
}

/** Connections that say nothing of a server that is away for a while, and end with test `t`. */
function quiet(t, connections) {
  connections.forEach((connection) => connection.on('error', () => {}));
  t.after(() => connections.forEach((connection) => connection.disconnect()));
}

/** A Dispatcher whose connections end with test `t`. */
function dispatcher(t, kind, url, config) {
  const { Dispatcher, Message, DispatchEvent } = STOCKS[kind];
  const made = new Dispatcher(url, config);
  const connections = [made.redis, made.publisher];
  quiet(t, connections);
  // Asked last on the same connection, each is answered when all that was said before is. Where a user is away, what a
  // Dispatcher says next hangs on the answer: whether he is here, what waits for him, that and one more.
  const answered = async () => {
    for (let step = 0; step < 4; step += 1) await Promise.all(connections.map((connection) => connection.ping()));
  };
  return {
    send: (n, recipients, excluding, options) => made.dispatch(new Message(0, { n }, 'NUMBER', options), recipients, excluding),
    disconnect: (recipients) => made.dispatch(new DispatchEvent('DISCONNECT_CLIENT'), recipients),
    answered,
    made,
  };
}

/** A Portal whose connections end with test `t`. It remembers its events: `[type, what]`. */
function portal(t, kind, url, config) {
  const { Portal } = STOCKS[kind];
  const made = new Portal(url, config);
  const changes = new Changes();
  const events = [];
  const connections = [made.redis, made.publisher, made.subscriber];
  quiet(t, connections);
  for (const type of ['connection', 'authentication', 'disconnection']) {
    made.on(type, (clientId) => {
      events.push([type, clientId]);
      changes.notify();
    });
  }
  made.on('message', (message, clientId) => {
    events.push(['message', { op: message.opcode, d: message.data, t: message.type, clientId }]);
    changes.notify();
  });
  return {
    made,
    events,
    numbers: () => events.filter(([type]) => type === 'message').map(([, { d }]) => d.n),
    until: (what, ok) => changes.until(() => `${what}; got ${JSON.stringify(events)}`, ok),
  };
}

module.exports = { KINDS: Object.keys(STOCKS), REDIS, STOCKS, dispatcher, portal };
