// POST /hooks/quote: a message; it is understood once, however often it comes. GET /received/mailer: what has come so far.
// What it knows lives in memory, of the newest thousand messages, and ends with it.
const http = require("http");

const KEPT = 1000;
const mails = new Map(); // by the Idempotency-Key of its delivery
let deliveries = 0;

function receive(request, text) {
  deliveries += 1;
  const key = request.headers["idempotency-key"];
  if (!key) return [400, { error: "no Idempotency-Key says which message this is" }];
  if (mails.has(key)) return [200, { duplicate: true }];
  let quote;
  try {
    quote = JSON.parse(text);
  } catch (error) {
    return [400, { error: `not JSON: ${error.message}` }];
  }
  if (typeof quote?.item !== "string") return [422, { error: "a quote has an item" }];
  const { "ce-type": type, "ce-source": source, traceparent } = request.headers;
  mails.set(key, { id: key, type, source, traceparent, payload: quote });
  if (mails.size > KEPT) mails.delete(mails.keys().next().value);
  return [200, { duplicate: false }];
}

const server = http.createServer((request, response) => {
  const parts = [];
  request.on("data", (part) => parts.push(part));
  request.on("end", () => {
    const route = `${request.method} ${request.url}`;
    const [status, body] =
      route === "POST /hooks/quote" ? receive(request, Buffer.concat(parts).toString("utf8"))
      : route === "GET /received/mailer" ? [200, { deliveries, messages: [...mails.values()] }]
      : [404, { error: `nothing at ${route}` }];
    response.writeHead(status, { "content-type": "application/json" });
    response.end(JSON.stringify(body));
  });
});

const port = process.argv[process.argv.indexOf("--port") + 1];
server.listen(Number(port), "127.0.0.1");
process.on("SIGTERM", () => {
  server.close(() => process.exit(0));
  server.closeIdleConnections();
});
