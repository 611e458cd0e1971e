// The Node half of the trial's application and of its load (`market/rpc.go` and `market/load.go` say what both are).
//
//   node market.js serve        gRPC on $GRPC
//   node market.js load FILE    asks as FILE says, and prints a line for each failure and each half second
'use strict'
const fs = require('fs')
const http = require('http')
const os = require('os')
const grpc = require('@grpc/grpc-js')

const WHO = process.env.WHO || os.hostname()
const DEADLINE = 10000
const dump = message => Buffer.from(JSON.stringify(message))
const parse = data => JSON.parse(data.toString())
const method = (name, requestStream, responseStream) => ({
  path: `/trial.Market/${name}`, requestStream, responseStream,
  requestSerialize: dump, requestDeserialize: parse, responseSerialize: dump, responseDeserialize: parse,
})
const definition = {
  One: method('One', false, false), Chain: method('Chain', false, false),
  Count: method('Count', false, true), Through: method('Through', false, true), Chat: method('Chat', true, true),
}
const sleep = milliseconds => new Promise(resolve => setTimeout(resolve, milliseconds))

function serve () {
  const chats = new Set()
  const server = new grpc.Server()
  const count = async call => {
    const { id, count, gap } = call.request
    for (let index = 0; index < count; index++) {
      call.write({ id, index, who: WHO })
      await sleep(gap || 0)
    }
    call.end()
  }
  server.addService(definition, {
    One: (call, done) => done(null, { id: call.request.id, who: WHO }),
    Chain: (call, done) => done(null, { id: call.request.id, who: WHO, via: [WHO] }),
    Count: count,
    Through: count, // it has no backends
    Chat: call => {
      chats.add(call)
      call.on('data', message => { if (chats.has(call)) call.write({ ...message, who: WHO }) })
      call.on('end', () => { if (chats.delete(call)) call.end() })
      call.on('error', () => chats.delete(call))
      call.on('cancelled', () => chats.delete(call))
    },
  })
  server.bindAsync(`0.0.0.0:${process.env.GRPC}`, grpc.ServerCredentials.createInsecure(), error => {
    if (error) throw error
    console.log('serves as', WHO)
  })
  process.on('SIGTERM', async () => {
    await sleep(1000 * (process.env.DRAIN || 0))
    for (const call of chats) { chats.delete(call); call.end() }
    server.tryShutdown(() => process.exit(0))
    setTimeout(() => process.exit(0), 5000)
  })
}

const had = new Map() // by client: what it had since its last line
function some (client, asked) {
  if (!had.has(client)) had.set(client, { client, since: asked, ok: 0, ended: 0, who: {}, slow: 0 })
  const found = had.get(client)
  found.since = Math.min(found.since, asked)
  return found
}

class Ended extends Error {}
class Wrong extends Error {}
class Stuck extends Error {}

// One keep-alive connection; what is sent on a connection that the server has just closed is not sent again.
class Http {
  constructor (plan) {
    this.plan = plan
    this.agent = new http.Agent({ keepAlive: true, maxSockets: 1 })
    this.closed = false
    this.used = false
  }

  call (id) {
    const [host, port] = this.plan.target.split(':')
    const socket = Object.values(this.agent.freeSockets)[0]
    if (this.closed || (this.used && !socket)) throw new Ended()
    return new Promise((resolve, reject) => {
      const request = http.request({ host, port, agent: this.agent, headers: { 'X-Id': id }, timeout: DEADLINE })
      request.on('timeout', () => { reject(new Stuck('no answer')); request.destroy() })
      request.on('error', reject)
      request.on('response', response => {
        const parts = []
        response.on('data', part => parts.push(part))
        response.on('error', reject)
        response.on('end', () => {
          const text = Buffer.concat(parts).toString()
          if (response.statusCode !== 200) {
            return reject(new Error(`status ${response.statusCode}, ${text.length} bytes: ${text.slice(0, 80)}`))
          }
          this.used = true
          this.closed = response.headers.connection === 'close'
          let answer = {}
          try { answer = JSON.parse(text) } catch { /* told below */ }
          answer.id === id ? resolve(answer.who) : reject(new Wrong(text.slice(0, 80)))
        })
      })
      request.end()
    })
  }

