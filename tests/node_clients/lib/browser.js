'use strict';
// A real browser without a window, driven through its remote debugging protocol.

const { spawn, spawnSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const WebSocket = require('ws');
const { Changes, eventually, within } = require('./wait');

const FLAGS = [
  '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync', '--disable-dev-shm-usage', '--remote-debugging-port=0',
];

/** The first that is installed. */
function installed() {
  const names = ['chromium', 'chromium-browser', 'google-chrome'];
  return names.find((name) => spawnSync(name, ['--version'], { stdio: 'ignore' }).status === 0);
}

/** A tab: what it shows can be asked for, and what its user does can be done. */
class Page {
  #socket;
  #calls = new Map();
  #last = 0;
  /** What the page complained of. */
  complaints = [];

  static async open(url) {
    const page = new Page();
    page.#socket = new WebSocket(url);
    await within('the browser to answer', new Promise((resolve, reject) => {
      page.#socket.once('open', resolve).once('error', reject);
    }));
    page.#socket.on('message', (data) => page.#hear(JSON.parse(data)));
    await page.call('Runtime.enable');
    await page.call('Page.enable');
    return page;
  }

  #hear({ id, result, error, method, params }) {
    if (method === 'Runtime.exceptionThrown') this.complaints.push(params.exceptionDetails.exception?.description);
    const call = this.#calls.get(id);
    if (!call) return;
    this.#calls.delete(id);
    if (error) call.reject(new Error(error.message));
    else call.resolve(result);
  }

  call(method, params = {}) {
    this.#last += 1;
    const id = this.#last;
    const answered = new Promise((resolve, reject) => this.#calls.set(id, { resolve, reject }));
    this.#socket.send(JSON.stringify({ id, method, params }));
    return within(`the browser to do ${method}`, answered);
  }

  async go(url) {
    await this.call('Page.navigate', { url });
  }

  /** What an expression is in the page; `undefined` while there is no page. */
  async evaluate(expression) {
    const { result, exceptionDetails } = await this.call('Runtime.evaluate', { expression, returnByValue: true });
    return exceptionDetails ? undefined : result.value;
  }

  /** Resolves once an expression is true in the page. */
  async until(expression) {
    try {
      return await eventually(expression, () => this.evaluate(expression));
    } catch (error) {
      const shown = await this.evaluate('document.body?.innerText');
      throw new Error(`${error.message}; the page shows ${JSON.stringify(shown)}, and complains of ${this.complaints}`);
    }
  }

  /** Types a line, and ends it. */
  async type(text) {
    await this.call('Input.insertText', { text });
    for (const type of ['keyDown', 'keyUp']) {
      await this.call('Input.dispatchKeyEvent', { type, key: 'Enter', code: 'Enter', windowsVirtualKeyCode: 13, text: '\r' });
    }
  }

  async close() {
    await this.call('Page.close').catch(() => {});
    this.#socket.terminate();
  }
}

class Browser {
  #directory = fs.mkdtempSync(path.join(os.tmpdir(), 'mesa-browser-'));
  #child;
  #errors = '';

  async start(name) {
    this.#child = spawn(name, [...FLAGS, `--user-data-dir=${this.#directory}`, 'about:blank'], {
      stdio: ['ignore', 'ignore', 'pipe'],
      detached: true,
    });
    this.#child.stderr.on('data', (piece) => { this.#errors = (this.#errors + piece).slice(-4000); });
    this.exited = new Promise((resolve) => this.#child.once('close', resolve));
    const file = path.join(this.#directory, 'DevToolsActivePort');
    const port = await eventually(`the browser to listen: ${this.#errors}`, () => {
      if (this.#child.exitCode !== null) throw new Error(`the browser ended: ${this.#errors}`);
      return fs.existsSync(file) && Number(fs.readFileSync(file, 'utf8').split('\n')[0]);
    }, 60_000);
    this.address = `http://127.0.0.1:${port}`;
    return this;
  }

  /** A new tab. */
  async page() {
    const response = await fetch(`${this.address}/json/new?about:blank`, { method: 'PUT' });
    return Page.open((await response.json()).webSocketDebuggerUrl);
  }

  async remove() {
    // It has children of its own, which go with its group.
    try { process.kill(-this.#child.pid, 'SIGKILL'); } catch { /* it has gone already */ }
    await within('the browser to end', this.exited);
    fs.rmSync(this.#directory, { recursive: true, force: true, maxRetries: 5 });
  }
}

/** A browser that is closed when test `t` ends. */
async function browse(t) {
  const name = installed();
  if (!name) throw new Error('no Chromium is installed, and nothing is skipped: `apt-get install chromium`');
  const browser = new Browser();
  t.after(() => browser.remove());
  return browser.start(name);
}

module.exports = { browse };
