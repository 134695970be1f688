'use strict';
// Runs an example program, which prints "listening on PORT" once it listens.

const { spawn } = require('node:child_process');
const path = require('node:path');
const { ChangeNotifier, withTimeout } = require('./wait');

const EXAMPLES = path.resolve(__dirname, '../../../data/examples');

const running = new Set();
process.on('exit', () => running.forEach((child) => child.kill('SIGKILL')));

class Program {
  #changes = new ChangeNotifier();
  #child;
  /** Lines of standard output so far. */
  lines = [];
  stderr = '';

  constructor(command, args, environment) {
    this.#child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, ...environment } });
    running.add(this.#child);
    let partialLine = '';
    this.#child.stdout.on('data', (chunk) => {
      const lines = (partialLine + chunk).split('\n');
      partialLine = lines.pop();
      this.lines.push(...lines);
      this.#changes.notify();
    });
    this.#child.stderr.on('data', (chunk) => { this.stderr += chunk; });
    this.exited = new Promise((resolve) => {
      this.#child.once('error', (error) => resolve(`${error}`));
      this.#child.once('close', (code, signal) => resolve(code ?? signal));
    }).then((result) => {
      running.delete(this.#child);
      this.ended = `${result}`;
      this.#changes.notify();
      return result;
    });
  }

  /** Resolves with the match of the first line that matches `pattern`. */
  waitForLine(pattern) {
    const firstMatch = () => this.lines.map((line) => pattern.exec(line)).find(Boolean);
    const state = () => `${pattern} from a program; it ended with ${this.ended}: ${this.stderr}`;
    return this.#changes.waitUntil(state, () => {
      if (!firstMatch() && this.ended !== undefined) {
        throw new Error(`the program ended with ${this.ended}: ${this.stderr}`);
      }
      return firstMatch();
    });
  }

  async waitUntilListening() {
    const [, port] = await this.waitForLine(/^listening on (?:.*:)?(\d+)$/);
    this.port = Number(port);
    return this;
  }

  async kill(signal = 'SIGKILL') {
    this.#child.kill(signal);
    return withTimeout('the program to end', this.exited);
  }
}

/** Starts a program, and resolves once it listens. The program is killed when test `t` ends. */
async function startProgram(t, command, args, environment) {
  const program = new Program(command, args, environment);
  t.after(() => program.ended ?? program.kill());
  return program.waitUntilListening();
}

module.exports = { EXAMPLES, Program, startProgram };
