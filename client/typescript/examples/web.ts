// A piece for README.md that is compiled, and not a program of its own.
import { connect, prompt } from "@actserve/client/web";

export async function written(token: string): Promise<void> {
  // [web]
  const client = connect("https://actserve.example.com:8080", { token });
  const stream = client.generate({ prompt: prompt("Once upon a time") });
  for await (const { event } of stream) {
    if (event.case === "tokens") document.body.append(event.value.text);
  }
  // [/web]
}
