'use strict';
// Waiting for conditions, always with a timeout.

/** Milliseconds that a test waits for an event. Most take a few; on a loaded machine some take seconds. */
const WAIT_TIMEOUT = 60_000;

/** Re-evaluates conditions whenever `notify()` reports a change. */
class ChangeNotifier {
  #waiting = new Set();

  notify() {
    for (const evaluate of [...this.#waiting]) evaluate();
  }

  /** Resolves with the value of `condition()` once it is truthy; rejects with `description` after `ms`. */
  waitUntil(description, condition, ms = WAIT_TIMEOUT) {
    return new Promise((resolve, reject) => {
      const evaluate = () => {
        const value = condition();
        if (!value) return;
        clearTimeout(timer);
        this.#waiting.delete(evaluate);
        resolve(value);
      };
      const timer = setTimeout(() => {
        this.#waiting.delete(evaluate);
        reject(new Error(`waited ${ms} ms for ${typeof description === 'function' ? description() : description}`));
      }, ms);
      this.#waiting.add(evaluate);
      evaluate();
    });
  }
}

/** Polls every 10 ms until `check()` resolves with a truthy value, and returns it. For conditions without an event. */
async function pollUntil(description, check, ms = WAIT_TIMEOUT) {
  const end = Date.now() + ms;
  for (;;) {
    const value = await check();
    if (value) return value;
    if (Date.now() > end) throw new Error(`waited ${ms} ms for ${description}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

/** Rejects if `promise` takes longer than `ms`. */
function withTimeout(description, promise, ms = WAIT_TIMEOUT) {
  let timer;
  const timeout = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`waited ${ms} ms for ${description}`)), ms);
  });
  return Promise.race([promise, timeout]).finally(() => clearTimeout(timer));
}

module.exports = { ChangeNotifier, WAIT_TIMEOUT, pollUntil, withTimeout };
