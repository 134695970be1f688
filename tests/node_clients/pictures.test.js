'use strict';
// Tests the demo and the plots of the admin page, and takes the pictures of the README. Contributing says how.

const assert = require('node:assert/strict');
const { spawnSync } = require('node:child_process');
const test = require('node:test');
const { logIn, openAdminPage } = require('./lib/admin');
const { startBrowser } = require('./lib/browser');
const { TestClient } = require('./lib/clients');
const { saveScreenshot } = require('./lib/screenshot');
const { BIN, startServer } = require('./lib/server');
const { range } = require('./lib/suite');

const PASSWORD = 'correct horse battery';

/** Seconds of load that the plots show: more of them for a picture. */
const LOAD_SECONDS = process.env.MESA_SCREENSHOTS ? 240 : 5;

/** The page of a terminal. */
const TERMINAL = `<!doctype html><style>
  body { margin: 0; background: #14161a; color: #d7dae0; }
  pre { margin: 0; padding: 18px 22px; font: 14px/1.4 "DejaVu Sans Mono", monospace; width: max-content; }
</style><pre></pre>`;

test('demo_loses_nothing_and_looks_as_in_the_readme', async (t) => {
  const { status, stdout, stderr } = spawnSync(BIN, ['demo', '--fast'], { encoding: 'utf8' });
  assert.deepEqual([status, stderr], [0, '']);
  assert.match(stdout, /^14 of 14 messages arrived, in order$/m);
  const end = stdout.indexOf('\n\nNext, ');
  assert.ok(end > 0, 'the demo ends with what to do next');

  const page = await (await startBrowser(t)).openPage();
  await page.navigate(`data:text/html,${encodeURIComponent(TERMINAL)}`);
  await page.waitUntil(`document.querySelector('pre')`);
  await page.run(`document.querySelector('pre').textContent = ${JSON.stringify(`$ mesa demo\n${stdout.slice(0, end)}`)}`);
  const [width, height] = await page.evaluate(`(({ width, height }) => [Math.ceil(width), Math.ceil(height)])(document.querySelector('pre').getBoundingClientRect())`);
  await saveScreenshot(page, 'demo', { metrics: { width, height, deviceScaleFactor: 1, mobile: false } });
});

test('admin_page_plots_a_load', async (t) => {
  const server = await startServer(t, { admin: { password: PASSWORD } });
  const page = await openAdminPage(t, server.url.replace('ws:', 'http:'));
  await logIn(page, PASSWORD);
  await page.waitUntil(`document.querySelector('.plots')`);

  const users = range(60).map((n) => `user-${n}`);
  const clients = [];
  t.after(() => clients.forEach((client) => client.discard()));
  const connect = async (user) => {
    const client = new TestClient('mesa-client', server.url);
    clients.push(client);
    await client.connect();
    await client.authenticateAs(user, { resume: true });
  };
  const until = Date.now() + LOAD_SECONDS * 1000;
  for (let second = 0; Date.now() < until; second += 1) {
    const next = Date.now() + 1000;
    // Users come one by one, and a part of them loses the connection now and then.
    if (second % 4 === 0 && clients.length < 50) await connect(users[clients.length]);
    if (second % 60 === 45) clients.splice(0, 12).forEach((client) => client.discard());
    const recipients = 10 + Math.round(8 * Math.sin(second / 12));
    for (let n = 0; n < 20; n += 1) await server.dispatchNumber(n, users.slice(n, n + recipients));
    await new Promise((resolve) => setTimeout(resolve, Math.max(0, next - Date.now())));
  }
  const highest = `Number(document.querySelector('.plot svg[role=img]').getAttribute('aria-label').match(/highest value (\\d+)/)[1])`;
  await page.waitUntil(`${highest} >= 2`);
  page.assertNoProblems();
  await saveScreenshot(page, 'admin', {
    metrics: { width: 1280, height: 800, deviceScaleFactor: 1, mobile: false },
    features: [{ name: 'prefers-color-scheme', value: 'light' }],
  });
});
