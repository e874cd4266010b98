// OpenAI's Node client, unchanged, against one server: what it got, as one JSON object by the name of each talk.
import fs from "node:fs";
import OpenAI, { toFile } from "openai";

const { url, key, user, models, photo, hole } = JSON.parse(fs.readFileSync(0, "utf8"));
const settings = { baseURL: `${url}/v1`, apiKey: key, defaultHeaders: { "X-User-ID": user }, maxRetries: 0 };
const client = new OpenAI(settings);
const messages = [{ role: "user", content: "a lighthouse" }];
const weather = {
  type: "function",
  function: { name: "weather", parameters: { type: "object", properties: { place: { type: "string" } } } },
};
const picture = (base64, name) => toFile(Buffer.from(base64, "base64"), name, { type: "image/png" });

async function refused(talk) {
  try {
    await talk();
    return null;
  } catch (error) {
    const { status, code, param, type } = error;
    const retryAfter = error.headers?.get("retry-after") ?? null;
    return { name: error.constructor.name, status: status ?? null, code: code ?? null, param: param ?? null, type: type ?? null, retryAfter };
  }
}

const talks = {
  async chat() {
    const { data, response, request_id } = await client.chat.completions.create({ model: models.chat, messages }).withResponse();
    return { words: data.choices[0].message.content, usage: data.usage, provider: response.headers.get("x-limner-provider"), request_id };
  },
  async stream() {
    const stream = await client.chat.completions.create({
      model: models.chat, messages, stream: true, stream_options: { include_usage: true },
    });
    let words = "", usage = null;
    for await (const chunk of stream) {
      words += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
    }
    return { words, usage };
  },
  async tools() {
    const first = await client.chat.completions.create({ model: models.chat, messages, tools: [weather] });
    const [call] = first.choices[0].message.tool_calls;
    const second = await client.chat.completions.create({
      model: models.chat, tools: [weather],
      messages: [...messages, first.choices[0].message, { role: "tool", tool_call_id: call.id, content: "fog" }],
    });
    const streamed = await client.chat.completions.stream({ model: models.chat, messages, tools: [weather] }).finalChatCompletion();
    return { call: call.function, words: second.choices[0].message.content, streamed: streamed.choices[0].message.tool_calls[0].function };
  },
  async vision() {
    const content = [
      { type: "text", text: "what is this" },
      { type: "image_url", image_url: { url: `data:image/png;base64,${photo}` } },
    ];
    const answer = await client.chat.completions.create({ model: models.chat, messages: [{ role: "user", content }] });
    return answer.choices[0].message.content;
  },
  async schema() {
    const schema = { type: "object", properties: { words: { type: "string" } }, required: ["words"], additionalProperties: false };
    const answer = await client.chat.completions.parse({
      model: models.chat, messages, response_format: { type: "json_schema", json_schema: { name: "said", strict: true, schema } },
    });
    return JSON.parse(answer.choices[0].message.content);
  },
  async vectors() {
    const packed = await client.embeddings.create({ model: "local/embed", input: ["a quiet harbour"] });
    const numbers = await client.embeddings.create({ model: "local/embed", input: ["a quiet harbour"], encoding_format: "float" });
    const [one, other] = [packed.data[0].embedding, numbers.data[0].embedding];
    return { length: one.length, apart: Math.max(...one.map((number, place) => Math.abs(number - other[place]))) };
  },
  async pictures() {
    const made = await client.images.generate({ model: "local/canvas", prompt: "a harbour at sunset", size: "512x512" });
    const linked = await client.images.generate({ model: models.pictures, prompt: "a hare", response_format: "url" });
    return { begins: Buffer.from(made.data[0].b64_json, "base64").toString("latin1", 1, 4), url: (await fetch(linked.data[0].url)).status };
  },
  async edits() {
    const made = await client.images.edit({
      model: "local/inpaint", prompt: "no spot", image: await picture(photo, "photo.png"), mask: await picture(hole, "mask.png"),
    });
    const several = await client.images.edit({
      model: models.edits, prompt: "both", n: 2, image: [await picture(photo, "a.png"), await picture(photo, "b.png")],
    });
    return { edited: made.data[0].b64_json, several: several.data.length };
  },
  async models() {
    const found = [];
    for await (const model of client.models.list()) found.push(model.id);
    return { found, one: await client.models.retrieve("local/extract") };
  },
  async moderations() {
    return (await client.moderations.create({ input: ["a harbour", "an axe"] })).results.map((result) => result.flagged);
  },
  async errors() {
    const strange = new OpenAI({ ...settings, apiKey: "sk-wrong" });
    return {
      key: await refused(() => strange.chat.completions.create({ model: models.chat, messages })),
      model: await refused(() => client.chat.completions.create({ model: "no/such", messages })),
      request: await refused(() => client.chat.completions.create({ model: models.chat, messages, max_tokens: 1e6 })),
      credits: await refused(() => client.chat.completions.create({ model: models.chat, messages, max_tokens: 100, n: 128 })),
      picture: await refused(async () =>
        client.images.edit({ model: "local/inpaint", prompt: "x", image: await toFile(Buffer.from("no picture"), "a.png") })),
    };
  },
  async retries() {
    const patient = new OpenAI({ ...settings, maxRetries: 2 });
    const answer = await patient.chat.completions.create({ model: models.chat, messages });
    return answer.choices[0].message.content;
  },
  async timeouts() {
    const hasty = new OpenAI({ ...settings, timeout: 300 });
    return refused(() => hasty.chat.completions.create({ model: models.chat, messages }));
  },
  async limits() {
    await client.chat.completions.create({ model: models.chat, messages });
    return refused(() => client.chat.completions.create({ model: models.chat, messages }));
  },
};

process.stdout.write(JSON.stringify(await talks[process.argv[2]]()));
