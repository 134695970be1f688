'use strict';
// Dispatchers and Portals of the original Mesa (`@cryb/mesa`), unmodified, with either version of its Redis client.

const Module = require('node:module');
const { ChangeNotifier } = require('./wait');

// Each Portal adds signal listeners to the process; many Portals would exceed the default limit.
process.setMaxListeners(0);

const REDIS = { ioredis4: require('ioredis4'), ioredis5: require('ioredis5') };

/** Loads a separate copy of a package, for which `ioredis` is the version `redis`. Its code is unchanged. */
function load(name, redis) {
  const originalLoad = Module._load;
  Module._load = (request, ...rest) => (request === 'ioredis' ? REDIS[redis] : originalLoad(request, ...rest));
  const cachedFiles = () => Object.keys(require.cache).filter((file) => file.includes(`/node_modules/${name}/`));
  const before = cachedFiles().map((file) => [file, require.cache[file]]);
  before.forEach(([file]) => delete require.cache[file]);
  try {
    return require(name);
  } finally {
    cachedFiles().forEach((file) => delete require.cache[file]);
    before.forEach(([file, module]) => { require.cache[file] = module; });
    Module._load = originalLoad;
  }
}

/** Maps a kind, such as `original158 over ioredis5`, to its package. The npm aliases of the packages are `stock158` and `stock138`. */
const PACKAGES = {};
for (const [name, alias] of [['original158', 'stock158'], ['original138', 'stock138']]) {
  for (const redis of Object.keys(REDIS)) PACKAGES[`${name} over ${redis}`] = { name, ...load(alias, redis) };
}

/** Ignores connection errors, such as during a restart, and disconnects when test `t` ends. */
function disconnectAfter(t, connections) {
  connections.forEach((connection) => connection.on('error', () => {}));
  t.after(() => connections.forEach((connection) => connection.disconnect()));
}

/** Creates a Dispatcher that is disconnected when test `t` ends. */
function createDispatcher(t, kind, url, config) {
  const { Dispatcher, Message, DispatchEvent } = PACKAGES[kind];
  const dispatcher = new Dispatcher(url, config);
  const connections = [dispatcher.redis, dispatcher.publisher];
  disconnectAfter(t, connections);
  // Redis replies in order: the reply to a PING follows those to all earlier commands. For an offline user the Dispatcher
  // sends up to three dependent commands: whether the user is online, what is pending, and both with the new message.
  const waitForReplies = async () => {
    for (let step = 0; step < 4; step += 1) await Promise.all(connections.map((connection) => connection.ping()));
  };
  return {
    send: (n, recipients, excluding, options) =>
      dispatcher.dispatch(new Message(0, { n }, 'NUMBER', options), recipients, excluding),
    disconnect: (recipients) => dispatcher.dispatch(new DispatchEvent('DISCONNECT_CLIENT'), recipients),
    waitForReplies,
    dispatcher,
  };
}

/** Creates a Portal that is disconnected when test `t` ends. `events` has each event as `[type, value]`. */
function createPortal(t, kind, url, config) {
  const { Portal } = PACKAGES[kind];
  const portal = new Portal(url, config);
  const changes = new ChangeNotifier();
  const events = [];
  const connections = [portal.redis, portal.publisher, portal.subscriber];
  disconnectAfter(t, connections);
  for (const type of ['connection', 'authentication', 'disconnection']) {
    portal.on(type, (clientId) => {
      events.push([type, clientId]);
      changes.notify();
    });
  }
  portal.on('message', (message, clientId) => {
    events.push(['message', { op: message.opcode, d: message.data, t: message.type, clientId }]);
    changes.notify();
  });
  return {
    portal,
    events,
    numbers: () => events.filter(([type]) => type === 'message').map(([, { d }]) => d.n),
    waitUntil: (description, condition) =>
      changes.waitUntil(() => `${description}; received ${JSON.stringify(events)}`, condition),
  };
}

module.exports = { KINDS: Object.keys(PACKAGES), PACKAGES, REDIS, createDispatcher, createPortal };
