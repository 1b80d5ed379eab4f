// Clients of the gateway with libraries for Node: each as its README shows it, and as docs/clients.md recommends it.
//
//     node main.mjs LIBRARY shown|recommended URL
//
// prints a line for each event, its id and the SHA-1 of its data, and "end" when it knows that the channel is complete.
const [library, mode, ...rest] = process.argv.slice(2)
const programs = await import(`./${library}.mjs`)
await programs[mode](...rest)
