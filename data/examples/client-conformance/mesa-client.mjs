// mesa-client as a client under test: see conformance.mjs. Node 20 needs the option --experimental-websocket.

import { Client } from '../../../src/client/js/mesa.js';

const { MESA_URL, MESA_TOKEN, MESA_DEVICE } = process.env;

const client = new Client(MESA_URL);
client.on('message', ({ opcode, data, type, sequence }) => {
  console.log(JSON.stringify({ message: { op: opcode, d: data, t: type, s: sequence } }));
});
client.on('gap', (gap) => console.log(JSON.stringify({ gap })));
client.on('error', (error) => console.error(error.message));
client.authenticate(() => MESA_TOKEN, { device: MESA_DEVICE, resume: true }).catch((error) => console.error(error.message));