  close () { this.agent.destroy() }
}

class Rpc {
  constructor (plan) {
    // A connection of its own, as with a client in a process of its own. Retries are gRPC's own: only of what the
    // server has said that it has not taken.
    const options = { 'grpc.use_local_subchannel_pool': 1, 'grpc.service_config_disable_resolution': 1 }
    this.client = new grpc.Client(plan.target, grpc.credentials.createInsecure(), options)
    this.kind = plan.kind
  }

  call (id) {
    return this.kind === 'chat' ? this.chat(id) : this.one(id)
  }

  one (id) {
    return new Promise((resolve, reject) => {
      const options = { deadline: Date.now() + DEADLINE }
      this.client.makeUnaryRequest('/trial.Market/One', dump, parse, { id }, new grpc.Metadata(), options, (error, got) => {
        if (error) return reject(error.code === grpc.status.DEADLINE_EXCEEDED ? new Stuck(error.message) : error)
        got.id === id ? resolve(got.who) : reject(new Wrong(`${got.id} for ${id}`))
      })
    })
  }

  chat (id) {
    return new Promise((resolve, reject) => {
      if (!this.stream) {
        this.stream = this.client.makeBidiStreamRequest('/trial.Market/Chat', dump, parse)
        this.stream.on('data', got => this.settle(got))
        this.stream.on('error', error => this.settle(error))
        this.stream.on('end', () => this.settle(new Ended()))
      }
      const late = setTimeout(() => this.settle(new Stuck('no answer')), DEADLINE)
      this.waiting = { id, resolve, reject, late }
      if (this.over) return this.settle(this.over)
      this.stream.write({ id })
    })
  }

  settle (got) {
    if (got instanceof Error) this.over = this.over || got
    const waiting = this.waiting
    if (!waiting) return
    this.waiting = undefined
    clearTimeout(waiting.late)
    if (got instanceof Error) waiting.reject(got)
    else if (got.id !== waiting.id) waiting.reject(new Wrong(`${got.id} for ${waiting.id}`))
    else waiting.resolve(got.who)
  }

  close () {
    if (this.stream) this.stream.cancel()
    this.client.close()
  }
}

async function loop (plan, prefix) {
  let held; let opened = 0; let calls = 0; let number = 0
  for (let at = Date.now(); ;) {
    at = Math.max(at + plan.every, Date.now() - 1000)
    await sleep(Math.max(0, at - Date.now()))
    for (let tries = 0; tries < 3; tries++) {
      const id = `${prefix}-${++number}`
      const began = Date.now() / 1000
      try {
        if (!held) {
          [opened, calls] = [began, 0]
          held = plan.kind === 'http' ? new Http(plan) : new Rpc(plan)
        }
        const who = await held.call(id)
        calls++
        const found = some(plan.name, began)
        found.ok++
        found.who[who] = (found.who[who] || 0) + 1
        found.slow = Math.max(found.slow, Date.now() / 1000 - began)
      } catch (error) {
        held.close()
        held = undefined
        if (error instanceof Ended) {
          some(plan.name, began).ended++
          continue
        }
        const kind = error instanceof Wrong ? 'wrong' : error instanceof Stuck ? 'stuck' : 'failed'
        const took = Date.now() / 1000 - began
        const text = `${error.code || error.name}: ${error.message}`.slice(0, 300)
        console.log(JSON.stringify({ client: plan.name, at: began, took, kind, error: text, opened, calls }))
      }
      if (!plan.held && held) { held.close(); held = undefined }
      break
    }
  }
}

function load (file) {
  let number = 0
  for (const plan of JSON.parse(fs.readFileSync(file))) {
    for (let each = 0; each < (plan.connections || 1); each++) loop(plan, `node-${process.pid}-${number++}`)
  }
  setInterval(() => {
    for (const [name, found] of had) {
      console.log(JSON.stringify({ ...found, until: Date.now() / 1000 }))
      had.delete(name)
    }
  }, 500)
  process.on('SIGTERM', () => process.exit(0))
}

process.argv[2] === 'serve' ? serve() : load(process.argv[3])
