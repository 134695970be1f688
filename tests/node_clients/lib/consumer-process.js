'use strict';
// Handles messages of alice with a position in a file. Prints "began N", and never finishes the message with the number of
// the last argument.

const { createClient, fileStore } = require('./mesa_client');

const [url, file, last] = process.argv.slice(2);
const client = createClient(url);
client.on('message', ({ data }) => {
  console.log(`began ${data.n}`);
  return data.n === Number(last) ? new Promise(() => {}) : undefined;
});
client.authenticate('alice', { resume: fileStore(file) });
