import Redis from 'ioredis'
import {published} from './print.mjs'

// Publishes with the library's defaults.
export const publish = async (url, prefix) => {
  const redis = new Redis(url)
  const one = async (kind, value) => {
    const name = `ioredis.${kind}`
    await redis.publish(prefix + name, value).catch(() => published(name, 'refused by the library'))
  }
  await one('text', 'hello')
  await one('envelope', '{"event":"price","data":10}')
  await one('object', {event: 'price', data: 10})
  await one('number', 42)
  await one('boolean', true)
  redis.disconnect()
}
