// Asks for the server's status each second, and keeps the last five minutes.

import { call, UnreachableError } from './api.mjs';

const INTERVAL = 1000;

/** Time for a response; then the server counts as unreachable. */
const TIMEOUT = 5000;

/** Samples that are kept: five minutes. */
export const SAMPLES_MAX = 300;

/** Returns the growth of a counter per second; null after a restart of the server. */
const rate = (now, before, seconds) => (now >= before ? (now - before) / seconds : null);

/** Returns what the plots show of a status. */
function sample(at, status, previous) {
  const { connections, messages, pending, store, process } = status;
  const seconds = previous && (at - previous.at) / 1000;
  const isSameStart = previous?.status.startedAt === status.startedAt && seconds > 0;
  const perSecond = (name) => (isSameStart ? rate(messages[name], previous.status.messages[name], seconds) : null);
  return {
    at,
    status,
    connections: connections.open,
    dispatches: perSecond('dispatches'),
    deliveries: perSecond('delivered'),
    pending: pending.messages,
    p50: store.commitLatencyMicros?.p50 ?? null,
    p99: store.commitLatencyMicros?.p99 ?? null,
    wal: store.walBytes,
    disk: store.diskBytes,
    storeMemory: store.memoryBytes,
    processMemory: process?.residentBytes ?? null,
  };
}

export class Poller extends EventTarget {
  samples = [];
  isReachable = true;
  /** The last error of the server, as a sentence. */
  error;
  #timer;
  /** Identifies the current run, so that a request of an earlier one has no effect; undefined while stopped. */
  #run;

  start() {
    if (this.#run) return;
    this.#run = {};
    this.#poll(this.#run);
  }

  stop() {
    this.#run = undefined;
    clearTimeout(this.#timer);
  }

  get status() {
    return this.samples.at(-1)?.status;
  }

  async #poll(run) {
    const began = performance.now();
    try {
      const status = await call('GET', 'status', { timeout: TIMEOUT });
      if (run !== this.#run) return;
      this.samples.push(sample(performance.now(), status, this.samples.at(-1)));
      if (this.samples.length > SAMPLES_MAX) this.samples.shift();
      [this.isReachable, this.error] = [true, undefined];
    } catch (error) {
      if (run !== this.#run) return;
      [this.isReachable, this.error] = [!(error instanceof UnreachableError), error.message];
    }
    this.dispatchEvent(new Event('change'));
    this.#timer = setTimeout(() => this.#poll(run), Math.max(0, began + INTERVAL - performance.now()));
  }
}
