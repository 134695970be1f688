'use strict';
// The chat of data/examples, as its users meet it: by published clients, and by a page in a real browser.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const http = require('node:http');
const os = require('node:os');
const path = require('node:path');
const test = require('node:test');
const { browse } = require('./lib/browser');
const { Peer } = require('./lib/clients');
const { EXAMPLES, run } = require('./lib/program');
const { Proxy } = require('./lib/proxy');

const CHAT = process.env.MESA_BIN && path.join(path.dirname(path.resolve(process.env.MESA_BIN)), 'examples', 'chat');

/** A chat on a store of its own; `restart()` kills it and starts it again. */
async function chat(t) {
  if (!CHAT || !fs.existsSync(CHAT)) throw new Error(`${CHAT} is missing: cargo build --example chat (tests/run does)`);
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'mesa-chat-'));
  t.after(() => fs.rmSync(directory, { recursive: true, force: true }));
  const start = () => run(t, CHAT, ['127.0.0.1:0', path.join(directory, 'store')]);
  const proxy = await new Proxy(await start()).listen();
  t.after(() => proxy.close());
  const restart = async () => {
    const before = proxy.target;
    proxy.target = null;
    await before.kill();
    proxy.target = await start();
  };
  return { url: proxy.url, restart };
}

async function enter(t, url, name) {
  const peer = new Peer('stock158', url);
  t.after(() => peer.retire());
  await peer.connect();
  await peer.is(name);
  return peer;
}

const said = (peer) => peer.messages.filter(({ t }) => t === 'SAID').map(({ d }) => `${d.from}: ${d.text}`);

test('who_is_away_from_the_chat_reads_on_coming_back_what_was_said', async (t) => {
  const { url, restart } = await chat(t);
  const [alice, bob] = [await enter(t, url, 'alice'), await enter(t, url, 'bob')];
  await alice.until('bob to come', () => alice.messages.some(({ t: type, d }) => type === 'JOINED' && d.from === 'bob'));
  alice.say({ text: 'hello' }, 'SAY');
  await bob.until('hello', () => said(bob).includes('alice: hello'));
  await bob.disconnect();
  await alice.until('bob to go', () => alice.messages.some(({ t: type, d }) => type === 'LEFT' && d.from === 'bob'));
  alice.say({ text: 'one' }, 'SAY');
  alice.say({ text: 'two' }, 'SAY');
  await alice.until('what she said', () => said(alice).length === 3);
  alice.retire();
  await restart();
  const again = await enter(t, url, 'bob');
  await again.until('what he missed', () => said(again).length >= 2);
  assert.deepEqual(said(again).slice(-2), ['alice: one', 'alice: two']);
  again.say({ nonsense: true }, 'SAY');
  assert.equal(await again.waitForClose(), 4000);
});

test('the_page_chats_in_a_real_browser_and_comes_back_after_a_kill', async (t) => {
  const { url, restart } = await chat(t);
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

  const browser = await browse(t);
  let page = await browser.page();
  await page.go(address);
  await page.until(`document.getElementById('state')?.textContent === 'here as alice'`);
  const bob = await enter(t, url, 'bob');
  await page.until(`document.getElementById('said').innerText.includes('bob comes')`);
  await page.type('<b>hello</b> from a page');
  await bob.until('the page to say it', () => said(bob).includes('alice: <b>hello</b> from a page'));
  await page.until(`document.getElementById('said').innerText.includes('alice: <b>hello</b> from a page')`);
  bob.say({ text: 'hello alice' }, 'SAY');
  await page.until(`document.getElementById('said').innerText.includes('bob: hello alice')`);

  // Her tab is closed; what is said meanwhile is there when she opens another.
  await page.close();
  await bob.until('alice to go', () => bob.messages.some(({ t: type, d }) => type === 'LEFT' && d.from === 'alice'));
  for (const text of ['one', 'two', 'three']) bob.say({ text }, 'SAY');
  await bob.until('what he said', () => said(bob).length === 5);
  page = await browser.page();
  await page.go(address);
  await page.until(`document.querySelectorAll('#said [data-missed]').length >= 3`);
  const missed = `[...document.querySelectorAll('#said [data-missed]')].slice(-3).map((line) => line.textContent).join()`;
  assert.equal(await page.evaluate(missed), 'bob: one,bob: two,bob: three');

  // The server is killed; the page comes back by itself, and says so.
  bob.retire();
  await restart();
  await page.until(`document.getElementById('state').textContent === 'back as alice'`);
  const carol = await enter(t, url, 'carol');
  await page.type('back again');
  await carol.until('the page to say it', () => said(carol).includes('alice: back again'));
  assert.deepEqual(page.complaints, []);
});
