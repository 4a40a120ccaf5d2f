// Vercel's AI SDK with both providers that speak OpenAI's API.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, streamText } from "ai";
import { z } from "zod";
import { base, check, model, run } from "./checks.mjs";

const compatible = createOpenAICompatible({ name: "signalbox", baseURL: `${base}/v1`, apiKey: "unused" });
const openai = createOpenAI({ baseURL: `${base}/v1`, apiKey: "unused" });
const options = { prompt: "Name a colour.", maxOutputTokens: 8, maxRetries: 0 };
const assert = (holds, what) => {
  if (!holds) throw new Error(what);
};

for (const [name, languageModel] of [
  ["openai-compatible", compatible.chatModel(model)],
  ["openai .chat", openai.chat(model)],
]) {
  check(`${name}: text`, async () => {
    assert((await generateText({ model: languageModel, ...options })).text, "text");
  });
  check(`${name}: stream`, async () => {
    let text = "";
    for await (const part of streamText({ model: languageModel, ...options }).textStream) text += part;
    assert(text, "text");
  });
}

check("openai-compatible: completion", async () => {
  assert((await generateText({ model: compatible.completionModel(model), ...options })).text, "text");
});

// The default model of this provider uses /v1/responses, which an engine of this repository does not have.
check("openai default: /v1/responses", async () => {
  assert((await generateText({ model: openai(model), ...options })).text, "text");
}, "responses");

check("openai .chat: object", async () => {
  const schema = z.object({ name: z.string() });
  const request = { model: openai.chat(model), schema, ...options, maxOutputTokens: 100 };
  assert((await generateObject(request)).object.name, "an object");
}, "json");

run();
