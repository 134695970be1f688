'use strict';
// Tests the admin page in a headless browser.

const assert = require('node:assert/strict');
const test = require('node:test');
const { audit, clickButton, logIn, openAdminPage, showView } = require('./lib/admin');
const { TestClient } = require('./lib/clients');
const { startProxy } = require('./lib/proxy');
const { startServer } = require('./lib/server');

const PASSWORD = 'correct horse battery';

/** An id that changes how the text behind it looks, and would be an element as HTML. */
const HOSTILE_ID = 'a\u202eb <img src=x onerror="window.attacked = 1">';

/** Starts a server with an admin page, and opens the page. With `isLoggedIn` it shows the overview. */
async function start(t, { isLoggedIn = true } = {}) {
  const server = await startServer(t, { admin: { password: PASSWORD } });
  // The address stays when the server is started again.
  const proxy = await startProxy(t, server);
  const page = await openAdminPage(t, proxy.url.replace('ws:', 'http:'));
  if (isLoggedIn) {
    await logIn(page, PASSWORD);
    await page.waitUntil(`document.querySelector('.plots')`);
  }
  return { server, proxy, page };
}

async function connectAs(t, server, user, options) {
  const client = new TestClient('mesa-client', server.url);
  t.after(() => client.discard());
  await client.connect();
  await client.authenticateAs(user, options);
  return client;
}

/** Returns the texts of the cells of each row of the first table. */
const rows = (page) => page.evaluate(`[...document.querySelectorAll('main table tbody tr')].map((row) => [...row.cells].map((cell) => cell.innerText))`);

/** Resolves once the dialog's heading is `title`. */
const waitForDialog = (page, title) => page.waitUntil(`document.querySelector('dialog[open] h2')?.textContent === ${JSON.stringify(title)}`);

const waitForToast = (page, text) => page.waitUntil(`document.getElementById('toast').textContent === ${JSON.stringify(text)}`);

test('admin_page_logs_in_plots_the_status_and_recovers_when_the_server_is_back', async (t) => {
  const { server, proxy, page } = await start(t, { isLoggedIn: false });
  await logIn(page, 'incorrect horse battery');
  await page.waitUntil(`document.querySelector('[role=alert].problem')?.textContent.startsWith('The password is wrong')`);
  assert.equal(await page.evaluate(`document.querySelector('.plots')`), null);
  await page.run(`document.getElementById('password').value = ''`);
  await logIn(page, PASSWORD);
  await page.waitUntil(`document.querySelector('.plots')`);
  page.assertNoProblems(/401/);

  const alice = await connectAs(t, server, 'alice');
  await server.dispatchNumbers(3, ['alice', 'bob']);
  await alice.waitForCount(3);
  // Each plot has a line of two points at least, and the figures are those of the server.
  const lines = `[...document.querySelectorAll('.canvas path')].filter((path) => path.getAttribute('d')?.includes('L'))`;
  await page.waitUntil(`${lines}.length >= 10`);
  const figure = (name) => `[...document.querySelectorAll('.facts div')].find((each) => each.firstChild.textContent === '${name}')?.lastChild.textContent`;
  await page.waitUntil(`${figure('Dispatches')} === '3' && ${figure('Stored')} === '6' && ${figure('Users online')} === '1'`);
  await page.waitUntil(`document.querySelector('.plot svg[role=img]').getAttribute('aria-label') === 'Connections in the last 5 minutes: now open 1; highest value 1'`);
  await page.waitUntil(`document.getElementById('condition').textContent === 'Ready'`);

  // A server that is away is announced, and the page recovers by itself.
  proxy.target = null;
  proxy.cut();
  await page.waitUntil(`!document.getElementById('notice').hidden && document.getElementById('notice').textContent.includes('cannot be reached')`);
  proxy.target = server;
  await page.waitUntil(`document.getElementById('notice').hidden`);
  assert.ok(await page.evaluate(`document.querySelector('.plots') !== null`), 'the view stays');

  // A restart ends the sessions.
  await server.kill();
  await server.restart();
  proxy.target = server;
  await page.waitUntil(`document.querySelector('.problem')?.textContent === 'The session has ended. Log in again.'`);
  await page.run(`document.getElementById('password').value = ''`);
  await logIn(page, PASSWORD);
  await page.waitUntil(`document.querySelector('.plots') && document.getElementById('notice').hidden`);
  await page.run(`document.getElementById('logout').click()`);
  await page.waitUntil(`document.querySelector('.problem')?.textContent === 'You are logged out.'`);
  await page.navigate(`${proxy.url.replace('ws:', 'http:')}admin#/users`);
  await page.waitUntil(`document.getElementById('password') && document.getElementById('bar').hidden`);
  page.assertNoProblems(/401|502|Failed to load resource|ERR_/);
});

