import {EventSource} from 'eventsource'
import {end, event} from './print.mjs'

export const shown = url => {
  const es = new EventSource(url)
  es.addEventListener('message', ({lastEventId, data}) => event(lastEventId, data))
}

// It gives up after any other answer than 200, like a browser's. Then this goes on with a new one, after the last id.
export const recommended = (url, lastEventId = '') => {
  const after = lastEventId && `&last_event_id=${lastEventId}`
  const es = new EventSource(url + after)
  const keep = event => {
    lastEventId = event.lastEventId
  }
  es.addEventListener('gateway.open', keep)
  es.addEventListener('gateway.position', keep)
  es.addEventListener('gateway.gap', keep)
  es.addEventListener('gateway.end', end)
  es.addEventListener('message', message => {
    keep(message)
    event(message.lastEventId, message.data)
  })
  es.addEventListener('error', ({code}) => {
    if (code === 204) end()
    if (code >= 500) setTimeout(recommended, 2000, url, lastEventId)
  })
}
