import {createClient} from 'redis'
import {published} from './print.mjs'

// Publishes with the library's defaults.
export const publish = async (url, prefix) => {
  const client = await createClient({url}).connect()
  const one = async (kind, value) => {
    const name = `node-redis.${kind}`
    try {
      await client.publish(prefix + name, value)
    } catch {
      published(name, 'refused by the library')
    }
  }
  await one('text', 'hello')
  await one('envelope', '{"event":"price","data":10}')
  await one('object', {event: 'price', data: 10})
  await one('number', 42)
  await one('boolean', true)
  client.destroy()
}
