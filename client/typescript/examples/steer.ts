// A text, and the same steered towards a mood: node build/examples/steer.js [host:port]
import { add, connect, prompt, row, rows } from "@actserve/client/node";

const client = connect(process.argv[2] ?? "localhost:50051");
// [steer]
const site = "resid_post.15";
const fetched = await client
  .fetchActivations({
    items: [
      { prompt: prompt("I loved it, wonderful!") },
      { prompt: prompt("I hated it, terrible!") },
    ],
    readouts: [rows("acts", site, "last")],
  })
  .collect();
const loved = row(fetched.item(0).rows("acts", site), 0);
const hated = row(fetched.item(1).rows("acts", site), 0);
const mood = loved.map((value, index) => value - (hated[index] ?? 0));

const request = {
  prompt: prompt("I think the movie was"),
  sampling: { maxTokens: 20, temperature: 0 },
};
const plain = await client.generate(request).collect();
const steered = await client
  .generate({ ...request, interventions: [add(site, mood, 2)] })
  .collect();
console.log(`plain: ${JSON.stringify(plain.samples[0].text)}`);
console.log(`steered: ${JSON.stringify(steered.samples[0].text)}`);
// [/steer]
client.close();
