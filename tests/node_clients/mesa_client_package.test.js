'use strict';
// Tests the package mesa-client as npm publishes it: its size, its forms, and its types.

const assert = require('node:assert/strict');
const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const test = require('node:test');
const { after, before } = test;
const { gzipSync } = require('node:zlib');
const { DIRECTORY } = require('./lib/mesa_client');
const { minify } = require('./lib/minify');

/** Size limit of the file that browsers load, compressed, in bytes. */
const GZIP_BYTES_MAX = 5000;

const read = (name) => fs.readFileSync(path.join(DIRECTORY, name), 'utf8');

/** Runs a program, and returns its standard output. */
function run(command, args, cwd) {
  const { status, stdout, stderr, error } = spawnSync(command, args, { cwd, encoding: 'utf8' });
  assert.equal(status, 0, `${command} ${args.join(' ')}: ${error ?? ''}\n${stdout}\n${stderr}`);
  return stdout;
}

/** A program that uses the package, as `npm pack` builds it. */
const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'mesa-client-package-'));
let files;

before(() => {
  const [packed] = JSON.parse(run('npm', ['pack', '--json', '--pack-destination', directory], DIRECTORY));
  files = packed.files.map((file) => file.path);
  const target = path.join(directory, 'node_modules', 'mesa-client');
  fs.mkdirSync(target, { recursive: true });
  run('tar', ['-xzf', path.join(directory, packed.filename), '-C', target, '--strip-components=1'], directory);
  fs.writeFileSync(path.join(directory, 'package.json'), '{ "type": "module" }');
});
after(() => fs.rmSync(directory, { recursive: true }));

test('script_for_browsers_is_built_from_the_source_and_small', (t) => {
  const script = read('mesa.min.js');
  assert.equal(script, minify(), 'mesa.min.js is out of date: run `node tests/node_clients/lib/minify.js`');
  const bytes = gzipSync(script, { level: 9 }).length;
  t.diagnostic(`${bytes} bytes compressed, ${script.length} uncompressed`);
  assert.ok(bytes <= GZIP_BYTES_MAX, `${bytes} bytes; the limit is ${GZIP_BYTES_MAX}`);
});

test('package_has_the_version_of_the_server_and_loads_in_each_form', () => {
  const expected = ['README.md', 'mesa.cjs', 'mesa.d.cts', 'mesa.d.ts', 'mesa.js', 'mesa.min.js', 'package.json'];
  assert.deepEqual([...files].sort(), expected);
  const [, version] = /^version = "(.*)"/m.exec(fs.readFileSync(path.join(DIRECTORY, '../../../Cargo.toml'), 'utf8'));
  assert.equal(JSON.parse(read('package.json')).version, version);
  const names = ['Client', 'Message', 'default', 'fileStore', 'indexedDBStore', 'localStorageStore', 'version'];
  const check = `new client.Client('ws://localhost/', { autoConnect: false });
    console.log(JSON.stringify([Object.keys(client).sort(), client.version, client.default === client.Client]))`;
  for (const [type, load] of [
    ['module', "import * as client from 'mesa-client';"],
    ['module', "import * as client from 'mesa-client/min';"],
    ['commonjs', "const client = require('mesa-client');"],
  ]) {
    const output = run(process.execPath, [`--input-type=${type}`, '--eval', `${load} ${check}`], directory);
    assert.deepEqual(JSON.parse(output), [names, version, true], load);
  }
});

test('client_does_not_reconnect_after_the_close_codes_that_the_server_lists', () => {
  const table = fs.readFileSync(path.join(DIRECTORY, '../../protocol/close_code.rs'), 'utf8');
  const final = [...table.matchAll(/^ +\(CloseCode::\w+, (\d+), ".*", false\),$/gm)].map(([, code]) => code);
  assert.ok(final.length > 0);
  const [, codes] = /^const FINAL_CODES = \[(.*)\];$/m.exec(read('mesa.js'));
  assert.deepEqual(codes.split(', '), final);
});

test('types_accept_correct_programs_and_reject_mistakes', () => {
  const sample = path.join(__dirname, 'lib/type_sample.ts');
  for (const name of ['module.ts', 'commonjs.cts']) fs.copyFileSync(sample, path.join(directory, name));
  const options = ['--noEmit', '--strict', '--target', 'es2022', '--module', 'nodenext', '--lib', 'es2023,dom'];
  run(process.execPath, [require.resolve('typescript/bin/tsc'), ...options, 'module.ts', 'commonjs.cts'], directory);
});
