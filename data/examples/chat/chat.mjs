// The page of the chat. It shows what mesa-client does: resume after a lost network, presence, and messages without storage.

import { Client, localStorageStore } from '/client.js';

/** Lines that the page keeps. */
const LINES_MAX = 200;

/** Milliseconds for which a member counts as typing, and between two messages that report it. */
const TYPING_TIME = 3000;

const element = (id) => document.getElementById(id);
const name = new URLSearchParams(location.search).get('name');

/** A WebSocket on a network that a button cuts. */
class CuttableSocket extends WebSocket {
  static isCut = false;

  static open = new Set();

  constructor(url) {
    // Nothing listens on port 1.
    super(CuttableSocket.isCut ? 'ws://127.0.0.1:1/' : url);
    CuttableSocket.open.add(this);
    this.addEventListener('close', () => CuttableSocket.open.delete(this));
  }

  static cut(isCut) {
    CuttableSocket.isCut = isCut;
    if (isCut) for (const socket of CuttableSocket.open) socket.close();
  }
}

function enter() {
  element('room').hidden = element('cut').hidden = false;
  element('text').focus();

  const key = `chat of ${name}`;
  const lines = JSON.parse(localStorage.getItem(key) ?? '[]');
  lines.forEach(showLine);

  const online = new Set();
  const typing = new Map();
  /** Messages since the connection began, and when it began by the clock of the server. */
  let arrived = [];
  let startedAt = Infinity;
  let unread = 0;

  const url = `${location.protocol === 'https:' ? 'wss' : 'ws'}://${location.host}/socket`;
  const client = new Client(url, { WebSocket: CuttableSocket, reconnectDelayMax: 2000 });

  client.on('connected', () => {
    [arrived, startedAt] = [[], Infinity];
  });
  client.on('disconnected', (code, reason, { willAttemptReconnect }) => {
    showState(willAttemptReconnect ? 'offline, reconnecting' : `closed: ${reason || code}`, true);
  });
  client.on('error', () => {});
  client.on('gap', ({ from, to, reason }) => {
    // `received`: this device has acknowledged them before, and nothing is lost.
    if (reason !== 'received') showNote(`messages ${from} to ${to} are missing: ${reason}`);
  });
  client.on('message', ({ type, data, sequence }) => {
    const handle = { CHAT: showChat, TYPING: showTyping, ONLINE: showOnline, JOINED: join, LEFT: leave }[type];
    handle?.(data, sequence);
  });
  client.authenticate(name, { device: deviceId(), resume: localStorageStore('position of ') })
    .catch((error) => showState(error.message, true));

  function showChat({ from, text, at }, sequence) {
    // The page may have been closed after it stored the line, and before the client stored its position. The log of a restored
    // backup may have another line with this sequence.
    if (lines.some((line) => line.sequence === sequence && line.at === at && line.from === from)) return;
    const line = { from, text, at, sequence };
    lines.push(line);
    if (lines.length > LINES_MAX) lines.shift();
    localStorage.setItem(key, JSON.stringify(lines));
    typing.delete(from);
    showTypingMembers();
    arrived.push({ at, shown: showLine(line) });
    showMissed();
    if (document.hidden) unread += 1;
    showUnread();
  }

  /** Lines that are older than the connection were missed. */
  function showMissed() {
    const missed = arrived.filter(({ at }) => at < startedAt);
    if (startedAt === Infinity || !missed.length) return;
    showState(`resumed as ${name}: ${missed.length} missed ${missed.length === 1 ? 'message' : 'messages'}`);
    const [{ shown }] = missed;
    if (shown.previousElementSibling?.className !== 'unread') shown.before(text('li', 'new messages', 'unread'));
  }

  function showOnline({ members, at }) {
    online.clear();
    members.forEach((member) => online.add(member));
    showMembers();
    startedAt = at;
    showState(`online as ${name}`);
    showMissed();
  }

  function join({ from }) {
    online.add(from);
    showMembers();
    showNote(`${from} joined`);
  }

  function leave({ from }) {
    online.delete(from);
    showMembers();
    showNote(`${from} left`);
  }

  function showTyping({ from }) {
    typing.set(from, Date.now() + TYPING_TIME);
    showTypingMembers();
    setTimeout(showTypingMembers, TYPING_TIME + 50);
  }

  function showTypingMembers() {
    const now = [...typing].filter(([, until]) => until > Date.now()).map(([member]) => member);
    element('typing').textContent = now.length ? `${now.join(', ')} ${now.length === 1 ? 'is' : 'are'} typing` : '';
  }

  function showMembers() {
    element('members').replaceChildren(...[...online].sort().map((member) => text('li', member)));
  }

  function showUnread() {
    if (!document.hidden) unread = 0;
    document.title = unread ? `(${unread}) Chat` : 'Chat';
  }
  document.addEventListener('visibilitychange', showUnread);

  element('form').addEventListener('submit', (event) => {
    event.preventDefault();
    const field = element('text');
    // While the network is cut, the message waits in the client's queue.
    if (field.value.trim()) client.send(0, { text: field.value }, 'CHAT');
    field.value = '';
  });

  let reportedAt = 0;
  element('text').addEventListener('input', () => {
    if (!client.authenticated || Date.now() - reportedAt < TYPING_TIME) return;
    reportedAt = Date.now();
    client.send(0, {}, 'TYPING');
  });

  element('cut').addEventListener('click', ({ target }) => {
    const isCut = !CuttableSocket.isCut;
    CuttableSocket.cut(isCut);
    target.setAttribute('aria-pressed', isCut);
    target.textContent = isCut ? 'Restore the network' : 'Cut the network';
  });
}

/** Returns the name of this browser: each device of a member receives all messages. */
function deviceId() {
  const id = localStorage.getItem('device') ?? Math.random().toString(36).slice(2);
  localStorage.setItem('device', id);
  return id;
}

function showState(state, isOffline = false) {
  element('state').textContent = state;
  element('state').classList.toggle('offline', isOffline);
}

function showNote(note, kind = 'note') {
  append(text('li', note, kind));
}

function showLine({ from, text: content }) {
  const line = text('li', '', from === name ? 'chat own' : 'chat');
  line.append(text('span', from, 'from'), text('span', content));
  append(line);
  return line;
}

/** Creates an element. `textContent`, not `innerHTML`: users typed this text. */
function text(tag, content, className = '') {
  const created = document.createElement(tag);
  [created.textContent, created.className] = [content, className];
  return created;
}

function append(line) {
  const list = element('messages');
  list.append(line);
  while (list.children.length > 2 * LINES_MAX) list.firstChild.remove();
  list.scrollTop = list.scrollHeight;
}

if (name) enter();
else element('login').hidden = false;
