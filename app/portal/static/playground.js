// The playground: asks as the API is asked, counts tokens as they come, and shows the request as code.

import { curl, javascript, python } from "./request-code.js";

const page = document.getElementById("playground");
const at = (id) => document.getElementById(id);
const PICO_USD = 10n ** 12n;
const MICRO = 10n ** 6n;
const money = new Intl.NumberFormat(document.documentElement.lang, { style: "currency", currency: "USD", minimumFractionDigits: 6 });
let running;

if (page) {
  page.hidden = false;
  at("model").addEventListener("change", choose);
  at("ask").addEventListener("input", showCode);
  at("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  at("stop").addEventListener("click", () => running?.abort());
  choose();
}

function chosen() {
  return at("model").selectedOptions[0];
}

function choose() {
  const { kind } = chosen().dataset;
  for (const part of page.querySelectorAll("[data-for]")) {
    part.hidden = part.dataset.for !== kind;
    for (const field of part.querySelectorAll("input, select")) field.disabled = part.hidden;
  }
  const samples = JSON.parse(page.dataset.samples);
  if (!at("text").value || Object.values(samples).includes(at("text").value)) at("text").value = samples[kind];
  showCode();
}

function asked() {
  const model = chosen().value;
  const text = at("text").value;
  if (chosen().dataset.kind === "classification") {
    return { path: "/classifications", body: { model, input: text, top_k: Number(at("top_k").value) } };
  }
  const body = {
    model,
    max_tokens: Number(at("max_tokens").value),
    temperature: Number(at("temperature").value),
    top_p: Number(at("top_p").value),
    ...(at("seed").value === "" ? {} : { seed: Number(at("seed").value) }),
  };
  return at("mode").value === "chat"
    ? { path: "/chat/completions", body: { ...body, messages: [{ role: "user", content: text }] } }
    : { path: "/completions", body: { ...body, prompt: text } };
}

function showCode() {
  const { path, body } = asked();
  for (const [name, write] of Object.entries({ curl, python, javascript })) {
    at(`code-${name}`).querySelector("code").textContent = write(page.dataset.baseUrl, path, body);
  }
}

async function run() {
  const { path, body } = asked();
  const isStream = path !== "/classifications";
  running = new AbortController();
  begin();
  const started = performance.now();
  try {
    const response = await fetch(`/playground${path}`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(isStream ? { ...body, ...counting(path) } : body),
      signal: running.signal,
    });
    at("request-id").textContent = response.headers.get("x-request-id") ?? "–";
    if (!response.ok) throw new Error(told((await response.json()).error, response.status));
    await (isStream ? showStream(response, path, started) : showLabels(await response.json()));
  } catch (error) {
    if (error.name !== "AbortError") fail(error.message);
  } finally {
    running = undefined;
    at("run").disabled = false;
    at("stop").hidden = true;
  }
}

// Of each chunk the API says which tokens are in it if it is asked for their probabilities.
function counting(path) {
  const logprobs = path === "/chat/completions" ? { logprobs: true } : { logprobs: 0 };
  return { stream: true, stream_options: { include_usage: true }, ...logprobs };
}

async function showStream(response, path, started) {
  let numOutput = 0;
  at("answer").textContent = "";
  for await (const event of events(response)) {
    if (event.error) throw new Error(told(event.error));
    const [choice] = event.choices;
    if (choice) {
      const text = path === "/chat/completions" ? (choice.delta.content ?? "") : choice.text;
      if (text && !numOutput) at("first-token").textContent = `${Math.round(performance.now() - started)} ms`;
      at("answer").append(text);
      numOutput += choice.logprobs?.tokens?.length ?? choice.logprobs?.content?.length ?? 0;
      at("output-tokens").textContent = numOutput.toLocaleString(document.documentElement.lang);
      at("cost").textContent = `≥ ${cost(0, 0, numOutput)}`;
    }
    if (event.usage) showUsage(event.usage);
  }
}

function showLabels(answer) {
  const [result] = answer.data;
  at("answer").textContent = result.label ?? "–";
  const rows = (result.scores ?? [result]).map(({ label, score }) => {
    const row = document.createElement("tr");
    for (const text of [label, score.toFixed(4)]) {
      const cell = document.createElement("td");
      cell.textContent = text;
      row.append(cell);
    }
    row.lastChild.className = "number";
    return row;
  });
  at("labels").querySelector("tbody").replaceChildren(...rows);
  at("labels").hidden = false;
  showUsage(answer.usage);
}

function showUsage(usage) {
  const { prompt_tokens: input, completion_tokens: output = 0 } = usage;
  const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
  const { lang } = document.documentElement;
  at("input-tokens").textContent = input.toLocaleString(lang) + (cached ? ` (${cached.toLocaleString(lang)} ⟲)` : "");
  at("output-tokens").textContent = output.toLocaleString(lang);
  at("cost").textContent = cost(input, cached, output);
}

// As it is billed: whole numbers, rounded once, half to even, to the micro-dollar.
function cost(input, cached, output) {
  const price = chosen().dataset;
  const pico =
    BigInt(input - cached) * BigInt(price.input) + BigInt(cached) * BigInt(price.cached) + BigInt(output) * BigInt(price.output);
  const unit = PICO_USD / MICRO;
  let micro = pico / unit;
  const rest = pico % unit;
  if (rest * 2n > unit || (rest * 2n === unit && micro % 2n)) micro += 1n;
  // As a text: a number would not hold every amount exactly.
  return money.format(`${micro / MICRO}.${String(micro % MICRO).padStart(6, "0")}`);
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const data = part.startsWith("data: ") ? part.slice(6) : "";
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

function begin() {
  at("run").disabled = true;
  at("stop").hidden = false;
  at("problem").hidden = true;
  at("labels").hidden = true;
  at("answer").textContent = at("answer").dataset.empty;
  for (const id of ["input-tokens", "output-tokens", "cost", "first-token", "request-id"]) at(id).textContent = "–";
}

// The API speaks English; where the page does not, it says first what is meant.
function told({ code, message }, status) {
  const problems = JSON.parse(page.dataset.problems);
  const meaning = problems[`${status} ${code}`] ?? problems[code];
  return meaning ? `${meaning} (${message})` : message;
}

function fail(message) {
  at("problem").textContent = message;
  at("problem").hidden = false;
}
