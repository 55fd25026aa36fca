// Watches what a model writes by a probe: node build/examples/monitor.js [host:port]
import { connect, probe, prompt, row, rows } from "@actserve/client/node";
import { AlertLevel, ScoreDetail, type Alert } from "@actserve/client/v1";

const client = connect(process.argv[2] ?? "localhost:50051");
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
let halfway = 0;
mood.forEach((value, index) => {
  halfway += (value * ((loved[index] ?? 0) + (hated[index] ?? 0))) / 2;
});

// [monitor]
const { monitor } = await client.createMonitor({
  monitorId: "mood",
  monitor: {
    probes: [probe(site, mood)],
    lower: { threshold: halfway, flag: true },
    watch: { namedOnly: true },
  },
});
const name = monitor?.name ?? ""; // models/.../monitors/mood
// [/monitor]

function told({ level, score, position }: Alert): string {
  return `${AlertLevel[level].toLowerCase()}, ${score.toFixed(2)} at token ${position}`;
}

// [alerts]
const generated = await client
  .generate({
    prompt: prompt("I loved it, wonderful!"),
    sampling: { maxTokens: 20, temperature: 0 },
    monitors: [name],
    scoreDetail: ScoreDetail.SAMPLE,
  })
  .collect();
const [sample] = generated.samples;
console.log(`generated: ${JSON.stringify(sample.text)}`);
for (const { highestScore, highestPosition } of sample.monitorScores) {
  console.log(`highest: ${highestScore.toFixed(2)} at token ${highestPosition}`);
}
for (const alert of sample.alerts) console.log(`told: ${told(alert)}`); // of levels with `flag`

const filter = { monitors: [name] };
for await (const { alert } of client.watchAlerts({ filter, fromOldest: true })) {
  console.log(`watched: ${told(alert)}`);
  break; // it goes on for as long as the loop does
}
// [/alerts]

await client.deleteAlerts({ filter });
await client.deleteMonitor({ name });
client.close();
