// The norms of a layer's rows, token by token: node build/examples/fetch.js [host:port]
// [sample]
import { connect, prompt, row, rows } from "@actserve/client/node";

const client = connect(process.argv[2] ?? "localhost:50051");
const fetched = await client
  .fetchActivations({
    items: [{ prompt: prompt("The capital of France is") }],
    readouts: [rows("acts", "resid_post.15")],
  })
  .collect();

const item = fetched.item(0);
const acts = item.rows("acts", "resid_post.15"); // float32 of the shape [tokens, width]
for (const [index, position] of acts.positions.entries()) {
  const squares = row(acts, index).reduce((sum, value) => sum + value ** 2, 0);
  const token = JSON.stringify(item.tokens[position]);
  console.log(`${position} ${token} ${Math.sqrt(squares).toFixed(3)}`);
}
client.close();
// [/sample]
