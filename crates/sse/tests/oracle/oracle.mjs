// Reads cases from stdin and prints what the npm package eventsource-parser sees in each.
//
// A case is its length in four bytes, big-endian, and then that many bytes of event stream.
// The answer is one line of JSON: the events, and the last reconnection time or null.

import { readFileSync } from 'node:fs'
import { createParser } from 'eventsource-parser'

const input = readFileSync(0)
const answers = []
for (let at = 0; at < input.length; ) {
  const start = at + 4
  at = start + input.readUInt32BE(at)

  const events = []
  let retry = null
  const parser = createParser({
    // An absent id is one that this block does not name; the parser leaves its memory to the caller.
    onEvent: ({ id = null, event = 'message', data }) => events.push({ id, event, data }),
    onRetry: (milliseconds) => {
      retry = milliseconds
    },
  })
  // The package parses text. This is the decoder that its documentation puts in front of it.
  parser.feed(new TextDecoder().decode(input.subarray(start, at)))
  answers.push(JSON.stringify({ events, retry }) + '\n')
}
process.stdout.write(answers.join(''))