test('admin_page_shows_hostile_texts_as_text_and_messages_page_by_page', async (t) => {
  const { server, page } = await start(t);
  const hostile = { html: '<img src=x onerror="window.attacked = 1">', control: '\u0007\u001b[31m', direction: '\u202edlrow', half: '\ud83d' };
  await server.dispatch({ op: 0, d: hostile, t: '<b>\u202e</b>' }, [HOSTILE_ID]);
  for (let n = 1; n < 120; n += 1) await server.dispatchNumber(n, HOSTILE_ID);
  await showView(page, '#/users', 'Users');
  await page.run(`document.querySelector('[data-list=pending]').click()`);
  const id = 'a\\u202eb <img src=x onerror="window.attacked = 1">';
  await page.waitUntil(`document.querySelector('main td a')?.textContent === ${JSON.stringify(id)}`);
  await page.run(`document.querySelector('main td a').click()`);
  await page.waitUntil(`document.querySelectorAll('main .stack tbody tr').length === 50`);
  const shown = () => page.evaluate(`document.querySelector('main .stack tbody tr').innerText`);
  const expected = '{"html":"<img src=x onerror=\\"window.attacked = 1\\">","control":"\\u0007\\u001b[31m","direction":"\\u202edlrow","half":"\\ud83d"}';
  assert.ok((await shown()).includes(expected), await shown());
  assert.ok((await shown()).includes('<b>\\u202e</b>'), await shown());
  for (const count of [100, 120]) {
    await clickButton(page, 'Show more');
    await page.waitUntil(`document.querySelectorAll('main .stack tbody tr').length === ${count}`);
  }
  // The page shows what a backend and a client have sent, and runs and interprets none of it.
  assert.deepEqual(await page.evaluate(`[document.querySelectorAll('main img, main script, main .stack b').length, window.attacked ?? null]`), [0, null]);
  assert.ok(!(await page.evaluate(`document.documentElement.innerText + document.title`)).includes('\u202e'));
  await clickButton(page, 'Disconnect');
  await waitForDialog(page, `Disconnect ${id}?`);
  await audit(page, 'disconnect');
  page.assertNoProblems();
});

test('admin_page_sends_clears_disconnects_and_erases_only_when_confirmed', async (t) => {
  const { server, page } = await start(t);
  await server.dispatch({ op: 0, d: 0, t: 'FIRST' }, ['alice']);
  await showView(page, '#/users/alice', 'alice');
  await page.waitUntil(`document.querySelectorAll('main .stack tbody tr').length === 1`);
  await clickButton(page, 'Send a message');
  await waitForDialog(page, 'Send a message to alice');
  await page.run(`document.getElementById('send-data').value = '{'`);
  await clickButton(page, 'Send', 'dialog');
  await page.waitUntil(`document.querySelector('dialog .problem').textContent.startsWith('The data is not JSON')`);
  // A number that JavaScript cannot represent is sent and shown as it is.
  await page.run(`document.getElementById('send-data').value = '{"big": 12345678901234567890, "text": "hello"}'`);
  await clickButton(page, 'Send', 'dialog');
  await waitForToast(page, 'Sent to alice: offline, stored');
  await page.waitUntil(`document.querySelectorAll('main .stack tbody tr').length === 2`);
  assert.match((await rows(page)).at(-1).join(' '), /TEST .*"big":12345678901234567890,"text":"hello"/);
  const { body } = await server.call('GET', '/v1/users/alice/messages', undefined, { accept: 'text/plain' });
  assert.equal(body.messages.at(-1).t, 'TEST');

  await clickButton(page, 'Clear messages');
  await waitForDialog(page, 'Clear the pending messages of alice?');
  await clickButton(page, 'Cancel', 'dialog');
  await page.waitUntil(`!document.querySelector('dialog')`);
  assert.equal((await server.userState('alice')).pending, 2);
  await clickButton(page, 'Clear messages');
  await waitForDialog(page, 'Clear the pending messages of alice?');
  await clickButton(page, 'Clear messages', 'dialog');
  await waitForToast(page, '2 messages of alice cleared');
  assert.equal((await server.userState('alice')).pending, 0);
  await page.waitUntil(`document.querySelector('main').innerText.includes('1 to 2') && document.querySelector('main').innerText.includes('cleared')`);

  const alice = await connectAs(t, server, 'alice', { device: 'phone-1' });
  await clickButton(page, 'Refresh');
  await page.waitUntil(`document.querySelector('main').innerText.includes('phone-1')`);
  await audit(page, 'user');
  await clickButton(page, 'Disconnect');
  await waitForDialog(page, 'Disconnect alice?');
  await clickButton(page, 'Disconnect', 'dialog');
  assert.equal(await alice.waitForClose(), 1000);
  alice.discard();
  await waitForToast(page, '1 connection of alice closed');

  await clickButton(page, 'Erase');
  await waitForDialog(page, 'Erase alice?');
  assert.ok((await page.evaluate(`document.querySelector('dialog').innerText`)).includes('about alice is removed for good'));
  await clickButton(page, 'Erase the user', 'dialog');
  await waitForToast(page, 'alice is erased');
  await page.waitUntil(`document.querySelector('h1').textContent === 'Users'`);
  assert.equal((await server.call('GET', '/v1/users/alice')).status, 404);
  page.assertNoProblems();
});

