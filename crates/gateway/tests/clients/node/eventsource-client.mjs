import {createEventSource} from 'eventsource-client'
import {end, event, received} from './print.mjs'

export const shown = async url => {
  const es = createEventSource({url})
  for await (const {id, data} of es) {
    event(id, data)
  }
}

// The library reconnects after every end and answer except 204.
export const recommended = async url => {
  const es = createEventSource({
    url,
    fetch: async (input, init) => {
      const response = await fetch(input, init)
      if (response.status >= 400 && response.status < 500) process.exit(1)
      return response
    },
  })
  for await (const {id, event: name, data} of es) {
    received(id, name, data)
  }
  end()
}
