// What the cases of tests/conformance cannot see.
import assert from "node:assert/strict";
import { constants, createServer, type ServerHttp2Stream } from "node:http2";
import { createServer as createSilent, type AddressInfo, type Socket } from "node:net";
import { readFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

import { create, toBinary } from "@bufbuild/protobuf";
import { createRouterTransport, type CallOptions } from "@connectrpc/connect";
import { ActserveError, Client, decodeTensor, rows, tensor, VERSION } from "@actserve/client";
import { connect } from "@actserve/client/node";
import {
  CombineSteeringVectorsRequestSchema,
  DictionaryService,
  GenerateResponseSchema,
  GenerationService,
  ModelService,
  RunSweepResponseSchema,
  SteeringVectorService,
  SweepService,
} from "@actserve/client/v1";

test("the version of the client is that of its package", () => {
  const { version } = JSON.parse(readFileSync("package.json", "utf8")) as { version: string };
  assert.equal(VERSION, version);
});

test("an f32 tensor shares memory with its bytes where they are aligned, and only there", () => {
  const sent = tensor([1, 2]);
  assert.equal(decodeTensor(sent).data.buffer, sent.data.buffer);
  const shifted = new Uint8Array(9);
  shifted.set(sent.data, 1);
  const { data } = decodeTensor({ ...sent, data: shifted.subarray(1) });
  assert.deepEqual([...data], [1, 2]);
  assert.notEqual(data.buffer, shifted.buffer);
});

test("options that cannot be used are refused by name", () => {
  const refuses = (field: string, make: () => unknown) => {
    assert.throws(
      make,
      (error: unknown) => error instanceof ActserveError && error.field === field,
    );
  };
  refuses("targets", () => connect([]));
  refuses("targets", () => connect("http://localhost:50051"));
  refuses("targets", () => connect("localhost:99999"));
  refuses("timeoutMs", () => connect("localhost", { timeoutMs: 0 }));
  refuses("targets", () => connect([undefined as never]));
  refuses("tls", () => connect("localhost", { tls: { ca: "" } }));
  refuses("tls", () => connect("localhost", { tls: { ca: "no PEM" } }));
  refuses("tls", () => connect("localhost", { tls: { cert: "no PEM", key: "no PEM" } }));
  refuses("tls", () => connect("localhost", { tls: { key: "no PEM" } }));
  refuses("token", () => connect("localhost", { token: null as never }));
  refuses("headers", () => connect("localhost", { headers: { "no name": "" } }));
  refuses("token", () => connect("example.com", { headers: { Authorization: "Bearer t" } }));
});

test("options of a call that cannot be used are refused by name", async () => {
  const client = connect("localhost");
  const refuses = (field: string, options: CallOptions) =>
    assert.rejects(client.getModel({}, options), { name: "ActserveError", field });
  await refuses("timeoutMs", { timeoutMs: NaN });
  await refuses("timeoutMs", { timeoutMs: -1 });
  await refuses("headers", { headers: { "no name": "" } });
  client.close();
});

test("a stream is read once", async () => {
  await serving(async (port, opened) => {
    const client = connect(`127.0.0.1:${port}`);
    const stream = client.generate({});
    for await (const { event } of stream) {
      assert.equal(event.case, "tokens");
      break;
    }
    await assert.rejects(stream.collect(), { code: "FAILED_PRECONDITION" });
    assert.equal(opened.length, 1);
    client.close();
  });
});

test("what cancelled a call is the cause of its error", async () => {
  await serving(async (port) => {
    const client = connect(`127.0.0.1:${port}`);
    const cause = new Error("enough");
    const options = { signal: AbortSignal.abort(cause) };
    for (const call of [client.generate({}, options), client.runSweep({}, options)]) {
      await assert.rejects(call.collect(), { code: "CANCELLED", cause });
    }
    client.close();
  });
});

test("a call that a server has refused to begin with is made again", async () => {
  const refusals = [
    (stream: ServerHttp2Stream) => {
      stream.close(constants.NGHTTP2_REFUSED_STREAM);
    },
  ];
  await serving(
    async (port, opened) => {
      const client = connect(`127.0.0.1:${port}`);
      for await (const { event } of client.generate({})) {
        assert.equal(event.case, "tokens");
        break;
      }
      assert.equal(opened.length, 2);
      client.close();
    },
    undefined,
    refusals,
  );
});

test("a replica that takes connections and says nothing is passed over", async () => {
  const sockets: Socket[] = [];
  const silent = createSilent((socket) => sockets.push(socket));
  await new Promise<void>((resolve) => silent.listen(0, "127.0.0.1", resolve));
  const { port: nobody } = silent.address() as AddressInfo;
  await serving(async (port) => {
    const client = connect([`127.0.0.1:${nobody}`, `127.0.0.1:${port}`], { timeoutMs: 8_000 });
    for (let calls = 0; calls < 2; calls++) {
      for await (const { event } of client.generate({})) {
        assert.equal(event.case, "tokens");
        break;
      }
    }
    client.close();
  });
  for (const socket of sockets) socket.destroy();
  await new Promise((resolve) => silent.close(resolve));
});

test("any transport of connect will do", async () => {
  const transport = createRouterTransport(({ service }) => {
    service(ModelService, { getModel: ({ name }) => ({ model: { name } }) });
  });
  const client = new Client({ transport });
  const { model } = await client.getModel({ name: "models/m" });
  assert.equal(model?.name, "models/m");
});

test("every call that makes a vector has an id of its own, and the request stays as it was", async () => {
  const ids: string[] = [];
  const transport = createRouterTransport(({ service }) => {
    service(SteeringVectorService, {
      combineSteeringVectors: ({ requestId }) => {
        ids.push(requestId);
        return {};
      },
    });
  });
  const client = new Client({ transport });
  const request = create(CombineSteeringVectorsRequestSchema, { steeringVectorId: "calm" });
  await client.combineSteeringVectors(request);
  await client.combineSteeringVectors(request);
  assert.equal(new Set(ids).size, 2);
  assert.match(ids[0] ?? "", /^[0-9a-f]{32}$/);
  assert.equal(request.requestId, "");
});

test("an upload has the id of what is uploaded, and another one where a browser has no digest", async () => {
  const ids: string[] = [];
  const transport = createRouterTransport(({ service }) => {
    service(DictionaryService, {
      beginUpload: ({ requestId }) => {
        ids.push(requestId);
        return { maxChunkBytes: 8, receivedBytes: [4n] };
      },
      finishUpload: () => ({ dictionary: {} }),
    });
  });
  const client = new Client({ transport });
  const upload = (...bytes: number[]) =>
    client.uploadDictionary({ matrices: [{}] }, [Uint8Array.from(bytes)]);
  await upload(1, 2, 3, 4);
  await upload(1, 2, 3, 4);
  await upload(1, 2, 3, 5);
  assert.equal(ids[0], ids[1]);
  assert.notEqual(ids[0], ids[2]);
  const { subtle } = crypto;
  Object.defineProperty(crypto, "subtle", { value: undefined, configurable: true });
  try {
    await upload(1, 2, 3, 4);
  } finally {
    Object.defineProperty(crypto, "subtle", { value: subtle, configurable: true });
  }
  assert.notEqual(ids[0], ids[3]);
  assert.match(ids[3] ?? "", /^[0-9a-f]{32}$/);
});

test("a sweep is read once", async () => {
  const transport = createRouterTransport(({ service }) => {
    service(SweepService, {
      // eslint-disable-next-line @typescript-eslint/require-await
      runSweep: async function* () {
        yield create(RunSweepResponseSchema, { event: { case: "started", value: {} } });
        yield create(RunSweepResponseSchema, { event: { case: "finished", value: {} } });
      },
    });
  });
  const client = new Client({ transport });
  const stream = client.runSweep({});
  assert.deepEqual((await stream.collect()).cells, []);
  await assert.rejects(stream.collect(), { code: "FAILED_PRECONDITION" });
});

test("nothing is sent before a stream is read, and closing ends what runs", async () => {
  await serving(async (port, opened) => {
    const client = connect(`127.0.0.1:${port}`);
    const stream = client.generate({ readouts: [rows("acts", "resid_post.1")] });
    assert.equal(opened.length, 0);
    const reading = (async () => {
      for await (const { event } of stream) assert.equal(event.case, "tokens");
    })();
    await until(() => opened.length === 1);
    client.close();
    await assert.rejects(reading, { code: "CANCELLED" });
    await until(() => opened[0]?.closed === true);
    await assert.rejects(client.getModel({ name: "models/m" }), { code: "CANCELLED" });
  });
});

test("a loop over a stream, or a stub's stream, that is left cancels the call", async () => {
  await serving(async (port, opened) => {
    const client = connect(`127.0.0.1:${port}`);
    const streams = [client.generate({}), client.stub(GenerationService).generate({})];
    for (const [index, stream] of streams.entries()) {
      for await (const { event } of stream) {
        assert.equal(event.case, "tokens");
        break;
      }
      await until(() => opened[index]?.closed === true);
    }
    client.close();
  });
});

test("a unix socket is a target, and a token may go there", async () => {
  const path = join(tmpdir(), `actserve-${process.pid}.sock`);
  await serving(async () => {
    const client = connect(`unix:${path}`, { token: "t" });
    for await (const { event } of client.generate({})) {
      assert.equal(event.case, "tokens");
      break;
    }
    client.close();
  }, path);
  await rm(path, { force: true });
});

/** A server that answers every call with one message and then silence, after some that it refuses. */
async function serving(
  use: (port: number, opened: readonly ServerHttp2Stream[]) => Promise<void>,
  path?: string,
  refusals: ((stream: ServerHttp2Stream) => void)[] = [],
): Promise<void> {
  const opened: ServerHttp2Stream[] = [];
  const server = createServer();
  const message = toBinary(
    GenerateResponseSchema,
    create(GenerateResponseSchema, { event: { case: "tokens", value: { text: "a" } } }),
  );
  server.on("stream", (stream) => {
    opened.push(stream);
    stream.on("error", () => undefined);
    const refuse = refusals.shift();
    if (refuse) {
      refuse(stream);
      return;
    }
    stream.respond({ ":status": 200, "content-type": "application/grpc+proto" });
    stream.write(Buffer.concat([Buffer.from([0, 0, 0, 0, message.length]), message]));
  });
  await new Promise<void>((resolve) =>
    server.listen(path ?? { port: 0, host: "127.0.0.1" }, resolve),
  );
  try {
    const address = server.address();
    await use(typeof address === "string" ? 0 : (address?.port ?? 0), opened);
  } finally {
    await new Promise((resolve) => server.close(resolve));
  }
}

async function until(condition: () => boolean): Promise<void> {
  for (let waited = 0; !condition(); waited++) {
    assert.ok(waited < 500, "it did not come to pass within five seconds");
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}
