"use strict";

const byId = (id) => document.getElementById(id);

// ---- chat -----------------------------------------------------------------------------------

let conversation = [];
let asking = null; // an AbortController while an answer comes

function addMessage(role, text) {
  const message = document.createElement("p");
  const name = document.createElement("b");
  const body = document.createElement("span");
  message.className = "message";
  name.textContent = role;
  body.textContent = text;
  message.append(name, body);
  byId("messages").append(message);
  scrollDown();
  return body;
}

function scrollDown() {
  const box = byId("messages");
  box.scrollTop = box.scrollHeight;
}

function setAsking(controller) {
  asking = controller;
  byId("send").disabled = controller !== null;
  byId("stop").disabled = controller === null;
}

// The JSON of each server-sent event of a response.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

async function answer(body) {
  const response = await fetch("/v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    signal: asking.signal,
    body: JSON.stringify({
      messages: conversation,
      stream: true,
      temperature: Number(byId("temperature").value),
      max_tokens: Number(byId("max-tokens").value) || 1,
    }),
  });
  if (!response.ok) throw new Error((await response.json()).error.message);
  for await (const chunk of events(response)) {
    if (chunk.error) throw new Error(chunk.error.message);
    for (const choice of chunk.choices) body.textContent += choice.delta.content ?? "";
    scrollDown();
  }
}

async function ask(text) {
  conversation.push({ role: "user", content: text });
  addMessage("you", text);
  const body = addMessage("model", "");
  setAsking(new AbortController());
  try {
    await answer(body);
  } catch (error) {
    if (error.name !== "AbortError") addMessage("error", error.message).className = "error";
  }
  conversation.push({ role: "assistant", content: body.textContent });
  setAsking(null);
  byId("text").focus();
}

function send() {
  const text = byId("text").value.trim() || byId("text").placeholder;
  if (asking) return;
  byId("text").value = "";
  ask(text);
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
byId("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
byId("stop").addEventListener("click", () => asking?.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") asking?.abort();
});
byId("clear").addEventListener("click", () => {
  asking?.abort();
  conversation = [];
  byId("messages").replaceChildren();
});

// ---- scheduler ------------------------------------------------------------------------------

const PHASES = ["waiting", "running", "preempted"];
const rates = []; // tokens a second, newest last
let last = null;

function showCounts(stats) {
  const ms = (seconds) => (seconds == null ? "–" : `${(seconds * 1e3).toFixed(1)} ms`);
  const used = stats.num_blocks - stats.num_free_blocks;
  const preempted = (stats.requests ?? []).filter((request) => request[1] === 2).length;
  const counts = {
    running: stats.num_running,
    waiting: stats.num_waiting,
    "of them preempted": preempted,
    "tokens/s": rates.length ? Math.round(rates[rates.length - 1]) : 0,
    "TTFT, median": ms(stats.ttft_s),
    "ITL, median": ms(stats.itl_s),
    "blocks in use": `${used} / ${stats.num_blocks}`,
    "blocks cached": stats.num_cached_blocks,
    preemptions: stats.num_preemptions,
  };
  byId("counts").replaceChildren(
    ...Object.entries(counts).map(([name, value]) => {
      const entry = document.createElement("div");
      const term = document.createElement("dt");
      const detail = document.createElement("dd");
      term.textContent = name;
      detail.textContent = String(value);
      entry.append(term, detail);
      return entry;
    }),
  );
}

function sized(canvas) {
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.round(canvas.clientWidth * scale);
  canvas.height = Math.round(canvas.clientHeight * scale);
  return canvas.getContext("2d");
}

function ownerColour(index) {
  return `hsl(${(index * 137.5) % 360} 65% 52%)`;
}

// `cells` is base64, a byte a cell: 0 free, 1 cached, 2 shared, 3.. an owner's colour.
function drawBlocks(cells, blocksPerCell) {
  const states = Uint8Array.from(atob(cells), (c) => c.charCodeAt(0));
  const canvas = byId("blocks");
  const context = sized(canvas);
  const style = getComputedStyle(document.documentElement);
  const fixed = ["--free", "--cached", "--shared"].map((name) => style.getPropertyValue(name));
  const size = Math.max(2, Math.floor(Math.sqrt((canvas.width * canvas.height) / states.length)));
  const columns = Math.max(1, Math.floor(canvas.width / size));
  const gap = size > 4 ? 1 : 0;
  states.forEach((state, i) => {
    context.fillStyle = state < 3 ? fixed[state] : ownerColour(state - 3);
    context.fillRect((i % columns) * size, Math.floor(i / columns) * size, size - gap, size - gap);
  });
  const count = (test) => states.reduce((sum, state) => sum + (test(state) ? 1 : 0), 0);
  const every = blocksPerCell > 1 ? `, one cell for ${blocksPerCell} blocks` : "";
  byId("blocks-text").textContent =
    `${count((s) => s >= 3)} owned, ${count((s) => s === 2)} shared, ` +
    `${count((s) => s === 1)} cached, ${count((s) => s === 0)} free${every}`;
}

function drawRate() {
  const canvas = byId("rate");
  const context = sized(canvas);
  const top = Math.max(1, ...rates);
  context.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--accent");
  context.lineWidth = window.devicePixelRatio || 1;
  context.beginPath();
  rates.forEach((rate, i) => {
    context.lineTo((i / 119) * canvas.width, canvas.height - 2 - (rate / top) * (canvas.height - 4));
  });
  context.stroke();
}

function showRequests(requests) {
  byId("requests").replaceChildren(
    ...requests.map(([id, phase, prompt, computed, output, blocks]) => {
      const row = document.createElement("tr");
      for (const value of [id, PHASES[phase], prompt, computed, output, blocks]) {
        const cell = document.createElement("td");
        cell.textContent = String(value);
        row.append(cell);
      }
      return row;
    }),
  );
}

function show(stats) {
  const now = performance.now();
  if (last) rates.push(((stats.num_output_tokens - last.tokens) * 1e3) / (now - last.at));
  last = { tokens: stats.num_output_tokens, at: now };
  if (rates.length > 120) rates.shift();
  byId("model").textContent = stats.model;
  byId("state").textContent = stats.trouble ?? "ready";
  showCounts(stats);
  drawRate();
  if (stats.cells) drawBlocks(stats.cells, stats.blocks_per_cell);
  if (stats.requests) showRequests(stats.requests);
}

const source = new EventSource("/stats?blocks=1");
source.addEventListener("message", (event) => show(JSON.parse(event.data)));
source.addEventListener("error", () => {
  byId("state").textContent = "not connected";
});
