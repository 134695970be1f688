// The admin page: login, the bar, and the views.

import { events as apiEvents, ApiError, UnreachableError, logIn, logOut, readSession } from './api.mjs';
import { element, toast } from './dom.mjs';
import { events } from './events.mjs';
import { duration } from './format.mjs';
import { overview } from './overview.mjs';
import { Poller } from './poller.mjs';
import { user } from './user.mjs';
import { users } from './users.mjs';

/** Delay before the server is asked again for its session, in milliseconds. */
const RETRY_DELAY = 1000;

const at = (id) => document.getElementById(id);
const poller = new Poller();
let view;

const context = {
  poller,
  /** What views remember while another one is shown. */
  memory: {},
  go: (hash) => { location.hash = hash; },
  /** Shows an error. The bar shows that the server is away, and the login that the session has ended. */
  report: (error) => {
    const isShown = error instanceof UnreachableError || error.code === 'no_session';
    if (!isShown) toast(error instanceof ApiError ? sentence(error.message) : `${error}`);
  },
};

const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}.`.replace(/\.\.$/, '.');

/** Replaces the view. Its heading gets the focus, unless the page has just been opened. */
function show(next, isFirst) {
  view?.stop();
  view = next;
  at('main').replaceChildren(...next.content);
  document.title = `${next.title} · Mesa admin`;
  if (!isFirst) (at('main').querySelector('[data-first]') ?? at('main').querySelector('h1') ?? at('main')).focus();
}

/** Decodes an id in the address; undefined if it is malformed. */
function decode(id) {
  try {
    return id && decodeURIComponent(id);
  } catch {
    return undefined;
  }
}

/** Shows the view that the address names. */
function route(isFirst = false) {
  const [, name, id] = location.hash.split('/');
  const choose = { users: () => (decode(id) ? user(context, decode(id)) : users(context)), events: () => events(context) };
  show((choose[name] ?? (() => overview(context)))(), isFirst);
  for (const link of at('views').children) {
    const isCurrent = link.hash === `#/${choose[name] ? name : 'overview'}`;
    if (isCurrent) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
}

/** Shows in the bar how the server is. */
function showCondition() {
  const { status, isReachable, error } = poller;
  at('notice').hidden = !error;
  const notice = error && (isReachable ? sentence(error) : 'The server cannot be reached. Trying again each second.');
  if (at('notice').textContent !== notice) at('notice').textContent = notice ?? '';
  if (!status || error) return;
  const text = status.ready ? 'Ready' : `Not ready: ${status.notReadyReason}`;
  if (at('condition').textContent !== text) at('condition').textContent = text;
  at('condition').title = `Version ${status.version}, up for ${duration(status.uptimeSeconds)}`;
  at('condition').classList.toggle('not-ready', !status.ready);
}

function begin(isFirst) {
  at('bar').hidden = false;
  poller.start();
  route(isFirst);
}

/** Shows the login. */
function showLogin(message) {
  poller.stop();
  at('bar').hidden = true;
  at('notice').hidden = true;
  const password = element('input', { type: 'password', id: 'password', autocomplete: 'current-password', required: true, 'data-first': true });
  const problem = element('p', { class: 'problem', role: 'alert' }, message ?? '');
  const submit = element('button', { type: 'submit', class: 'primary' }, 'Log in');
  const form = element('form', { class: 'card', submit: async (event) => {
    event.preventDefault();
    submit.disabled = true;
    problem.textContent = '';
    try {
      await logIn(password.value);
      begin();
    } catch (error) {
      problem.textContent = sentence(error.message);
      password.select();
    } finally {
      submit.disabled = false;
    }
  } }, element('h1', {}, element('img', { src: 'admin/icon.svg', alt: '', width: '28', height: '28' }), 'Mesa admin'),
  // For password managers, which store a name too.
  element('input', { type: 'text', autocomplete: 'username', value: 'admin', hidden: true }),
  element('label', { for: 'password' }, 'Password'), password, submit, problem);
  show({ title: 'Log in', content: [element('div', { class: 'login' }, form)], stop: () => {} });
}

/** Takes on the session of the browser, or begins one. */
async function start(message) {
  while (true) {
    try {
      const session = await readSession();
      if (!session.csrf && session.open) await logIn('');
      at('logout').hidden = session.open;
      if (session.csrf || session.open) begin(true);
      else showLogin(message);
      at('notice').hidden = true;
      return;
    } catch (error) {
      at('notice').hidden = false;
      at('notice').textContent = error instanceof ApiError ? sentence(error.message) : 'The server cannot be reached. Trying again each second.';
      await new Promise((resolve) => setTimeout(resolve, RETRY_DELAY));
    }
  }
}

let isStarting = false;

/** Starts once at a time: several requests may learn that the session has ended. */
async function restart(message) {
  if (isStarting) return;
  isStarting = true;
  poller.stop();
  view?.stop();
  document.querySelectorAll('dialog').forEach((dialog) => dialog.close());
  await start(message);
  isStarting = false;
}

addEventListener('hashchange', () => {
  if (!at('bar').hidden && location.hash.startsWith('#/')) route();
});
at('skip').addEventListener('click', () => at('main').focus());
at('logout').addEventListener('click', async () => {
  try {
    await logOut();
  } catch (error) {
    context.report(error);
  }
  restart('You are logged out.');
});
poller.addEventListener('change', showCondition);
apiEvents.addEventListener('ended', () => restart('The session has ended. Log in again.'));
restart();
