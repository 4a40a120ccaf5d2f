// OpenAI's client for Node.
import OpenAI from "openai";
import { base, check, model, run } from "./checks.mjs";

const client = new OpenAI({ baseURL: `${base}/v1`, apiKey: "unused", maxRetries: 0, timeout: 120_000 });
const messages = [{ role: "user", content: "Name a colour." }];
const assert = (holds, what) => {
  if (!holds) throw new Error(what);
};

check("chat", async () => {
  const answer = await client.chat.completions.create({ model, messages, max_tokens: 8 });
  assert(answer.choices[0].message.content, "text");
});

check("chat stream", async () => {
  let text = "";
  const stream = await client.chat.completions.create({ model, messages, max_tokens: 8, stream: true });
  for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
  assert(text, "text");
});

check("several prompts", async () => {
  const answer = await client.completions.create({ model, prompt: ["One", "Two"], max_tokens: 4 });
  assert(answer.choices.map((choice) => choice.index).join() === "0,1", "two choices");
});

check("unknown model", async () => {
  const error = await client.chat.completions.create({ model: "nobody", messages }).catch((error) => error);
  assert(error instanceof OpenAI.NotFoundError && error.code === "model_not_found", String(error));
});

check("responses", async () => {
  const request = { model, input: "Name a colour.", max_output_tokens: 8 };
  assert((await client.responses.create(request)).output_text, "text");
  let text = "";
  for await (const event of await client.responses.create({ ...request, stream: true })) {
    if (event.type === "response.output_text.delta") text += event.delta;
  }
  assert(text, "text");
});

run();
