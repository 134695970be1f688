'use strict';
// Runs tests of the clients of the original over mesa-client in a headless Chromium.

const { after, before } = require('node:test');
const { startBrowser } = require('./lib/browser');
const { PageClient, prepare } = require('./lib/page_client');
const { openPage, startSite } = require('./lib/site');
const { setClients } = require('./lib/suite');

const cleanups = [];
let open;
const page = new Promise((resolve) => { open = resolve; });

before(async () => {
  const scope = { after: (cleanup) => cleanups.push(cleanup) };
  const browser = await startBrowser(scope);
  open(await prepare(await openPage(browser, await startSite(scope))));
});
after(async () => {
  for (const cleanup of cleanups) await cleanup();
});

setClients({ 'mesa-client in Chromium': (url, on) => new PageClient(page, url, on) });
for (const name of ['broadcast', 'network', 'offline', 'redelivery_interval', 'restart', 'versions']) require(`./${name}.test.js`);
