// What a row of one prompt changes in another: node build/examples/patch.js [host:port]
import { connect, keep, predictions, prompt, replace } from "@actserve/client/node";

const client = connect(process.argv[2] ?? "localhost:50051");
// [patch]
const clean = await client
  .fetchActivations({
    items: [{ prompt: prompt("The capital of France is") }],
    readouts: [keep("kept", "resid_post.15", "-1")],
  })
  .collect();
const name = clean.item(0).kept("kept"); // the rows stay on the server, under this name

const patched = await client
  .fetchActivations({
    items: [{ prompt: prompt("The capital of Italy is") }],
    interventions: [replace("resid_post.15", name, "-1")],
    readouts: [predictions("next", { positions: "last", topK: 3 })],
  })
  .collect();
const { topTexts, topLogprobs } = patched.item(0).predictions("next", "final_norm");
for (const [rank, text] of topTexts[0]?.entries() ?? []) {
  console.log(`${JSON.stringify(text)} ${topLogprobs?.data[rank]?.toFixed(3)}`);
}
await client.deleteKeptActivations({ name });
// [/patch]
client.close();
