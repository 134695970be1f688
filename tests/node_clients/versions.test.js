'use strict';
// Tests `client.enforceEqualVersions`.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { after } = require('node:test');
const { testWithEachClient } = require('./lib/suite');

/** Version that each client announces. */
const VERSIONS = { original158: '1.5.8', original138: '1.3.8', 'mesa-js-client': '1.5.3', 'mesa-client': '1.5.3', 'mesa-client in Chromium': '1.5.3' };

// 1.5.8 reads its version from ../../package.json, relative to the working directory.
const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'mesa-versions-'));
fs.writeFileSync(path.join(directory, 'package.json'), JSON.stringify({ version: VERSIONS.original158 }));
fs.mkdirSync(path.join(directory, 'a', 'b'), { recursive: true });
process.chdir(path.join(directory, 'a', 'b'));
after(() => {
  process.chdir('/');
  fs.rmSync(directory, { recursive: true });
});

const enforced = (version) => ({ client: { enforceEqualVersions: true, ...(version && { version }) } });

/** Asserts that a client of `version` stays connected, and that a client of another version is closed. */
async function assertOnlyVersionStays(version, { server, kind, connect }) {
  const client = await connect();
  if (VERSIONS[kind] !== version) {
    assert.equal(await client.waitForClose(), 1002);
    return;
  }
  await client.authenticateAs('alice');
  await server.dispatchNumber(0, 'alice');
  await client.waitForNumber(0);
  assert.deepEqual(client.closeCodes, []);
}

testWithEachClient('client_of_other_version_than_the_default_is_closed', enforced(), (run) => assertOnlyVersionStays('1.5.3', run));
for (const version of ['1.5.8', '1.3.8']) {
  testWithEachClient(`client_of_other_version_than_${version}_is_closed`, enforced(version),
    (run) => assertOnlyVersionStays(version, run));
}

testWithEachClient('client_of_any_version_stays_with_enforcement_off', { client: { version: '9.9.9' } }, async ({ server, connect }) => {
  const client = await connect();
  await client.authenticateAs('alice');
  client.send({ v: '1' }, 'CLIENT_VERSION');
  await server.dispatchNumber(0, 'alice');
  await client.waitForNumber(0);
  assert.deepEqual(client.closeCodes, []);
});
