'use strict';
// Serves a web page with mesa-client, and drives clients in it.

const fs = require('node:fs');
const http = require('node:http');
const path = require('node:path');
const { DIRECTORY } = require('./mesa_client');

/** Records what clients of the page pass to their application. Runs in the page. */
const SCRIPT = `
import * as mesa from '/client.js';

Object.assign(window, mesa);

/** Creates a client whose handler keeps the data's \`n\` of each message in \`handled\`. */
window.start = (url, options) => {
  const client = new mesa.Client(url, { reconnectDelay: 20, reconnectDelayMax: 100, ...options });
  Object.assign(window, { client, handled: [], gaps: [], disconnections: [], errors: [], connections: 0 });
  client.on('connected', () => { connections += 1; });
  client.on('gap', (gap) => gaps.push(gap));
  client.on('disconnected', (code, reason) => disconnections.push([code, reason]));
  client.on('error', (error) => errors.push(String(error)));
  client.on('message', async ({ data }) => {
    await null;
    handled.push(data.n);
  });
  return client;
};
window.ready = true;
`;

/** Starts a web server that is closed when test `t` ends, and returns the URL of its page. */
async function startSite(t) {
  const files = {
    '/': ['text/html', '<!doctype html><title>mesa-client</title><script type="module" src="page.js"></script>'],
    '/page.js': ['text/javascript', SCRIPT],
    '/client.js': ['text/javascript', fs.readFileSync(path.join(DIRECTORY, 'mesa.min.js'))],
  };
  const site = http.createServer((request, response) => {
    const [type, content] = files[request.url] ?? [];
    if (type) response.writeHead(200, { 'content-type': type }).end(content);
    else response.writeHead(404).end();
  });
  await new Promise((resolve) => site.listen(0, '127.0.0.1', resolve));
  t.after(() => {
    site.close();
    site.closeAllConnections();
  });
  return `http://127.0.0.1:${site.address().port}/`;
}

/** Opens the page in a new tab. */
async function openPage(browser, site) {
  const page = await browser.openPage();
  await page.navigate(site);
  await page.waitUntil('window.ready');
  return page;
}

module.exports = { openPage, startSite };
