// Of the client for browsers, what the cases of tests/conformance cannot see.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createServer, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { dirname, join } from "node:path";
import { test } from "node:test";

import { create, toBinary } from "@bufbuild/protobuf";
import { ActserveError } from "@actserve/client";
import { GenerateResponseSchema } from "@actserve/client/v1";
import { connect } from "@actserve/client/web";

test("nothing of Node.js is imported", () => {
  const found = new Set(["dist/web.js"]);
  for (const file of found) {
    const text = readFileSync(file, "utf8");
    for (const [, name = ""] of text.matchAll(/\bfrom "([^"]+)"|\bimport\("([^"]+)"\)/g)) {
      assert.doesNotMatch(name, /^node:|connect-node|opentelemetry/);
      if (name.startsWith(".")) found.add(join(dirname(file), name));
    }
  }
  assert.ok(found.size > 10);
});

test("options that cannot be used are refused by name", () => {
  const refuses = (field: string, make: () => unknown) => {
    assert.throws(
      make,
      (error: unknown) => error instanceof ActserveError && error.field === field,
    );
  };
  refuses("url", () => connect("localhost:8080"));
  refuses("url", () => connect("ftp://localhost"));
  refuses("url", () => connect("http://localhost/?token=t"));
  refuses("url", () => connect("http://user:secret@localhost"));
  refuses("url", () => connect(undefined as never));
  refuses("timeoutMs", () => connect("http://localhost", { timeoutMs: 0 }));
  refuses("token", () => connect("http://example.com", { token: "t" }));
  refuses("token", () => connect("http://localhost.example.com", { token: "t" }));
  refuses("token", () => connect("http://example.com", { headers: { Authorization: "Bearer t" } }));
  connect("https://example.com", { token: "t" }).close();
  connect("http://example.com", { token: "t", allowPlaintextToken: true }).close();
});

test("a loop that is left cancels the call, and closing ends what runs", async () => {
  await serving(async (url, opened) => {
    const client = connect(url);
    for await (const { event } of client.generate({})) {
      assert.equal(event.case, "tokens");
      break;
    }
    await until(() => opened[0]?.closed === true);
    const stream = client.generate({});
    const reading = (async () => {
      for await (const { event } of stream) assert.equal(event.case, "tokens");
    })();
    await until(() => opened.length === 2);
    client.close();
    await assert.rejects(reading, { code: "CANCELLED" });
    await until(() => opened[1]?.closed === true);
  });
});

test("a server that breaks off its answer is unavailable", async () => {
  await serving(async (url, opened) => {
    const client = connect(url);
    await assert.rejects(
      async () => {
        for await (const { event } of client.generate({})) {
          assert.equal(event.case, "tokens");
          opened[0]?.destroy();
        }
      },
      { code: "UNAVAILABLE" },
    );
    client.close();
  });
});

test("an answer that ends without a status is unavailable", async () => {
  await serving(async (url, opened) => {
    const client = connect(url);
    await assert.rejects(
      async () => {
        for await (const { event } of client.generate({})) {
          assert.equal(event.case, "tokens");
          opened[0]?.end();
        }
      },
      { code: "UNAVAILABLE" },
    );
    client.close();
  });
});

test("a path in front of the services is kept", async () => {
  await serving(async (url, opened) => {
    const client = connect(`${url}/models/a/`);
    for await (const { event } of client.generate({})) {
      assert.equal(event.case, "tokens");
      break;
    }
    assert.equal(opened[0]?.req.url, "/models/a/actserve.v1.GenerationService/Generate");
    client.close();
  });
});

/** A server that answers every call with one message of gRPC-Web, and then silence. */
async function serving(
  use: (url: string, opened: readonly ServerResponse[]) => Promise<void>,
): Promise<void> {
  const opened: ServerResponse[] = [];
  const message = toBinary(
    GenerateResponseSchema,
    create(GenerateResponseSchema, { event: { case: "tokens", value: { text: "a" } } }),
  );
  const server = createServer((_, response) => {
    opened.push(response);
    response.writeHead(200, { "content-type": "application/grpc-web+proto" });
    response.write(Buffer.concat([Buffer.from([0, 0, 0, 0, message.length]), message]));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  try {
    await use(`http://127.0.0.1:${(server.address() as AddressInfo).port}`, opened);
  } finally {
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  }
}

async function until(condition: () => boolean): Promise<void> {
  for (let waited = 0; !condition(); waited++) {
    assert.ok(waited < 500, "it did not come to pass within five seconds");
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}
