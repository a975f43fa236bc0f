"use strict";
const $ = (id) => document.getElementById(id);
const log = $("log"), input = $("input"), form = $("form"), statusLine = $("status");
const dialog = $("settings"), settingsForm = $("settings-form");
const welcome = $("welcome");
let messages = [];
let running = null;

const settings = JSON.parse(localStorage.getItem("zmlx-settings") || "{}");
const key = () => sessionStorage.getItem("zmlx-key") || "";

function make(tag, name, text) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
}

function headers() {
  const all = { "content-type": "application/json" };
  if (key()) all.authorization = "Bearer " + key();
  return all;
}

// Code between backquotes gets elements of its own; everything else is text.
function show(node, text) {
  node.replaceChildren();
  text.split("```").forEach((part, i) => {
    if (i % 2) {
      const pre = make("pre");
      pre.append(make("code", "", part.replace(/^[^\n`]*\n/, "").replace(/\n$/, "")));
      node.append(pre);
      return;
    }
    if (i) part = part.replace(/^\n+/, "");
    part.split("`").forEach((piece, j, all) => {
      const isCode = j % 2 === 1 && j < all.length - 1 && piece && !piece.includes("\n");
      if (isCode) node.append(make("code", "", piece));
      else if (j % 2 === 1) node.append("`" + piece + (j < all.length - 1 ? "`" : ""));
      else if (piece) node.append(piece);
    });
  });
}

function atEnd() {
  return log.scrollHeight - log.scrollTop - log.clientHeight < 60;
}

function toEnd() {
  log.scrollTop = log.scrollHeight;
}

function turn(role) {
  welcome.remove();
  const node = make("section", "turn " + role);
  log.append(node);
  return node;
}

// An answer on the page: its parts appear when there is something to show.
class AnswerView {
  constructor() {
    this.node = turn("assistant");
    this.text = make("div", "text waiting");
    this.node.append(this.text);
    this.reasoning = "";
    this.content = "";
    this.calls = [];
    this.isPlanned = false;
  }
  think(text) {
    if (!this.details) {
      this.details = make("details");
      this.summary = make("summary", "", "Thinking…");
      this.thought = make("div", "text");
      this.details.append(this.summary, this.thought);
      this.node.prepend(this.details);
    }
    this.reasoning += text;
    this.plan();
  }
  say(text) {
    this.content += text;
    this.plan();
  }
  call(delta) {
    const call = (this.calls[delta.index] ||= { id: delta.id, name: "", args: "", node: null });
    if (delta.function.name) call.name = delta.function.name;
    call.args += delta.function.arguments || "";
    if (!call.node) {
      call.node = make("div", "call");
      this.node.append(call.node);
    }
    call.node.textContent = call.name + "(" + call.args + ")";
  }
  // Drawn once a frame, however fast the tokens come.
  plan() {
    if (this.isPlanned) return;
    this.isPlanned = true;
    requestAnimationFrame(() => this.draw());
  }
  draw() {
    this.isPlanned = false;
    const follow = atEnd();
    if (this.details) {
      this.thought.textContent = this.reasoning;
      if (this.content) this.summary.textContent = "Thought";
    }
    show(this.text, this.content.trimStart());
    if (follow) toEnd();
  }
  end(meta, isBad) {
    this.draw();
    this.text.classList.remove("waiting");
    if (this.details) this.summary.textContent = "Thought";
    if (meta) this.node.append(make("div", isBad ? "meta bad" : "meta", meta));
    toEnd();
  }
}

function request() {
  const list = settings.system ? [{ role: "system", content: settings.system }] : [];
  const body = { messages: list.concat(messages), stream: true, stream_options: { include_usage: true } };
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    if (settings[name] !== undefined && settings[name] !== "") body[name] = Number(settings[name]);
  }
  if (settings.thinking === false) body.reasoning_effort = "none";
  return body;
}

async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    held += value;
    const blocks = held.split("\n\n");
    held = blocks.pop();
    for (const block of blocks) {
      if (block.startsWith("data: ") && block !== "data: [DONE]") yield JSON.parse(block.slice(6));
    }
  }
}

