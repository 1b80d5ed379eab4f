import {EventSource} from 'eventsource'
import {end, event} from './print.mjs'

export const shown = url => {
  const es = new EventSource(url)
  es.addEventListener('message', ({lastEventId, data}) => event(lastEventId, data))
}

// Like a browser's, it gives up after any answer except 200. Then this code makes a new one that continues after the
// last id.
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
