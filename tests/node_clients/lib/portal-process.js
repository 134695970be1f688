'use strict';
// Runs a Portal of the original in its own process, and prints `d.n` of each message that it receives.
//
//   node portal-process.js KIND REDIS_URL

const { PACKAGES } = require('./original');

const [kind, url] = process.argv.slice(2);
const portal = new PACKAGES[kind].Portal(url);
portal.on('message', (message) => process.stdout.write(`${message.data.n}\n`));
