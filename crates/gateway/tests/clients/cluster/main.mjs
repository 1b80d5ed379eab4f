// Publishes to these channels in turn, until there is a file "stop".
import {existsSync} from 'node:fs'
import {setTimeout as sleep} from 'node:timers/promises'

const [library, ...channels] = process.argv.slice(2)
const {publish} = await import(`./${library}.mjs`)

const one = async (channel, number) => {
  console.log(channel, number, await publish(channel, `${library} ${number}`, `${library} ${number}`))
  await sleep(10)
}

let number = 0
for (; !existsSync('stop'); number++) for (const channel of channels) await one(channel, number)
await one(channels[0], number - 1)
process.exit()
