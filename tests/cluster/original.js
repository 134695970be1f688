// Runs the original Mesa (`@cryb/mesa` 1.5.8). Reads one JSON object with a `command` per line from standard input, and
// answers each with one line of JSON.
'use strict'
const path = require('path')
const readline = require('readline')
const original = require(path.join(__dirname, '../node_clients/node_modules/stock158'))

const { redis, namespace } = JSON.parse(process.argv[2])
const dispatchers = {}
// `via`: URL of a Redis, or of a mesa server's RESP port.
const dispatcher = (sync, via = redis) =>
  (dispatchers[`${sync} ${via}`] ??= new original.Dispatcher(via, { namespace, sync: { enabled: sync } }))
// Events of each portal, in order.
const received = []

const commands = {
  async serve({ port }) {
    const server = new original.default({
      port, redis, namespace, sync: { enabled: true, redeliveryInterval: 0 }, portal: { enabled: true },
      authentication: { storeConnectedUsers: true }, gracefullyExit: true
    })
    server.on('connection', (client) => {
      client.authenticate(({ token }, done) => done(null, { id: token, user: { id: token } }))
      client.on('error', () => {})
    })
    server.on('error', (error) => console.error(error))
    await new Promise((resolve) => server.wss.on('listening', resolve))
  },
  async dispatch({ sync, numbers, to, unsynced = false, via }) {
    const sender = dispatcher(sync, via)
    // The original loses messages that are dispatched in a burst, such as those queued for its connection. So its Redis requests
    // must have been answered before the next dispatch. Each reply causes further requests, hence several rounds.
    const idle = async () => {
      for (let round = 0; round < 20; round++) {
        await Promise.all([sender.redis.ping(), sender.publisher.ping()])
        await new Promise(setImmediate)
      }
    }
    await idle()
    for (const n of numbers) {
      const message =
        unsynced ? new original.Message(0, n, 'N', { sync: false }) : new original.Message(0, n, 'N')
      sender.dispatch(message, to)
      await idle()
    }
  },
  async portal({ all, via = redis }) {
    const events = []
    received.push(events)
    const portal = new original.Portal(via, { namespace, reportAllEvents: all })
    portal.on('message', (message, clientId) => events.push([clientId, message.data]))
    for (const type of ['connection', 'authentication', 'disconnection']) {
      portal.on(type, (clientId) => events.push([clientId ?? null, type]))
    }
    await new Promise((resolve) => portal.subscriber.once('subscribe', resolve).once('ready', resolve))
  },
  async received() {
    return received
  },
  async disconnect({ to }) {
    dispatcher(true).dispatch(new original.DispatchEvent('DISCONNECT_CLIENT'), to)
  }
}

readline.createInterface({ input: process.stdin }).on('line', async (line) => {
  const { command, ...options } = JSON.parse(line)
  try {
    console.log(JSON.stringify((await commands[command](options)) ?? 'done'))
  } catch (error) {
    console.log(JSON.stringify(String(error)))
  }
}).on('close', () => process.exit(0))