function numbers(usage, timings) {
  const parts = [];
  if (usage) {
    parts.push(usage.completion_tokens + " tokens");
    const cached = usage.prompt_tokens_details.cached_tokens;
    parts.push("prompt " + usage.prompt_tokens + (cached ? " (" + cached + " cached)" : ""));
  }
  if (timings && timings.predicted_per_second) parts.unshift(timings.predicted_per_second.toFixed(1) + " tok/s");
  return parts.join(" · ");
}

async function answer() {
  const conversation = messages;
  running = new AbortController();
  document.body.classList.add("busy");
  $("send").setAttribute("aria-label", "Stop");
  update();
  const view = new AnswerView();
  toEnd();
  let meta = "", isBad = false, finish = null, n = 0, first = 0;
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST", headers: headers(), body: JSON.stringify(request()), signal: running.signal,
    });
    if (!response.ok) {
      const told = await response.json().catch(() => null);
      throw new Error(told && told.error ? told.error.message : "The server answered " + response.status);
    }
    for await (const chunk of eventsOf(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      const choice = chunk.choices[0];
      if (choice) {
        const delta = choice.delta;
        if (delta.reasoning_content) view.think(delta.reasoning_content);
        if (delta.content) view.say(delta.content);
        (delta.tool_calls || []).forEach((call) => view.call(call));
        finish = choice.finish_reason || finish;
        first ||= performance.now();
        n += 1;
        const seconds = (performance.now() - first) / 1000;
        if (seconds > 0.3) statusLine.textContent = (n / seconds).toFixed(1) + " tok/s";
      }
      if (chunk.usage) meta = numbers(chunk.usage, chunk.timings);
    }
    if (finish === "length") meta += " · cut at the limit";
  } catch (error) {
    isBad = error.name !== "AbortError";
    meta = isBad ? error.message : "Stopped";
  }
  view.end(meta, isBad);
  if (view.content || view.calls.length) conversation.push({ role: "assistant", content: view.content });
  else if (isBad && conversation === messages) input.value = input.value || conversation.pop().content;
  statusLine.textContent = "";
  running = null;
  document.body.classList.remove("busy");
  $("send").setAttribute("aria-label", "Send");
  update();
}

function update() {
  input.style.height = "auto";
  input.style.height = input.scrollHeight + "px";
  $("send").disabled = !running && !input.value.trim();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) return running.abort();
  const text = input.value.trim();
  if (!text) return;
  input.value = "";
  messages.push({ role: "user", content: text });
  const node = make("div", "text");
  show(node, text);
  turn("user").append(node);
  answer();
});

input.addEventListener("input", update);
input.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !running) {
    event.preventDefault();
    form.requestSubmit();
  }
});

$("new").addEventListener("click", () => {
  if (running) running.abort();
  messages = [];
  log.replaceChildren(welcome);
  input.focus();
});

$("open-settings").addEventListener("click", () => {
  for (const field of settingsForm.elements) {
    if (!field.name) continue;
    if (field.name === "key") field.value = key();
    else if (field.type === "checkbox") field.checked = settings[field.name] !== false;
    else field.value = settings[field.name] ?? "";
  }
  dialog.showModal();
});

dialog.addEventListener("close", () => {
  if (dialog.returnValue !== "save") return;
  for (const field of settingsForm.elements) {
    if (!field.name) continue;
    if (field.name === "key") sessionStorage.setItem("zmlx-key", field.value);
    else settings[field.name] = field.type === "checkbox" ? field.checked : field.value;
  }
  localStorage.setItem("zmlx-settings", JSON.stringify(settings));
  greet();
});

async function greet() {
  try {
    const response = await fetch("v1/models", { headers: headers() });
    if (response.status === 401) {
      statusLine.textContent = "The server wants an API key: see Settings.";
      return;
    }
    const list = await response.json();
    if (!response.ok) {
      statusLine.textContent = list.error.message;
      setTimeout(greet, 1000);
      return;
    }
    $("model").textContent = list.data[0].id;
    document.title = list.data[0].id + " · zmlx";
    statusLine.textContent = "";
  } catch {
    statusLine.textContent = "The server cannot be reached.";
    setTimeout(greet, 3000);
  }
}

update();
greet();
