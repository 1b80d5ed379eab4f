// Clients of the gateway with libraries for Node. Each library is used as its README shows, and as docs/clients.md
// recommends.
//
//     node main.mjs LIBRARY shown|recommended URL
//
// prints a line for each event with its id and the SHA-1 of its data. It prints "end" when it knows that the channel
// is complete.
const [library, mode, ...rest] = process.argv.slice(2)
const programs = await import(`./${library}.mjs`)
await programs[mode](...rest)
