'use strict';
// Drives a mesa-client in a web page, with the methods that `TestClient` uses.

let lastId = 0;

class PageClient {
  #page;
  /** Expression of the client in the page. */
  #name;
  #frameListeners = [];

  /** `page` is a promise. `on` has the listeners that every kind of client takes. */
  constructor(page, url, on) {
    lastId += 1;
    const id = lastId;
    this.#name = `clients[${id}]`;
    this.#page = page.then(async (opened) => {
      opened.reports.set(id, ({ event, args }) => {
        if (event === 'frame') for (const listener of this.#frameListeners) listener({ data: args[0] });
        else on[event](...args);
      });
      await opened.run(`createClient(${id}, ${JSON.stringify(url)})`);
      return opened;
    });
    this.ws = {
      addEventListener: (type, listener) => this.#frameListeners.push(listener),
      terminate: () => {},
    };
  }

  /** Calls a method of the client in the page, and resolves with what it resolves with. */
  async #call(method, ...args) {
    const page = await this.#page;
    // `undefined` is not JSON.
    return page.run(`return ${this.#name}.${method}(${args.map((arg) => JSON.stringify(arg) ?? 'undefined')})`);
  }

  connect() {
    return this.#call('connect');
  }

  authenticate(data, options) {
    const authenticated = this.#call('authenticate', data, options);
    // A caller may ignore the promise.
    authenticated.catch(() => {});
    return authenticated;
  }

  send(opcode, data, type) {
    this.#call('send', opcode, data, type);
  }

  disconnect(code, reason) {
    // The page may have been closed.
    this.#call('disconnect', code, reason).catch(() => {});
  }
}

/** Makes clients of a page report their events to `page.reports`, a map from their ids to listeners. */
async function prepare(page) {
  page.reports = new Map();
  page.on('Runtime.bindingCalled', ({ payload }) => {
    const { id, ...report } = JSON.parse(payload);
    page.reports.get(id)(report);
  });
  await page.call('Runtime.addBinding', { name: 'report' });
  await page.run(`
    window.clients = {};
    window.createClient = (id, url) => {
      const send = (event, ...args) => report(JSON.stringify({ id, event, args }));
      // Reports a frame before the client handles it.
      class ReportingSocket extends WebSocket {
        constructor(url) {
          super(url);
          this.addEventListener('message', ({ data }) => send('frame', data));
        }
      }
      const client = new Client(url, { autoConnect: false, WebSocket: ReportingSocket });
      for (const event of ['connected', 'message', 'disconnected']) client.on(event, (...args) => send(event, ...args));
      client.on('error', () => {});
      clients[id] = client;
    }`);
  return page;
}

module.exports = { PageClient, prepare };
