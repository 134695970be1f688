'use strict';
// client.enforceEqualVersions.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { after } = require('node:test');
const { overAllClients } = require('./lib/suite');

/** What each client says it is. */
const VERSIONS = { stock158: '1.5.8', stock138: '1.3.8', 'mesa-js-client': '1.5.3' };

// 1.5.8 looks for its version in ../../package.json, from wherever the process happens to run.
const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'mesa-versions-'));
fs.writeFileSync(path.join(directory, 'package.json'), JSON.stringify({ version: VERSIONS.stock158 }));
fs.mkdirSync(path.join(directory, 'a', 'b'), { recursive: true });
process.chdir(path.join(directory, 'a', 'b'));
after(() => {
  process.chdir('/');
  fs.rmSync(directory, { recursive: true });
});

const enforced = (version) => ({ client: { enforceEqualVersions: true, ...(version && { version }) } });

/** Asserts that clients of `version` stay, and that those of others are closed. */
async function staysOnly(version, { server, kind, connect }) {
  const peer = await connect();
  if (VERSIONS[kind] !== version) {
    assert.equal(await peer.waitForClose(), 1002);
    return;
  }
  await peer.is('alice');
  await server.number(0, 'alice');
  await peer.waitForNumber(0);
  assert.deepEqual(peer.closes, []);
}

overAllClients('only_mesa_js_client_is_of_the_default_version', enforced(), (run) => staysOnly('1.5.3', run));
for (const version of ['1.5.8', '1.3.8']) {
  overAllClients(`only_clients_of_${version}_stay_where_that_is_configured`, enforced(version),
    (run) => staysOnly(version, run));
}

overAllClients('any_version_stays_where_none_is_enforced', { client: { version: '9.9.9' } }, async ({ server, connect }) => {
  const peer = await connect();
  await peer.is('alice');
  peer.client.send(...(peer.kind === 'mesa-js-client' ? [0, { v: '1' }, 'CLIENT_VERSION'] : [version('1')]));
  await server.number(0, 'alice');
  await peer.waitForNumber(0);
  assert.deepEqual(peer.closes, []);
});

/** What a stock client sends as its version. */
function version(v) {
  return { serialize: () => JSON.stringify({ op: 0, d: { v }, t: 'CLIENT_VERSION' }) };
}
