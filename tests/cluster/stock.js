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
    // What waits for its connection is a burst too.
    await Promise.all([dispatcher(sync).redis.ping(), dispatcher(sync).publisher.ping()])
    for (const n of numbers) {
      const message = keep ? new stock.Message(0, n, 'N') : new stock.Message(0, n, 'N', { sync: false })
      dispatcher(sync, via).dispatch(message, to)
      // Stock loses what it is told in a burst.
      await new Promise((resolve) => setTimeout(resolve, 30))
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