test('admin_page_lists_users_by_presence_backlog_and_prefix', async (t) => {
  const { server, page } = await start(t);
  await connectAs(t, server, 'bob');
  for (let n = 0; n < 60; n += 1) await server.dispatchNumber(n, `user-${n}`);
  const ids = async () => (await rows(page)).map(([id]) => id);
  await showView(page, '#/users', 'Users');
  await page.waitUntil(`document.querySelectorAll('main tbody tr').length === 1`);
  assert.deepEqual(await ids(), ['bob']);
  await page.run(`document.querySelector('[data-list=pending]').click()`);
  await page.waitUntil(`document.querySelectorAll('main tbody tr').length >= 50`);
  while (await page.evaluate(`![...document.querySelectorAll('main button')].find((each) => each.textContent === 'Show more').hidden`)) {
    const before = (await ids()).length;
    await clickButton(page, 'Show more');
    await page.waitUntil(`document.querySelectorAll('main tbody tr').length > ${before} || [...document.querySelectorAll('main button')].find((each) => each.textContent === 'Show more').hidden`);
  }
  assert.deepEqual((await ids()).sort(), Array.from({ length: 60 }, (_, n) => `user-${n}`).sort());
  await page.run(`document.getElementById('prefix').focus()`);
  await page.call('Input.insertText', { text: 'user-5' });
  await page.waitUntil(`document.querySelectorAll('main tbody tr').length === 11`);
  assert.deepEqual(await ids(), ['user-5', ...Array.from({ length: 10 }, (_, n) => `user-5${n}`)]);
  // A search that is no id yet is explained, and does no harm.
  await page.run(`document.getElementById('prefix').select()`);
  await page.call('Input.insertText', { text: 'nobody' });
  await page.waitUntil(`document.querySelector('.summary').textContent.startsWith('No users')`);
  page.assertNoProblems();
});

test('admin_page_follows_events_with_filter_pause_and_a_bound', async (t) => {
  const { server, page } = await start(t);
  await showView(page, '#/events', 'Events');
  await page.waitUntil(`document.querySelector('.summary').textContent === '0 events seen, 0 shown'`);
  const alice = await connectAs(t, server, 'alice');
  alice.send({ text: '<i>hello</i> \u202e' }, 'CHAT');
  await page.waitUntil(`document.querySelectorAll('main tbody tr').length === 3`);
  assert.deepEqual((await rows(page)).map(([, type, user]) => `${type} ${user}`), ['message alice', 'authentication alice', 'connection ']);
  assert.equal((await rows(page))[0][4], 'CHAT {"text":"<i>hello</i> \\u202e"}');

  // A filter removes what does not fit, and what comes later is compared with it.
  await page.run(`document.getElementById('filter').focus()`);
  await page.call('Input.insertText', { text: 'Room-7' });
  await page.waitUntil(`document.querySelectorAll('main tbody tr').length === 0`);
  for (const room of ['room-1', 'room-7', 'room-2']) alice.send({ room }, 'JOIN');
  await page.waitUntil(`document.querySelector('.summary').textContent === '6 events seen, 1 shown'`);
  assert.equal((await rows(page))[0][4], 'JOIN {"room":"room-7"}');
  await page.run(`const text = document.getElementById('filter'); text.value = ''; text.dispatchEvent(new Event('input'));
    const kind = document.getElementById('kind'); kind.value = 'authentication'; kind.dispatchEvent(new Event('change'));`);
  await connectAs(t, server, 'bob');
  await page.waitUntil(`document.querySelectorAll('main tbody tr').length === 1`);
  assert.equal((await rows(page))[0].slice(1, 3).join(' '), 'authentication bob');
  await page.run(`const kind = document.getElementById('kind'); kind.value = ''; kind.dispatchEvent(new Event('change'));`);

  await clickButton(page, 'Pause');
  alice.send({ n: 1 }, 'PAUSED');
  await page.waitUntil(`document.querySelector('.summary').textContent.includes('paused with 1 waiting')`);
  assert.equal((await rows(page)).length, 1);
  await clickButton(page, 'Continue');
  await page.waitUntil(`document.querySelector('main tbody').innerText.includes('PAUSED')`);
  await audit(page, 'events');

  const carol = await connectAs(t, server, 'carol');
  for (let n = 0; n < 600; n += 1) {
    carol.send({ n }, 'MANY');
    // Below the limit of frames per second, also over its ten seconds.
    if (n % 50 === 0) await new Promise((resolve) => setTimeout(resolve, 50));
  }
  await page.waitUntil(`document.querySelector('main tbody').innerText.includes('{"n":599}')`);
  assert.equal((await rows(page)).length, 500);
  // The stream is opened again after a break, and ends with the view.
  await showView(page, '#/overview', 'Overview');
  page.assertNoProblems();
});

