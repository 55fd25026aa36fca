import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";

test("every piece of the README is compiled", () => {
  const pieces = readdirSync("examples").flatMap((name) => [
    ...readFileSync(`examples/${name}`, "utf8").matchAll(
      /^( *)\/\/ \[(\w+)\]\n(.*?)^ *\/\/ \[\/\2\]$/gms,
    ),
  ]);
  const compiled = new Set(
    pieces.map(([, indent, , text]) => text?.replaceAll(new RegExp(`^${indent}`, "gm"), "")),
  );
  const readme = readFileSync("README.md", "utf8");
  const shown = [...readme.matchAll(/^```ts\n(.*?)^```$/gms)].map(([, text]) => text);
  assert.ok(shown.length > 4);
  for (const text of shown) assert.ok(compiled.has(text), `no example has this:\n${text}`);
});
