#!/usr/bin/env node
// Checks a client of the server, in any language: plays a server and checks the client's answers.
//
//   node conformance.mjs [--resume] [--only TEXT] [--timeout SECONDS] COMMAND [ARGUMENT…]
//
// COMMAND starts the client. It connects to MESA_URL, authenticates with MESA_TOKEN, and prints one line of JSON for each
// message that its application handles:
//
//   {"message":{"op":0,"d":{"n":1},"t":"NEWS","s":1}}
//
// With --resume it also resumes, with the device MESA_DEVICE, and prints gaps:
//
//   {"gap":{"from":11,"to":15,"reason":"quota"}}
//
// It runs until it is killed. The exit code is 1 if a check fails. `mesa-client.mjs` is an example.

import { parseArgs } from 'node:util';

import { CHECKS, RESUME_CHECKS } from './checks.mjs';
import { Session, setTimeoutSeconds } from './session.mjs';

/** Checks that run at the same time, each with a process of the client. */
const JOBS = 8;

const [options, command] = splitArguments(process.argv.slice(2));
if (!command.length) {
  console.error('Name the command that starts the client: node conformance.mjs [--resume] [--only TEXT] [--timeout SECONDS] COMMAND [ARGUMENT…]');
  process.exit(2);
}

if (options.timeout) setTimeoutSeconds(Number(options.timeout));
const checks = [...CHECKS, ...(options.resume ? RESUME_CHECKS : [])].filter(([name]) => name.includes(options.only ?? ''));
const failed = await runAll();
console.log(`${checks.length - failed} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);

/** Runs the checks, some at a time. Most of their time is waiting. Returns the number of those that failed. */
async function runAll() {
  const left = [...checks];
  let failures = 0;
  const work = async () => {
    while (left.length) {
      const isPassed = await run(left.shift());
      if (!isPassed) failures += 1;
    }
  };
  await Promise.all(Array.from({ length: JOBS }, work));
  return failures;
}

/** Options precede the command, which has options of its own. */
function splitArguments(args) {
  let at = 0;
  while (args[at]?.startsWith('--')) at += args[at] === '--resume' ? 1 : 2;
  const known = { resume: { type: 'boolean' }, only: { type: 'string' }, timeout: { type: 'string' } };
  const { values } = parseArgs({ args: args.slice(0, at), options: known });
  return [values, args.slice(at)];
}

/** Runs a check, and prints its result. */
async function run([name, check]) {
  const session = await Session.start(command);
  try {
    await check(session);
    if (session.problems.length) throw new Error(session.problems[0]);
    console.log(`ok      ${name}`);
    return true;
  } catch (error) {
    console.log(`FAILED  ${name}: ${session.problems[0] ?? error.message}`);
    return false;
  } finally {
    session.stop();
  }
}
