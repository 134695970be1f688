'use strict';
// Waiting for things to be so, always with a bound.

/** How long a test waits for what should take milliseconds; on a loaded machine that may be seconds. */
const PATIENCE = 60_000;

/** Wakes those who wait for a condition whenever something has changed. */
class Changes {
  #waiting = new Set();

  notify() {
    for (const look of [...this.#waiting]) look();
  }

  /** Resolves once `ok()` is truthy, with what it returned; rejects with `what()` after `ms`. */
  until(what, ok, ms = PATIENCE) {
    return new Promise((resolve, reject) => {
      const look = () => {
        const value = ok();
        if (!value) return;
        clearTimeout(timer);
        this.#waiting.delete(look);
        resolve(value);
      };
      const timer = setTimeout(() => {
        this.#waiting.delete(look);
        reject(new Error(`waited ${ms} ms for ${typeof what === 'function' ? what() : what}`));
      }, ms);
      this.#waiting.add(look);
      look();
    });
  }
}

/** For what only asking can tell: asks until `check()` resolves to something truthy. */
async function eventually(what, check, ms = PATIENCE) {
  const end = Date.now() + ms;
  for (;;) {
    const value = await check();
    if (value) return value;
    if (Date.now() > end) throw new Error(`waited ${ms} ms for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

/** Rejects when `promise` takes longer than `ms`. */
function within(what, promise, ms = PATIENCE) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`waited ${ms} ms for ${what}`)), ms);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

module.exports = { Changes, PATIENCE, eventually, within };
