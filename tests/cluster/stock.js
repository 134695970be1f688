// A stock process, told on standard input what to do: one JSON object a line, and one line of answer to each.
'use strict'
const path = require('path')
const readline = require('readline')
const stock = require(path.join(__dirname, '../clients/node_modules/stock158'))

const { redis, namespace } = JSON.parse(process.argv[2])
const dispatchers = {}
const dispatcher = (sync) =>
  (dispatchers[sync] ??= new stock.Dispatcher(redis, { namespace, sync: { enabled: sync } }))

const does = {
  async serve({ port }) {
    const server = new stock.default({
      port, redis, namespace, sync: { enabled: true, redeliveryInterval: 0 },
      authentication: { storeConnectedUsers: true }, gracefullyExit: true
    })
    server.on('connection', (client) => {
      client.authenticate(({ token }, done) => done(null, { id: token, user: { id: token } }))
      client.on('error', () => {})
    })
    server.on('error', (error) => console.error(error))
    await new Promise((resolve) => server.wss.on('listening', resolve))
  },
  async dispatch({ sync, numbers, to, keep = true }) {
    for (const n of numbers) {
      const message = keep ? new stock.Message(0, n, 'N') : new stock.Message(0, n, 'N', { sync: false })
      dispatcher(sync).dispatch(message, to)
      // Stock loses what it is told in a burst.
      await new Promise((resolve) => setTimeout(resolve, 30))
    }
  },
  async disconnect({ to }) {
    dispatcher(true).dispatch(new stock.DispatchEvent('DISCONNECT_CLIENT'), to)
  }
}

readline.createInterface({ input: process.stdin }).on('line', async (line) => {
  const { what, ...how } = JSON.parse(line)
  try {
    await does[what](how)
    console.log('"done"')
  } catch (error) {
    console.log(JSON.stringify(String(error)))
  }
}).on('close', () => process.exit(0))
