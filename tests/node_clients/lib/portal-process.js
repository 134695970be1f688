'use strict';
// A stock Portal in a process of its own: `node portal-process.js KIND URL`. Prints the numbers of the messages it is told.

const { STOCKS } = require('./stock');

const [kind, url] = process.argv.slice(2);
const portal = new STOCKS[kind].Portal(url);
portal.on('message', (message) => process.stdout.write(`${message.data.n}\n`));
