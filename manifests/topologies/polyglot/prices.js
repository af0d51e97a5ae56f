// GET /price/ITEM: the price in cents, from the catalogue that another service holds.
const http = require("http");

const catalogue = process.env.CATALOGUE + "/files/catalogue.json";

const server = http.createServer((request, response) => {
  const answer = (status, body) => {
    response.writeHead(status, { "content-type": "application/json" });
    response.end(JSON.stringify(body));
  };
  if (request.url === "/ping") return answer(200, { ok: true });
  const item = decodeURIComponent(request.url.replace(/^\/price\//, ""));
  const headers = request.headers.traceparent ? { traceparent: request.headers.traceparent } : {};
  http
    .get(catalogue, { headers }, (upstream) => {
      let text = "";
      upstream.setEncoding("utf8");
      upstream.on("data", (part) => (text += part));
      upstream.on("end", () => {
        if (upstream.statusCode !== 200) return answer(502, { error: `the catalogue answers ${upstream.statusCode}` });
        const cents = JSON.parse(text)[item];
        return cents === undefined ? answer(404, { error: `no ${item} here` }) : answer(200, { item, cents });
      });
    })
    .on("error", (error) => answer(502, { error: `cannot read ${catalogue}: ${error.message}` }));
});

server.listen(Number(process.env.PORT), "127.0.0.1");
process.on("SIGTERM", () => server.close(() => process.exit(0)));
