// Pieces for README.md that are compiled, and not programs of their own.
import { readFileSync } from "node:fs";

import {
  above,
  ActserveError,
  add,
  changeFeatures,
  connect,
  feature,
  features,
  probe,
  prompt,
  site,
  type Client,
} from "@actserve/client/node";
import { TokenMatrix, WeightService, type Intervention } from "@actserve/client/v1";

export function connected(): Client[] {
  // [connect]
  const one = connect("actserve.example.com:443", { tls: true, token: process.env.TOKEN });
  const own = connect("10.0.0.7:50051", {
    tls: {
      ca: readFileSync("ca.pem"),
      cert: readFileSync("client.pem"), // where the server asks for one
      key: readFileSync("client.key"),
    },
    timeoutMs: 60_000, // of a call with all its attempts; 600 000 when unset, Infinity for none
    model: "models/smollm2-135m", // for a proxy in front of several servers
  });
  const replicas = connect(["10.0.0.7:50051", "10.0.0.8:50051"]); // calls go to them in turn
  // [/connect]
  return [one, own, replicas];
}

export async function listed(client: Client): Promise<void> {
  // [list]
  for await (const { name, width } of client.listModels()) console.log(name, width);
  // [/list]
}

export async function watched(client: Client): Promise<void> {
  // [stream]
  const stream = client.generate({ prompt: prompt("Once upon a time") });
  for await (const { event } of stream) {
    if (event.case === "tokens") process.stdout.write(event.value.text);
  }
  // [/stream]
}

export async function stored(client: Client): Promise<void> {
  // [vectors]
  const { steeringVector } = await client.makeSteeringVector({
    steeringVectorId: "joy",
    sites: [site("resid_post.15")],
    examples: {
      case: "prompts",
      value: {
        positive: [prompt("I loved it, wonderful!")],
        negative: [prompt("I hated it, terrible!")],
      },
    },
  });
  const joy = steeringVector?.name ?? ""; // models/.../steeringVectors/joy
  const steered = add("resid_post.15", joy, 2);
  // [/vectors]
  // [condition]
  steered.when = above(probe("resid_post.8", joy), 0.5);
  // [/condition]
}

export async function read(client: Client, name: string): Promise<void> {
  // [features]
  for await (const { name, features, check } of client.listDictionaries()) {
    console.log(name, features, check?.explained);
  }
  const fetched = await client
    .fetchActivations({
      items: [{ prompt: prompt("Rain fell on the lake") }],
      readouts: [features("top", "resid_post.20", name, { positions: "last", top: 5 })],
    })
    .collect();
  const top = fetched.item(0).rows("top", "resid_post.20");
  console.log(top.indices, top.data); // the five largest, largest first
  // [/features]
}

export async function changed(client: Client, name: string): Promise<Intervention[]> {
  // [changes]
  const changes = { values: { 2178: 60 }, factors: { 7: 0 } };
  const steer = changeFeatures("resid_post.20", name, changes);
  const along = add("resid_post.20", feature(name, 2178), 60);
  const [effect] = await client.logitEffects(name, [2178], 5);
  for (const { text, effect: raised } of effect?.top ?? []) console.log(text, raised);
  // [/changes]
  return [steer, along];
}

export async function measured(client: Client): Promise<void> {
  // [heads]
  const measured = await client
    .measureHeads({ items: [{ prompt: prompt("one two three one two three") }] })
    .collect();
  for (const { layer, head, induction, previousToken } of measured.heads.flat()) {
    console.log(layer, head, induction, previousToken);
  }
  // [/heads]
}

export async function traced(client: Client): Promise<void> {
  // [graphs]
  const { attributionGraph } = await client.createAttributionGraph({
    prompt: prompt("The capital of France is"),
    settings: { maxFeatureNodes: 300 },
  });
  const graph = await client.waitForAttributionGraph(attributionGraph?.name ?? "");
  graph.weights.forEach((weight, edge) => {
    const [source, target] = [graph.sources[edge] ?? 0, graph.targets[edge] ?? 0];
    console.log(graph.nodes[source]?.kind, graph.nodes[target]?.kind, weight);
  });
  // [/graphs]
}

export async function swept(client: Client, joy: string): Promise<void> {
  // [sweep]
  const swept = await client
    .runSweep({
      prompts: [{ prompt: prompt("I think the movie was") }],
      variants: [
        {
          interventions: [add([], joy)], // the lists say how much, and where
          coefficients: [0, 2, 4],
          sites: [site("resid_post.10"), site("resid_post.15")],
        },
      ],
      sampling: { maxTokens: 20 },
      answers: [{ name: "great", text: " great" }],
    })
    .collect();
  for (const { cell, error } of swept.cells) {
    if (error) console.log(error.message);
    else console.log(cell.coefficientIndex, cell.siteIndex, cell.text, cell.answerLogprobs);
  }
  // [/sweep]
}

export async function failed(client: Client): Promise<void> {
  // [errors]
  try {
    await client.getModel({ name: "models/other" });
  } catch (error) {
    if (!(error instanceof ActserveError)) throw error;
    if (error.reason !== "MODEL_NOT_FOUND") throw error;
    console.log(`${error.message}; there are ${error.metadata.served}`);
  }
  // [/errors]
}

export async function cancelled(client: Client): Promise<void> {
  // [cancel]
  const signal = AbortSignal.timeout(5_000);
  const generated = client.generate({ prompt: prompt("Once upon a time") }, { signal });
  await generated.collect(); // throws an ActserveError with the code CANCELLED after 5 s
  // [/cancel]
}

export async function stubbed(client: Client): Promise<void> {
  // [stub]
  const weights = client.stub(WeightService);
  const request = { matrix: TokenMatrix.UNEMBEDDING, tokenIds: [1, 2] };
  for await (const { event } of weights.readTokenRows(request)) {
    console.log(event.case);
  }
  // [/stub]
}
