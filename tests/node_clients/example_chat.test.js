'use strict';
// Tests the example chat in data/examples: with a published client, and with its pages in a headless browser.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const http = require('node:http');
const os = require('node:os');
const path = require('node:path');
const test = require('node:test');
const { startBrowser } = require('./lib/browser');
const { TestClient } = require('./lib/clients');
const { EXAMPLES, startProgram } = require('./lib/program');
const { Proxy } = require('./lib/proxy');
const { saveScreenshot } = require('./lib/screenshot');
const { pollUntil } = require('./lib/wait');

const CHAT = process.env.MESA_BIN && path.join(path.dirname(path.resolve(process.env.MESA_BIN)), 'examples', 'chat');

/** The window of a phone. */
const PHONE = { width: 390, height: 560, deviceScaleFactor: 2, mobile: true };

/** Starts a chat server with an empty store behind a proxy. `restart()` kills the server and starts it again. */
async function startChat(t) {
  if (!CHAT || !fs.existsSync(CHAT)) {
    throw new Error(`expected the binary ${CHAT}: cargo build --example chat (tests/run does)`);
  }
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'mesa-chat-'));
  t.after(() => fs.rmSync(directory, { recursive: true, force: true }));
  const startServer = () => startProgram(t, CHAT, ['127.0.0.1:0', path.join(directory, 'store')]);
  const proxy = await new Proxy(await startServer()).listen();
  t.after(() => proxy.close());
  const restart = async () => {
    const previous = proxy.target;
    proxy.target = null;
    await previous.kill();
    proxy.target = await startServer();
  };
  const { port } = new URL(proxy.url);
  return { url: `${proxy.url}socket`, page: `http://127.0.0.1:${port}/`, restart };
}

/** Connects a client and authenticates it as `name`. */
async function connectAs(t, url, name) {
  const client = new TestClient('original158', url);
  t.after(() => client.discard());
  await client.connect();
  await client.authenticateAs(name);
  return client;
}

/** Returns the chat lines that a client received, as `user: text`. */
const chatLines = (client) => client.messages.filter(({ t }) => t === 'CHAT').map(({ d }) => `${d.from}: ${d.text}`);

/** Tells whether a client has received a message of `type` about the user `from`. */
const hasEvent = (client, type, from) => client.messages.some(({ t, d }) => t === type && d.from === from);

test('offline_chat_user_receives_missed_messages_on_reconnect', async (t) => {
  const { url, restart } = await startChat(t);
  const [alice, bob] = [await connectAs(t, url, 'alice'), await connectAs(t, url, 'bob')];
  await alice.waitUntil('JOINED of bob', () => hasEvent(alice, 'JOINED', 'bob'));
  alice.send({ text: 'hello' }, 'CHAT');
  await bob.waitUntil('the message of alice', () => chatLines(bob).includes('alice: hello'));
  await bob.disconnect();
  await alice.waitUntil('LEFT of bob', () => hasEvent(alice, 'LEFT', 'bob'));
  alice.send({ text: 'one' }, 'CHAT');
  alice.send({ text: 'two' }, 'CHAT');
  await alice.waitUntil('the three messages of alice', () => chatLines(alice).length === 3);
  alice.discard();
  await restart();
  const reconnected = await connectAs(t, url, 'bob');
  await reconnected.waitUntil('the missed messages', () => chatLines(reconnected).length >= 2);
  assert.deepEqual(chatLines(reconnected).slice(-2), ['alice: one', 'alice: two']);
  reconnected.send({ unknown: true }, 'CHAT');
  assert.equal(await reconnected.waitForClose(), 4000);
});

test('chat_page_in_a_browser_receives_missed_messages_and_reconnects_after_a_kill', async (t) => {
  const { url, restart } = await startChat(t);
  const files = {
    '/': [path.join(EXAMPLES, 'page/index.html'), 'text/html'],
    '/mesa-js-client.umd.js': [require.resolve('mesa-js-client/lib/mesa-js-client.umd.js'), 'text/javascript'],
  };
  const site = http.createServer((request, response) => {
    const [file, type] = files[new URL(request.url, 'http://localhost').pathname] ?? [];
    if (!file) return response.writeHead(404).end();
    response.writeHead(200, { 'content-type': type }).end(fs.readFileSync(file));
  });
  await new Promise((resolve) => site.listen(0, '127.0.0.1', resolve));
  t.after(() => site.close());
  const address = `http://127.0.0.1:${site.address().port}/?name=alice&server=${encodeURIComponent(url)}`;

  const browser = await startBrowser(t);
  let page = await browser.openPage();
  await page.navigate(address);
  await page.waitUntil(`document.getElementById('state')?.textContent === 'online as alice'`);
  const bob = await connectAs(t, url, 'bob');
  await page.waitUntil(`document.getElementById('messages').innerText.includes('bob joined')`);
  await page.typeLine('<b>hello</b> from a page');
  await bob.waitUntil('the message of the page', () => chatLines(bob).includes('alice: <b>hello</b> from a page'));
  await page.waitUntil(`document.getElementById('messages').innerText.includes('alice: <b>hello</b> from a page')`);
  bob.send({ text: 'hello alice' }, 'CHAT');
  await page.waitUntil(`document.getElementById('messages').innerText.includes('bob: hello alice')`);

  // Messages that arrive while the tab is closed are shown in the next tab.
  await page.close();
  await bob.waitUntil('LEFT of alice', () => hasEvent(bob, 'LEFT', 'alice'));
  for (const text of ['one', 'two', 'three']) bob.send({ text }, 'CHAT');
  await bob.waitUntil('the five messages of bob', () => chatLines(bob).length === 5);
  page = await browser.openPage();
  await page.navigate(address);
  await page.waitUntil(`document.querySelectorAll('#messages [data-missed]').length >= 3`);
  const missed = `[...document.querySelectorAll('#messages [data-missed]')].slice(-3).map((line) => line.textContent).join()`;
  assert.equal(await page.evaluate(missed), 'bob: one,bob: two,bob: three');

  // After a kill of the server, the page reconnects by itself and shows that.
  bob.discard();
  await restart();
  await page.waitUntil(`document.getElementById('state').textContent === 'reconnected as alice'`);
  const carol = await connectAs(t, url, 'carol');
  await page.typeLine('back again');
  await carol.waitUntil('the message of the page', () => chatLines(carol).includes('alice: back again'));
  assert.deepEqual(page.exceptions, []);
});

