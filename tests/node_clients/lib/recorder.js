'use strict';
// Records what a mesa-client passes to its application.

const { ChangeNotifier } = require('./wait');

class Recorder {
  #changes = new ChangeNotifier();

  /** The `d.n` of each message whose handler has resolved, in order. */
  handled = [];
  /** Sequences of these messages. */
  sequences = [];
  /** Gaps, in order. */
  gaps = [];
  /** `[code, reason, willAttemptReconnect]` of each disconnection. */
  disconnections = [];
  /** Options of each `connected` event. */
  connections = [];
  errors = [];

  /** `handle` runs for each message, and may be asynchronous. */
  constructor(client, handle = () => {}) {
    this.client = client;
    client.on('connected', (options) => this.#record(this.connections, options));
    client.on('gap', (gap) => this.#record(this.gaps, gap));
    client.on('error', (error) => this.#record(this.errors, error));
    client.on('disconnected', (code, reason, { willAttemptReconnect }) => {
      this.#record(this.disconnections, [code, reason, willAttemptReconnect]);
    });
    client.on('message', async (message) => {
      await handle(message);
      this.sequences.push(message.sequence);
      this.#record(this.handled, message.data.n);
    });
  }

  #record(list, value) {
    list.push(value);
    this.#changes.notify();
  }

  /** Evaluates conditions again, after a change that is not an event of the client. */
  notify() {
    this.#changes.notify();
  }

  waitUntil(description, condition) {
    const state = () => `${description}; handled ${this.handled.length}, the last ${this.handled.at(-1)}, `
      + `disconnections ${JSON.stringify(this.disconnections)}, errors ${this.errors.map(String)}`;
    return this.#changes.waitUntil(state, condition);
  }

  waitForCount(count) {
    return this.waitUntil(`${count} messages`, () => this.handled.length >= count);
  }

  waitForDisconnection(count = 1) {
    return this.waitUntil(`${count} disconnections`, () => this.disconnections.length >= count);
  }
}

module.exports = { Recorder };
