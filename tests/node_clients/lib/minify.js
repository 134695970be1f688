'use strict';
// Writes `mesa.min.js`, the form of the client for browsers. The server contains it, so that file is in the repository.
//
//   node tests/node_clients/lib/minify.js

const fs = require('node:fs');
const path = require('node:path');
const { minify_sync: terser } = require('terser');

const DIRECTORY = path.resolve(__dirname, '../../../src/client/js');

/** Returns `mesa.js` without comments and with short names. */
function minify() {
  const source = fs.readFileSync(path.join(DIRECTORY, 'mesa.js'), 'utf8');
  return `${terser(source, { module: true, ecma: 2022, compress: { passes: 2 } }).code}\n`;
}

if (require.main === module) fs.writeFileSync(path.join(DIRECTORY, 'mesa.min.js'), minify());

module.exports = { minify };
