// What transformers.js computes with a folder of to_onnx.py: node browser_probe.mjs PLACE, with PLACE/request.json
// ({folder, starts, tokens, conversations, texts}); PLACE/answer.json gets greedy texts, template ids and ids of texts.
import fs from "node:fs";
import path from "node:path";
import { AutoModelForCausalLM, AutoTokenizer, Tensor, env } from "@huggingface/transformers";

const place = process.argv[2];
const asked = JSON.parse(fs.readFileSync(path.join(place, "request.json"), "utf8"));
env.allowRemoteModels = false;
env.localModelPath = path.dirname(asked.folder);
const name = path.basename(asked.folder);
const tokenizer = await AutoTokenizer.from_pretrained(name);
const model = await AutoModelForCausalLM.from_pretrained(name, { dtype: "fp32", device: "cpu" });

const tensor = (ids) => new Tensor("int64", BigInt64Array.from(ids.map(BigInt)), [1, ids.length]);
const ones = (n) => tensor(Array(n).fill(1));
const greedy = [];
for (const start of asked.starts) {
  const found = await model.generate({
    input_ids: tensor(start), attention_mask: ones(start.length), max_new_tokens: asked.tokens,
    do_sample: false, eos_token_id: [-1],
  });
  greedy.push(found.tolist()[0].slice(start.length).map(Number));
}
const { logits } = await model({ input_ids: tensor(asked.text), attention_mask: ones(asked.text.length) });
fs.writeFileSync(path.join(place, "logits.f32"), Buffer.from(logits.data.buffer, logits.data.byteOffset, logits.data.byteLength));
const prompts = asked.conversations.map((talk) =>
  tokenizer.apply_chat_template(talk, { add_generation_prompt: true, return_tensor: false, return_dict: false }));
const texts = asked.texts.map((text) => tokenizer.encode(text, { add_special_tokens: false }));
fs.writeFileSync(path.join(place, "answer.json"), JSON.stringify({ greedy, prompts, texts, model: model.constructor.name }));
