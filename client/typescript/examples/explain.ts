// What the model thinks at the last token, in words: node build/examples/explain.js [host:port]
import { connect, positions, prompt } from "@actserve/client/node";

const client = connect(process.argv[2] ?? "localhost:50051");
// [explain]
const { explanations } = await client
  .explainText({
    prompt: prompt("The capital of France is"),
    positions: positions("last"),
    spec: { temperature: 0, maxTokens: 32, score: true },
  })
  .collect();
for (const { text, score } of explanations) {
  console.log(`${JSON.stringify(text)} ${score?.cosine.toFixed(2)}`);
}
// [/explain]
client.close();
