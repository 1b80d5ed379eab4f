// An event stream as most tutorials write it: express, ioredis, a set of responses per channel.
//
// node server.mjs LISTEN REDIS

import express from "express";
import { Redis } from "ioredis";

const [listen, redis] = process.argv.slice(2).map((address) => {
  const [host, port] = address.split(":");
  return { host, port: Number(port) };
});

const channels = new Map();
const subscriber = new Redis(redis);

subscriber.on("message", (name, payload) => {
  for (const response of channels.get(name) ?? []) {
    response.write(`data: ${payload}\n\n`);
  }
});

const app = express();

app.get("/events", async (request, response) => {
  const name = `sse:${request.query.channel}`;
  let responses = channels.get(name);
  if (!responses) {
    responses = new Set();
    channels.set(name, responses);
    await subscriber.subscribe(name);
  }
  response.writeHead(200, {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store",
  });
  response.flushHeaders();
  responses.add(response);
  request.on("close", () => responses.delete(response));
});

app.listen(listen.port, listen.host, 4096);
