'use strict';
// Loads the JavaScript client of this repository, in the CommonJS form that `npm publish` contains.

const fs = require('node:fs');
const path = require('node:path');
const WebSocket = require('ws');

const DIRECTORY = path.resolve(__dirname, '../../../src/client/js');
const { toCommonJs } = require(path.join(DIRECTORY, 'build.cjs'));

/** Other test processes may load the file at the same time, so it is written under another name first. */
function build() {
  const file = path.join(DIRECTORY, 'mesa.cjs');
  fs.writeFileSync(`${file}.${process.pid}`, toCommonJs(fs.readFileSync(path.join(DIRECTORY, 'mesa.js'), 'utf8')));
  fs.renameSync(`${file}.${process.pid}`, file);
  return require(file);
}

const mesaClient = build();

/** Creates a client with the WebSocket of `ws`, because Node 20 has no global one. */
const createClient = (url, options) => new mesaClient.Client(url, { WebSocket, ...options });

module.exports = { ...mesaClient, DIRECTORY, createClient };
