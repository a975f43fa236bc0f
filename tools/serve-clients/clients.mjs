// Runs the official JavaScript clients against a running server: clients.mjs URL
import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const url = process.argv[2];
const model = "default";
const messages = [{ role: "user", content: "It is a truth universally acknowledged" }];
const parameters = {
  type: "object",
  properties: { city: { type: "string", enum: ["Paris", "Rome"] } },
  required: ["city"],
  additionalProperties: false,
};
const openai = new OpenAI({ baseURL: url + "/v1", apiKey: "key", maxRetries: 0 });
const anthropic = new Anthropic({ baseURL: url, apiKey: "key", maxRetries: 0 });

const whole = await openai.chat.completions.create({ model, messages, max_tokens: 8 });
let text = "";
for await (const chunk of await openai.chat.completions.create({ model, messages, max_tokens: 8, stream: true })) {
  text += chunk.choices[0]?.delta.content ?? "";
}
assert.equal(text, whole.choices[0].message.content);

const tools = [{ type: "function", function: { name: "get_weather", parameters } }];
const called = await openai.chat.completions
  .stream({ model, messages, tools, tool_choice: "required", parallel_tool_calls: false, max_tokens: 100 })
  .finalChatCompletion();
const call = called.choices[0].message.tool_calls[0];
assert.ok(["Paris", "Rome"].includes(JSON.parse(call.function.arguments).city));

const kinds = [];
for await (const event of await openai.responses.create({ model, input: "It is", max_output_tokens: 8, stream: true })) {
  kinds.push(event.type);
}
assert.equal(kinds[0], "response.created");
assert.equal(kinds.at(-1), "response.incomplete");

const stream = anthropic.messages.stream({ model, max_tokens: 8, messages });
const final = await stream.finalMessage();
assert.equal(final.stop_reason, "max_tokens");
assert.equal(final.usage.output_tokens, 8);

await assert.rejects(openai.chat.completions.create({ model: "other", messages }), { status: 404 });
console.log("ok javascript");
