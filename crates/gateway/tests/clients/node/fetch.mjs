import {createParser} from 'eventsource-parser'
import {setTimeout} from 'node:timers/promises'
import {end, event, received} from './print.mjs'

export const shown = async url => {
  const parser = createParser({onEvent: ({id, data}) => event(id, data)})
  const response = await fetch(url)
  const decoder = new TextDecoder()
  for await (const chunk of response.body) {
    parser.feed(decoder.decode(chunk, {stream: true}))
  }
}

export const recommended = async url => {
  let lastEventId = ''
  let retry = 2000
  const onEvent = ({id, event: name, data}) => {
    lastEventId = id ?? lastEventId
    received(lastEventId, name, data)
  }
  for (;;) {
    try {
      const headers = {Accept: 'text/event-stream'}
      if (lastEventId) headers['Last-Event-ID'] = lastEventId
      const response = await fetch(url, {headers})
      if (response.status === 204) end()
      if (response.status >= 400 && response.status < 500) process.exit(1)
      if (response.status === 200) {
        // Each stream needs a new one, because the last block of a stream may be unfinished.
        const parser = createParser({onEvent, onRetry: ms => (retry = ms)})
        const decoder = new TextDecoder()
        for await (const chunk of response.body) {
          parser.feed(decoder.decode(chunk, {stream: true}))
        }
      }
    } catch {
      // The connection was cut or refused.
    }
    await setTimeout(retry)
  }
}
