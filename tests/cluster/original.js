// A stock process, told on standard input what to do: one JSON object a line, and one line of answer to each.
'use strict'
const path = require('path')
const readline = require('readline')
const stock = require(path.join(__dirname, '../clients/node_modules/stock158'))

const { redis, namespace } = JSON.parse(process.argv[2])
const dispatchers = {}
// `via`: a Redis, or what speaks like one.
const dispatcher = (sync, via = redis) =>
  (dispatchers[`${sync} ${via}`] ??= new stock.Dispatcher(via, { namespace, sync: { enabled: sync } }))
// What each portal has heard.
const heard = []

const does = {
  async serve({ port }) {
    const server = new stock.default({
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
  async dispatch({ sync, numbers, to, keep = true, via }) {
    const asks = dispatcher(sync, via)
    // Stock loses what it is told in a burst, and what waits for its connection is one too: what it asks Redis for has to have
    // been answered, several times, because it asks again with each answer.
    const done = async () => {
      for (let round = 0; round < 20; round++) {
        await Promise.all([asks.redis.ping(), asks.publisher.ping()])
        await new Promise(setImmediate)
      }
    }
    await done()
    for (const n of numbers) {
      const message = keep ? new stock.Message(0, n, 'N') : new stock.Message(0, n, 'N', { sync: false })
      asks.dispatch(message, to)
      await done()
    }
  },
  async portal({ all, via = redis }) {
    const mine = []
    heard.push(mine)
    const portal = new stock.Portal(via, { namespace, reportAllEvents: all })
    portal.on('message', (message, clientId) => mine.push([clientId, message.data]))
    for (const type of ['connection', 'authentication', 'disconnection']) {
      portal.on(type, (clientId) => mine.push([clientId ?? null, type]))
    }
    await new Promise((resolve) => portal.subscriber.once('subscribe', resolve).once('ready', resolve))
  },
  async heard() {
    return heard
  },
  async disconnect({ to }) {
    dispatcher(true).dispatch(new stock.DispatchEvent('DISCONNECT_CLIENT'), to)
  }
}

readline.createInterface({ input: process.stdin }).on('line', async (line) => {
  const { what, ...how } = JSON.parse(line)
  try {
    console.log(JSON.stringify((await does[what](how)) ?? 'done'))
  } catch (error) {
    console.log(JSON.stringify(String(error)))
  }
}).on('close', () => process.exit(0))
