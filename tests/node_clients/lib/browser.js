'use strict';
// Drives a headless Chromium through its remote debugging protocol.

const { spawn, spawnSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const WebSocket = require('ws');
const { pollUntil, withTimeout } = require('./wait');

const FLAGS = [
  '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync', '--disable-dev-shm-usage', '--remote-debugging-port=0',
];

/** Returns the command of an installed browser, or `undefined`. */
function findBrowser() {
  const names = ['chromium', 'chromium-browser', 'google-chrome'];
  return names.find((name) => spawnSync(name, ['--version'], { stdio: 'ignore' }).status === 0);
}

/** A tab. Evaluates expressions in its page, and types text. */
class Page {
  #socket;
  #calls = new Map();
  #lastId = 0;
  #handlers = new Map();
  /** Uncaught exceptions of the page. */
  exceptions = [];

  static async open(url) {
    const page = new Page();
    page.#socket = new WebSocket(url);
    await withTimeout('the browser to accept a debugging connection', new Promise((resolve, reject) => {
      page.#socket.once('open', resolve).once('error', reject);
    }));
    page.#socket.on('message', (data) => page.#handle(JSON.parse(data)));
    page.#socket.on('close', () => {
      for (const { reject } of page.#calls.values()) reject(new Error('the browser closed the page'));
    });
    await page.call('Runtime.enable');
    await page.call('Page.enable');
    return page;
  }

  #handle({ id, result, error, method, params }) {
    if (method === 'Runtime.exceptionThrown') this.exceptions.push(params.exceptionDetails.exception?.description);
    this.#handlers.get(method)?.(params);
    const call = this.#calls.get(id);
    if (!call) return;
    this.#calls.delete(id);
    if (error) call.reject(new Error(error.message));
    else call.resolve(result);
  }

  /** Calls a method of the debugging protocol, and resolves with its result. */
  call(method, params = {}) {
    this.#lastId += 1;
    const id = this.#lastId;
    const response = new Promise((resolve, reject) => this.#calls.set(id, { resolve, reject }));
    this.#socket.send(JSON.stringify({ id, method, params }));
    return withTimeout(`the browser to answer ${method}`, response);
  }

  /** Calls `handler` with the parameters of each event `method` of the debugging protocol. */
  on(method, handler) {
    this.#handlers.set(method, handler);
  }

  async navigate(url) {
    await this.call('Page.navigate', { url });
  }

  /** Evaluates an expression in the page; `undefined` if it throws, for example while the page loads. */
  async evaluate(expression) {
    const { result, exceptionDetails } = await this.call('Runtime.evaluate', { expression, returnByValue: true });
    return exceptionDetails ? undefined : result.value;
  }

  /** Runs the body of an async function in the page. Resolves with what it returns, and rejects if it throws. */
  async run(body) {
    const options = { expression: `(async () => { ${body} })()`, awaitPromise: true, returnByValue: true };
    const { result, exceptionDetails } = await this.call('Runtime.evaluate', options);
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    return result.value;
  }

  /** Resolves once an expression is truthy in the page. */
  async waitUntil(expression) {
    try {
      return await pollUntil(expression, () => this.evaluate(expression));
    } catch (error) {
      const text = await this.evaluate('document.body?.innerText');
      throw new Error(`${error.message}; text of the page: ${JSON.stringify(text)}; exceptions: ${this.exceptions}`);
    }
  }

  /** Types text and presses Enter. */
  async typeLine(text) {
    await this.call('Input.insertText', { text });
    for (const type of ['keyDown', 'keyUp']) {
      await this.call('Input.dispatchKeyEvent', { type, key: 'Enter', code: 'Enter', windowsVirtualKeyCode: 13, text: '\r' });
    }
  }

  /** Presses a key. */
  async press(key, { shift = false } = {}) {
    const codes = { Tab: 9, Enter: 13, Escape: 27, ' ': 32 };
    const options = { key, code: key === ' ' ? 'Space' : key, windowsVirtualKeyCode: codes[key], modifiers: shift ? 8 : 0 };
    const text = { Enter: '\r', ' ': ' ' }[key];
    await this.call('Input.dispatchKeyEvent', { type: 'keyDown', ...options, ...(text && { text }) });
    await this.call('Input.dispatchKeyEvent', { type: 'keyUp', ...options });
  }

  /** Closes the tab. Resolves once the browser has removed it: until then its page goes on. */
  async close() {
    const closed = new Promise((resolve) => this.#socket.once('close', resolve));
    await this.call('Page.close').catch(() => {});
    await withTimeout('the browser to remove the page', closed);
  }
}

class Browser {
  #directory = fs.mkdtempSync(path.join(os.tmpdir(), 'mesa-browser-'));
  #child;
  #stderr = '';

  /** Starts the command `name`; resolves once its debugging port is open. */
  async start(name) {
    this.#child = spawn(name, [...FLAGS, `--user-data-dir=${this.#directory}`, 'about:blank'], {
      stdio: ['ignore', 'ignore', 'pipe'],
      detached: true,
    });
    this.#child.stderr.on('data', (chunk) => { this.#stderr = (this.#stderr + chunk).slice(-4000); });
    this.exited = new Promise((resolve) => this.#child.once('close', resolve));
    const file = path.join(this.#directory, 'DevToolsActivePort');
    const port = await pollUntil(`the browser to listen: ${this.#stderr}`, () => {
      if (this.#child.exitCode !== null) throw new Error(`the browser ended: ${this.#stderr}`);
      return fs.existsSync(file) && Number(fs.readFileSync(file, 'utf8').split('\n')[0]);
    }, 60_000);
    this.debugUrl = `http://127.0.0.1:${port}`;
    return this;
  }

  /** Opens a new tab. */
  async openPage() {
    const response = await fetch(`${this.debugUrl}/json/new?about:blank`, { method: 'PUT' });
    return Page.open((await response.json()).webSocketDebuggerUrl);
  }

  async remove() {
    // Kills the process group: the browser has child processes.
    try { process.kill(-this.#child.pid, 'SIGKILL'); } catch { /* the browser has already ended */ }
    await withTimeout('the browser to end', this.exited);
    fs.rmSync(this.#directory, { recursive: true, force: true, maxRetries: 5 });
  }
}

/** Starts a browser that is removed when test `t` ends. */
async function startBrowser(t) {
  const name = findBrowser();
  if (!name) throw new Error('expected Chromium, because this test is never skipped: `apt-get install chromium`');
  const browser = new Browser();
  t.after(() => browser.remove());
  return browser.start(name);
}

module.exports = { startBrowser };
