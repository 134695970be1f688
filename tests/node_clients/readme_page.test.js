'use strict';
// Tests the web page in the README as written, in a headless browser. Only the address of the server differs.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const http = require('node:http');
const path = require('node:path');
const test = require('node:test');
const { startBrowser } = require('./lib/browser');
const { startProxy } = require('./lib/proxy');
const { startServer } = require('./lib/server');

const README = path.resolve(__dirname, '../../README.md');

test('page_of_the_readme_resumes_after_a_kill_and_after_it_was_closed', async (t) => {
  const server = await startServer(t);
  const proxy = await startProxy(t, server);
  const [, html] = /```html\n([^]*?)```/.exec(fs.readFileSync(README, 'utf8'));
  const page = html.replaceAll('127.0.0.1:4000', new URL(proxy.url).host);
  const site = http.createServer((request, response) => response.writeHead(200, { 'content-type': 'text/html' }).end(page));
  await new Promise((resolve) => site.listen(0, '127.0.0.1', resolve));
  t.after(() => site.close());

  const browser = await startBrowser(t);
  const open = async () => {
    const tab = await browser.openPage();
    await tab.navigate(`http://127.0.0.1:${site.address().port}/`);
    await tab.waitUntil(`document.getElementById('state')?.textContent === 'online'`);
    return tab;
  };
  const dispatch = (text) => server.dispatch({ op: 0, d: { text }, t: 'GREETING' }, ['alice']);
  const waitForLines = (tab, texts) =>
    tab.waitUntil(`[...document.querySelectorAll('li')].map((line) => line.textContent).join() === '${texts}'`);

  let tab = await open();
  await dispatch('one');
  await waitForLines(tab, ['one']);
  await server.kill();
  await server.restart();
  await dispatch('two');
  await waitForLines(tab, ['one', 'two']);
  await server.waitForNoPending('alice');
  assert.deepEqual(tab.exceptions, []);
  await tab.close();
  // A page that is being closed still receives messages.
  await server.waitForConnections('alice', 0);
  await dispatch('three');
  tab = await open();
  await waitForLines(tab, ['one', 'two', 'three']);
  assert.deepEqual(tab.exceptions, []);
});
