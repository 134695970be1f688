'use strict';
// Tests mesa-client in a headless Chromium, as the server serves it.

const assert = require('node:assert/strict');
const test = require('node:test');
const { after, before } = test;
const { startBrowser } = require('./lib/browser');
const { startProxy } = require('./lib/proxy');
const { startServer } = require('./lib/server');
const { openPage, startSite } = require('./lib/site');
const { dispatchStream, range } = require('./lib/suite');
const { pollUntil } = require('./lib/wait');

/** Sequences that a page has acknowledged by op 3, in order. */
async function recordAcknowledgements(page) {
  const acknowledged = [];
  await page.call('Network.enable');
  page.on('Network.webSocketFrameSent', ({ response }) => {
    const { op, d } = JSON.parse(response.payloadData);
    if (op === 3) acknowledged.push(d.s);
  });
  return acknowledged;
}

const authenticate = (store) => `await client.authenticate(async () => 'alice', { device: 'browser', resume: ${store} })`;

// One browser for all tests: a start takes seconds on a busy machine.
let browser;
let site;
const cleanups = [];
before(async () => {
  const scope = { after: (cleanup) => cleanups.push(cleanup) };
  browser = await startBrowser(scope);
  site = await startSite(scope);
});
after(async () => {
  for (const cleanup of cleanups) await cleanup();
});

// covers: G1, G2
test('page_receives_10000_messages_through_50_kills_once_each', async (t) => {
  const server = await startServer(t);
  const proxy = await startProxy(t, server);
  const page = await openPage(browser, site);
  await page.run(`start('${proxy.url}'); ${authenticate('indexedDBStore()')}`);
  const began = performance.now();
  for (const round of range(50)) {
    await dispatchStream(server, 200, 'alice', round * 200);
    await page.waitUntil(`handled.length > ${round * 200}`);
    await server.kill();
    await server.restart();
  }
  await page.waitUntil('handled.length >= 10000');
  await server.waitForNoPending('alice');
  t.diagnostic(`${Math.round(performance.now() - began)} ms, ${await page.run('return connections')} connections`);
  assert.deepEqual(await page.run('return handled'), range(10_000));
  assert.deepEqual(await page.run('return gaps'), []);
  // After the last kill all messages may be handled before the page connects again.
  await page.waitUntil('connections > 50');
  await page.close();
});

// covers: G2
test('closed_page_repeats_only_the_message_that_it_was_handling', async (t) => {
  for (const store of ['indexedDBStore()', 'localStorageStore()']) {
    const server = await startServer(t);
    await server.dispatchNumbers(8, 'alice');
    const page = await openPage(browser, site);
    await page.run(`start('${server.url}')
      .on('message', ({ data }) => data.n === 5 && new Promise(() => {})); ${authenticate(store)}`);
    await page.waitUntil('handled.length === 6');
    // The page saves and acknowledges once it has its Web Lock.
    await pollUntil('the acknowledgement of five messages', async () => (await server.userState('alice')).pending === 3);
    await page.close();
    const next = await openPage(browser, site);
    await next.run(`start('${server.url}'); ${authenticate(store)}`);
    await next.waitUntil('handled.length === 3');
    assert.deepEqual(await next.run('return handled'), [5, 6, 7], store);
    await next.close();
  }
});

test('tabs_of_a_device_share_a_cursor_and_one_of_them_acknowledges', async (t) => {
  const server = await startServer(t);
  const pages = [await openPage(browser, site), await openPage(browser, site)];
  const acknowledged = await Promise.all(pages.map(recordAcknowledgements));
  for (const page of pages) await page.run(`start('${server.url}'); ${authenticate('indexedDBStore()')}`);
  // A tab begins after what the others have handled. So it must have loaded the position before the first synced message.
  await server.dispatchNumber(-1, 'alice', { sync: false });
  for (const page of pages) await page.waitUntil('handled.length === 1');
  await server.dispatchNumbers(20, 'alice');
  for (const page of pages) await page.waitUntil('handled.length === 21');
  await server.waitForNoPending('alice');
  const acknowledges = (tab, s) => pollUntil(`an acknowledgement of ${s}`, () => acknowledged[tab].includes(s));
  const leader = await pollUntil('an acknowledgement of 20', () => acknowledged.findIndex((each) => each.includes(20)) + 1) - 1;
  const other = 1 - leader;
  await pages[other].run('await navigator.locks.query()');
  assert.deepEqual(acknowledged[other], [], 'expected the tab without the lock to acknowledge nothing');

  // The other tab takes over.
  await pages[leader].close();
  await server.dispatchNumbers(5, 'alice', 20);
  await acknowledges(other, 25);
  await server.waitForNoPending('alice');
  assert.deepEqual(await pages[other].run('return handled'), range(26, -1));
  await pages[other].close();
});

// covers: G2
test('frozen_tab_receives_everything_once_when_it_thaws', async (t) => {
  const server = await startServer(t);
  const proxy = await startProxy(t, server);
  const page = await openPage(browser, site);
  await page.run(`start('${proxy.url}'); ${authenticate('indexedDBStore()')}`);
  await server.dispatchNumbers(5, 'alice');
  await page.waitUntil('handled.length === 5');
  await page.call('Page.setWebLifecycleState', { state: 'frozen' });
  await server.dispatchNumbers(5, 'alice', 5);
  await server.kill();
  await server.restart();
  await server.dispatchNumbers(5, 'alice', 10);
  assert.equal((await server.userState('alice')).online, false);
  assert.equal(await page.run('return handled.length'), 5, 'expected a frozen page to handle nothing');
  await page.call('Page.setWebLifecycleState', { state: 'active' });
  await page.waitUntil('handled.length === 15');
  await server.waitForNoPending('alice');
  assert.deepEqual(await page.run('return handled'), range(15));
  await page.close();
});

test('client_connects_at_once_when_the_network_is_back', async (t) => {
  const server = await startServer(t);
  const proxy = await startProxy(t, server);
  const page = await openPage(browser, site);
  // Without the event the next attempt would be made within hours.
  await page.run(`Math.random = () => 1; start('${proxy.url}', { reconnectDelay: 1e7 }); ${authenticate('true')}`);
  proxy.cut();
  await page.waitUntil('disconnections.length === 1');
  await server.dispatchNumber(0, 'alice');
  await page.run(`window.dispatchEvent(new Event('online'))`);
  await page.waitUntil('handled.length === 1');
  await page.close();
});

test('page_of_another_origin_loads_the_client_from_the_server', async (t) => {
  const server = await startServer(t);
  await server.dispatchNumber(0, 'alice');
  const page = await openPage(browser, site);
  const from = server.url.replace('ws:', 'http:');
  const received = await page.run(`const { Client } = await import('${from}client.js');
    const loaded = new Client('${server.url}');
    loaded.authenticate('alice');
    for await (const message of loaded) break;
    loaded.disconnect();
    return new Promise((resolve) => { loaded.on('disconnected', resolve); });`);
  assert.equal(received, 1005);
  await pollUntil('the acknowledgement', async () => (await server.userState('alice')).connections === 0);
  assert.deepEqual(page.exceptions, []);
  await page.close();
});
