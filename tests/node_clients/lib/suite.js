'use strict';
// How scenarios are run: each over all three clients, on a server of its own.

const test = require('node:test');
const { KINDS, Peer } = require('./clients');
const { start } = require('./server');

/**
 * Runs `scenario` once for each published client. It is given `server`, `t`, `kind`, and `connect(url?)`, which makes a
 * connected client of that kind; all of it is cleared away afterwards.
 */
function overAllClients(promise, config, scenario) {
  test(promise, { concurrency: KINDS.length }, async (t) => {
    const runs = KINDS.map((kind) => t.test(kind, async (run) => {
      const server = await start(run, config);
      const connect = (url = server.url) => {
        const peer = new Peer(kind, url);
        run.after(() => peer.retire());
        return peer.connect();
      };
      await scenario({ server, t: run, kind, connect });
    }));
    await Promise.all(runs);
  });
}

/** `count` numbers from `from`. */
const range = (count, from = 0) => Array.from({ length: count }, (_, at) => from + at);

module.exports = { overAllClients, range };
