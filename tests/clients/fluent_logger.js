// Sends events with @fluent-org/logger from npm and waits for their acks:
//
//     NODE_PATH=.../node_modules node fluent_logger.js '{"port": 24224, "mode": "Forward", "events": 100}'
//
// More fields: `shared_key`; `ca`, a file, for TLS. Exits with 1, and says
// why, if the socket has an error.

const fs = require("fs");
const { FluentClient } = require("@fluent-org/logger");

const { port, mode, events, shared_key, ca } = JSON.parse(process.argv[2]);

const client = new FluentClient("node", {
  eventMode: mode,
  ack: { ackTimeout: 30000 },
  milliseconds: true,
  flushInterval: 20,
  sendQueueIntervalFlushLimit: { length: 50 },
  socket: {
    host: "127.0.0.1",
    port,
    timeout: 30000,
    ...(ca && { tls: { ca: fs.readFileSync(ca) } }),
  },
  ...(shared_key && { security: { clientHostname: "node.test", sharedKey: shared_key } }),
});
client.socketOn("error", error => {
  console.log(`socket: ${error.message}`);
  process.exit(1);
});

async function main() {
  const emitted = [];
  for (let n = 0; n < events; n++) {
    const event = { log: `node event ${n} ${mode}\n`, n, source: "stdout", labels: { app: "a" } };
    emitted.push(client.emit(mode.toLowerCase(), event, 1714979289000 + n));
  }
  await Promise.all(emitted);
  console.log(`acked ${emitted.length}`);
  await client.shutdown();
}

main().catch(error => {
  console.log(`${error}`);
  process.exit(1);
});