/** Waits for a condition in a page. In it, `shown(id)` is the text of an element. */
const shows = (page, condition) => page.waitUntil(`(() => {
  const shown = (id) => document.getElementById(id)?.innerText ?? '';
  return ${condition};
})()`);

test('chat_page_shows_presence_and_typing_and_resumes_after_the_network_was_cut', async (t) => {
  const { page: address, restart } = await startChat(t);
  const browser = await startBrowser(t);
  const open = async (name) => {
    const page = await browser.openPage();
    await page.navigate(`${address}?name=${name}`);
    await shows(page, `shown('state') === 'online as ${name}'`);
    return page;
  };
  const alice = await open('alice');
  const bob = await open('bob');
  await shows(alice, `shown('members').includes('bob')`);
  await alice.run(`document.getElementById('text').focus()`);
  await alice.typeLine('<b>hello</b>');
  await shows(bob, `shown('messages').includes('<b>hello</b>')`);
  await bob.run(`document.getElementById('text').focus()`);
  await bob.call('Input.insertText', { text: 'I am' });
  await shows(alice, `shown('typing') === 'bob is typing'`);

  // The button cuts the network of alice. What arrives meanwhile is shown after it is back, and what she writes is sent.
  await alice.run(`document.getElementById('cut').click()`);
  await shows(alice, `shown('state') === 'offline, reconnecting'`);
  await bob.typeLine(' here');
  await bob.typeLine('still here');
  await alice.run(`document.getElementById('text').focus()`);
  await alice.typeLine('sent while offline');
  await alice.run(`document.getElementById('cut').click()`);
  await shows(alice, `shown('state') === 'resumed as alice: 2 missed messages' && shown('messages').includes('still here')`);
  await shows(bob, `shown('messages').includes('sent while offline')`);
  await saveScreenshot(alice, 'chat', { metrics: PHONE, features: [{ name: 'prefers-color-scheme', value: 'dark' }] });

  // A kill of the server loses nothing, and a reload of the page shows everything once.
  const joined = async () => {
    const counts = [alice, bob].map((page) => page.evaluate(`document.body.innerText.split(' joined').length`));
    return (await Promise.all(counts)).reduce((sum, count) => sum + count);
  };
  const before = await joined();
  await restart();
  // The first one that is back is shown the second.
  await pollUntil('both members to be back', async () => (await joined()) > before);
  await bob.typeLine('after the kill');
  await shows(alice, `shown('messages').includes('after the kill')`);
  await alice.navigate(`${address}?name=alice`);
  await shows(alice, `shown('state') === 'online as alice'`);
  const lines = await alice.evaluate(`[...document.querySelectorAll('#messages .chat span:last-child')].map((line) => line.textContent)`);
  assert.deepEqual(lines, ['<b>hello</b>', 'I am here', 'still here', 'sent while offline', 'after the kill']);

  // A position of before some acknowledgements is a gap without a loss. Stored lines of another log, such as that of a restored
  // backup, hide no line of this one.
  await alice.run(`
    for (const name of Object.keys(localStorage)) if (name.startsWith('position of ')) localStorage.setItem(name, 1);
    const lines = JSON.parse(localStorage.getItem('chat of alice'));
    const last = Math.max(...lines.map(({ sequence }) => sequence));
    for (let n = 1; n <= 50; n += 1) lines.push({ from: 'bob', text: 'of another log', at: n, sequence: last + n });
    localStorage.setItem('chat of alice', JSON.stringify(lines));
  `);
  await alice.navigate(`${address}?name=alice&again`);
  await shows(alice, `shown('state').startsWith('online as alice')`);
  await bob.typeLine('of this log');
  await shows(alice, `shown('messages').includes('of this log')`);
  assert.equal(await alice.evaluate(`document.body.innerText.includes('are missing')`), false);
  assert.deepEqual([...alice.exceptions, ...bob.exceptions], []);
});
