import {createHash} from 'node:crypto'
import {writeSync} from 'node:fs'

// Writes at once, because console.log may lose lines when the process exits.
const line = text => writeSync(1, text + '\n')

export const event = (id, data) => line(`${id}\t${createHash('sha1').update(data).digest('hex')}`)

export const end = () => {
  line('end')
  process.exit()
}

/// Prints an event of the channel, and handles the gateway's own events.
export const received = (id, name, data) => {
  if (name === 'gateway.end') end()
  if (!name?.startsWith('gateway.')) event(id, data)
}

export const published = (kind, result) => line(`${kind}\t${result}`)
