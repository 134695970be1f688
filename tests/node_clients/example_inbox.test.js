'use strict';
// Tests the example inbox in data/examples in a headless browser: each device of a user receives every notification.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const http = require('node:http');
const path = require('node:path');
const test = require('node:test');
const { startBrowser } = require('./lib/browser');
const { EXAMPLES } = require('./lib/program');
const { startProxy } = require('./lib/proxy');
const { startServer } = require('./lib/server');

/** Serves the page, as `python3 -m http.server` does, and a script that only a browser runs which is led astray. Returns its address. */
async function startSite(t) {
  const site = http.createServer((request, response) => {
    if (request.url.startsWith('/client.js')) {
      const headers = { 'content-type': 'text/javascript', 'access-control-allow-origin': '*' };
      response.writeHead(200, headers).end("document.title = 'attacked';");
    } else response.writeHead(200, { 'content-type': 'text/html' }).end(fs.readFileSync(path.join(EXAMPLES, 'inbox/index.html')));
  });
  await new Promise((resolve) => site.listen(0, '0.0.0.0', resolve));
  t.after(() => site.close());
  return `http://127.0.0.1:${site.address().port}/`;
}

test('inbox_on_two_devices_receives_every_notification_on_each', async (t) => {
  const server = await startServer(t);
  const site = await startSite(t);
  const browser = await startBrowser(t);
  // The address stays when the server is started again.
  const proxy = await startProxy(t, server);
  const api = encodeURIComponent(proxy.url.replace('ws:', 'http:'));
  const open = async (device) => {
    const page = await browser.openPage();
    await page.navigate(`${site}?user=alice&device=${device}&server=${api}`);
    await page.waitUntil(`document.getElementById('state')?.textContent === 'alice on ${device}'`);
    return page;
  };
  const titles = (page) => page.evaluate(`[...document.querySelectorAll('#list span')].map((line) => line.textContent)`);
  const waitForItems = (page, count) => page.waitUntil(`document.querySelectorAll('#list li').length === ${count}`);
  const notify = (title) => server.dispatch({ op: 0, d: { title }, t: 'NOTIFICATION' }, ['alice']);

  let phone = await open('phone');
  const laptop = await open('laptop');
  await notify('one');
  await waitForItems(phone, 1);
  await waitForItems(laptop, 1);

  // The phone is off. The laptop receives at once, and the phone later.
  await phone.close();
  await notify('<b>two</b>');
  await notify('three');
  await waitForItems(laptop, 3);
  await laptop.run(`document.querySelector('#list button').click()`);
  await waitForItems(laptop, 2);
  phone = await open('phone');
  await waitForItems(phone, 3);
  assert.deepEqual(await titles(phone), ['three', '<b>two</b>', 'one']);
  assert.deepEqual(await titles(laptop), ['<b>two</b>', 'one']);

  // Both devices have acknowledged, so nothing is stored any more. A kill of the server and a reload repeat nothing.
  await server.waitForNoPending('alice');
  await server.kill();
  await server.restart();
  await notify('four');
  await waitForItems(laptop, 3);
  await waitForItems(phone, 4);
  await phone.navigate(`${site}?user=alice&device=phone&server=${api}`);
  await waitForItems(phone, 4);
  assert.equal(await phone.evaluate('document.title'), '(4) Inbox');

  // A position of before some acknowledgements, such as after a crash, is a gap without a loss.
  await server.waitForNoPending('alice');
  await phone.run(`for (const key of Object.keys(localStorage)) if (key.startsWith('inbox position ')) localStorage.setItem(key, 1)`);
  await phone.navigate(`${site}?user=alice&device=phone&server=${api}&again`);
  await phone.waitUntil(`document.getElementById('state')?.textContent === 'alice on phone'`);
  await notify('five');
  await waitForItems(phone, 5);
  assert.equal((await titles(phone))[0], 'five');
  assert.equal(await phone.evaluate(`document.querySelectorAll('.gap').length`), 0);
  assert.deepEqual([...phone.exceptions, ...laptop.exceptions], []);
});

test('inbox_runs_no_script_of_a_server_elsewhere', async (t) => {
  const site = await startSite(t);
  const browser = await startBrowser(t);
  const page = await browser.openPage();
  // Another address of this machine stands for another machine.
  const elsewhere = new URL(site);
  elsewhere.hostname = '127.0.0.2';
  for (const server of [elsewhere.href, 'data:text/javascript,', 'ftp://127.0.0.1/']) {
    await page.navigate(`${site}?server=${encodeURIComponent(server)}`);
    await page.waitUntil(`document.title === 'attacked' || /change .server=/.test(document.getElementById('state')?.textContent)`);
    assert.notEqual(await page.evaluate('document.title'), 'attacked', server);
    await page.navigate('about:blank');
  }
});
