// Compiled by `tsc --noEmit`: what users of mesa-client write, and mistakes that the types must find.

import MesaClient, { Client, Message, fileStore, indexedDBStore, localStorageStore, type Gap, type PositionStore } from 'mesa-client';

interface User {
  id: string;
}

const store: PositionStore = {
  load: async (key) => key.length,
  save: (key: string, position: number) => {},
};

async function run(): Promise<void> {
  const client = new Client<User>('wss://example.org/', {
    autoConnect: false,
    reconnectDelayMax: 10_000,
    signal: AbortSignal.timeout(1000),
    WebSocket,
  });
  client
    .on('connected', ({ isInitialConnection }) => console.log(isInitialConnection satisfies boolean))
    .on('connection', async ({ isAutomaticReconnection }) => console.log(isAutomaticReconnection))
    .on('message', async function handle(message) {
      console.log(this.authenticated, message.data.text, message.sequence satisfies number | undefined);
    })
    .on('gap', (gap: Gap) => console.log(gap.from, gap.to, gap.reason === 'quota'))
    .once('disconnected', (code, reason, { willAttemptReconnect }) => console.log(code, reason, willAttemptReconnect))
    .off('error', (error: Error) => console.log(error.message));
  await client.connect();
  const user = await client.authenticate(async () => 'token', { device: 'phone-1', resume: indexedDBStore() });
  console.log(user.id satisfies string);
  await client.authenticate({ token: 'token' }, { shouldSync: false });
  await client.authenticate('token', { resume: true, user: 'alice' });
  for (const resume of [store, localStorageStore(), fileStore('position.json')]) await client.authenticate('token', { resume });
  client.send(new Message(0, { status: 'online' }, 'STATUS_UPDATE', { sync: false }));
  client.send(0, {}, 'PONG');
  await client.drained();
  for await (const { opcode, data, type } of client) console.log(opcode, data, type);
  console.log(client.messages.sent.length, new Message(0, {}).serialize(true).op);
  client.disconnect(1000, 'done');

  // @ts-expect-error: no such event
  client.on('connect', () => {});
  // @ts-expect-error: a message has no such field
  client.on('message', (message) => message.text);
  // @ts-expect-error: a store must save
  client.authenticate('token', { resume: { load: () => 1 } });
  // @ts-expect-error: a boolean
  new Client('ws://localhost:4000', { autoConnect: 'yes' });
  // @ts-expect-error: a token is a text or an object
  client.authenticate(7);
  // @ts-expect-error: the position is a number
  store.save('key', 'position');
}

const callbacks = new MesaClient('ws://localhost:4000');
callbacks.onMessage = ({ opcode, data, type }) => console.log(opcode, data, type);
callbacks.onConnected = () => run();
