import {EventSource} from 'undici'
import {end, event} from './print.mjs'

// The library's timer does not keep a program running that has no other work.
setInterval(() => {}, 60_000)

export const shown = url => {
  const eventSource = new EventSource(url)
  eventSource.onmessage = ({lastEventId, data}) => event(lastEventId, data)
  // Not in its documentation: the program ends when the library has given up.
  eventSource.onerror = () => {
    if (eventSource.readyState === EventSource.CLOSED) process.exit(1)
  }
}

// Like a browser's, it gives up after any answer except 200. Then this code makes a new one that continues after the
// last id.
export const recommended = (url, lastEventId = '') => {
  const after = lastEventId && `&last_event_id=${lastEventId}`
  const eventSource = new EventSource(url + after)
  const keep = event => {
    lastEventId = event.lastEventId
  }
  eventSource.addEventListener('gateway.open', keep)
  eventSource.addEventListener('gateway.position', keep)
  eventSource.addEventListener('gateway.gap', keep)
  eventSource.addEventListener('gateway.end', end)
  eventSource.onmessage = message => {
    keep(message)
    event(message.lastEventId, message.data)
  }
  eventSource.onerror = async () => {
    if (eventSource.readyState !== EventSource.CLOSED) return
    // The library does not report the answer.
    const query = lastEventId && `&last_event_id=${lastEventId}`
    const headers = {Accept: 'text/event-stream'}
    const {status, body} = await fetch(url + query, {headers}).catch(() => ({}))
    body?.cancel()
    if (status === 204) end()
    if (status >= 400 && status < 500) process.exit(1)
    setTimeout(recommended, 2000, url, lastEventId)
  }
}
