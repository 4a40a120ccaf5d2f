// Anthropic's client for Node, with an engine that has /v1/messages.
import Anthropic from "@anthropic-ai/sdk";
import { base, check, model, run } from "./checks.mjs";

const client = new Anthropic({ baseURL: base, apiKey: "unused", maxRetries: 0 });
const request = { model, max_tokens: 8, messages: [{ role: "user", content: "Name a colour." }] };

check("messages", async () => {
  const answer = await client.messages.create(request);
  if (!answer.content[0].text) throw new Error("no text");
});

check("stream", async () => {
  const message = await client.messages.stream(request).finalMessage();
  if (!message.content[0].text) throw new Error("no text");
});

run();
