'use strict';
// A program of ours that says "listening on PORT" once it does: an example, in a process of its own.

const { spawn } = require('node:child_process');
const path = require('node:path');
const { Changes, within } = require('./wait');

const EXAMPLES = path.resolve(__dirname, '../../../data/examples');

const running = new Set();
process.on('exit', () => running.forEach((child) => child.kill('SIGKILL')));

class Program {
  #changes = new Changes();
  #child;
  /** What it has printed, a line each. */
  lines = [];
  errors = '';

  constructor(command, args, environment) {
    this.#child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, ...environment } });
    running.add(this.#child);
    let begun = '';
    this.#child.stdout.on('data', (piece) => {
      const lines = (begun + piece).split('\n');
      begun = lines.pop();
      this.lines.push(...lines);
      this.#changes.notify();
    });
    this.#child.stderr.on('data', (piece) => { this.errors += piece; });
    this.exited = new Promise((resolve) => {
      this.#child.once('error', (error) => resolve(`${error}`));
      this.#child.once('close', (code, signal) => resolve(code ?? signal));
    }).then((end) => {
      running.delete(this.#child);
      this.ended = `${end}`;
      this.#changes.notify();
      return end;
    });
  }

  /** Resolves with the first line that `matches`. */
  line(matches) {
    const found = () => this.lines.map((line) => matches.exec(line)).find(Boolean);
    return this.#changes.until(() => `${matches} from a program that ended: ${this.ended}, and said: ${this.errors}`, () => {
      if (!found() && this.ended !== undefined) throw new Error(`the program ended with ${this.ended}: ${this.errors}`);
      return found();
    });
  }

  async listening() {
    const [, port] = await this.line(/^listening on (?:.*:)?(\d+)$/);
    this.port = Number(port);
    return this;
  }

  async kill(signal = 'SIGKILL') {
    this.#child.kill(signal);
    return within('a program to end', this.exited);
  }
}

/** Runs a program until it listens; it does not outlive test `t`. */
async function run(t, command, args, environment) {
  const program = new Program(command, args, environment);
  t.after(() => program.ended ?? program.kill());
  return program.listening();
}

module.exports = { EXAMPLES, run };
