// Vercel's AI SDK with both providers that speak OpenAI's API.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, streamText, tool } from "ai";
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
  // The default model of this provider uses /v1/responses.
  ["openai", openai(model)],
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

for (const [name, languageModel] of [
  ["openai .chat", openai.chat(model)],
  ["openai", openai(model)],
]) {
  check(`${name}: object`, async () => {
    const schema = z.object({ name: z.string() });
    const request = { model: languageModel, schema, ...options, maxOutputTokens: 100 };
    assert(typeof (await generateObject(request)).object.name === "string", "an object");
  }, "json");
  check(`${name}: tool`, async () => {
    const paint = tool({ description: "Paints.", inputSchema: z.object({ colour: z.string() }) });
    const request = { model: languageModel, tools: { paint }, toolChoice: "required", ...options, maxOutputTokens: 100 };
    const [call] = (await generateText(request)).toolCalls;
    assert(call.toolName === "paint", "a call");
  }, "tools");
}

run();