test('admin_page_is_usable_by_keyboard_alone_and_every_view_has_names_and_contrast', async (t) => {
  const { server, page } = await start(t, { isLoggedIn: false });
  await server.dispatchNumbers(3, ['alice']);
  await page.waitUntil(`document.activeElement?.id === 'password'`);
  await audit(page, 'login');
  await logIn(page, PASSWORD);
  await page.waitUntil(`document.querySelector('.plots')`);

  /** Presses Tab until the focus is on an element with a text or id. Each stop shows that it has the focus. */
  const tabTo = async (wanted) => {
    for (let n = 0; n < 60; n += 1) {
      await page.press('Tab');
      const [name, isVisible] = await page.evaluate(`(() => {
        const { activeElement: each } = document;
        const { outlineStyle, outlineWidth } = getComputedStyle(each);
        return [each.id || each.textContent, each === document.body || (each.matches(':focus-visible') && outlineStyle !== 'none' && parseFloat(outlineWidth) >= 2)];
      })()`);
      assert.ok(isVisible, `the focus on ${name} cannot be seen`);
      if (name === wanted) return;
    }
    assert.fail(`Tab does not lead to ${wanted}`);
  };
  await audit(page, 'overview');
  await tabTo('Users');
  await page.press('Enter');
  await page.waitUntil(`document.activeElement?.textContent === 'Users' && document.activeElement.matches('h1')`);
  await tabTo('All');
  await page.press(' ');
  await page.waitUntil(`document.querySelectorAll('main tbody tr').length === 1`);
  await audit(page, 'users');
  await tabTo('prefix');
  await page.call('Input.insertText', { text: 'al' });
  await tabTo('alice');
  await page.press('Enter');
  await page.waitUntil(`document.activeElement?.matches('h1') && document.activeElement.textContent === 'alice'`);
  for (const [name, title] of [['Erase', 'Erase alice?'], ['Send a message', 'Send a message to alice']]) {
    await page.run(`document.querySelector('h1').focus()`);
    await tabTo(name);
    await page.press('Enter');
    await waitForDialog(page, title);
    for (let n = 0; n < 12; n += 1) {
      await page.press('Tab', { shift: n % 2 === 1 && n > 6 });
      assert.ok(await page.evaluate(`document.activeElement === document.body || document.querySelector('dialog').contains(document.activeElement)`), 'the focus stays in the dialog');
    }
    await audit(page, name.toLowerCase().replaceAll(' ', '-'));
    await page.press('Escape');
    await page.waitUntil(`!document.querySelector('dialog')`);
    assert.equal(await page.evaluate(`document.activeElement.textContent`), name, 'the focus is back where it was');
  }
  assert.equal((await server.userState('alice')).pending, 3);
  page.assertNoProblems();
});

test('admin_page_of_a_development_server_is_open_without_a_password', async (t) => {
  const server = await startServer(t, {}, ['--dev']);
  const page = await openAdminPage(t, `http://127.0.0.1:${server.port}/`);
  await page.waitUntil(`document.querySelector('.plots') && document.getElementById('logout').hidden`);
  await page.waitUntil(`document.getElementById('condition').textContent === 'Ready'`);
  page.assertNoProblems();
});
