"use strict";
// Calls npm's rsmq: a JSON line [method, options] on stdin, the answer as one on stdout.
const RSMQ = require("rsmq");
const rsmq = new RSMQ({ host: "127.0.0.1", port: Number(process.argv[2]), ns: "rsmq", realtime: true });

require("readline").createInterface({ input: process.stdin }).on("line", async (line) => {
  const [method, options] = JSON.parse(line);
  let answer;
  try {
    answer = { ok: await rsmq[method + "Async"](...(Object.keys(options).length ? [options] : [])) };
  } catch (error) {
    answer = { error: error.name };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
}).on("close", () => rsmq.quit(() => process.exit(0)));
