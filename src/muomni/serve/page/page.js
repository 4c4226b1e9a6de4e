// The page: asks this server alone, by the API that every client uses, and shows what comes as it comes.
"use strict";

const $ = (id) => document.getElementById(id);
const made = (tag, text = "", cls = "") => {
  const element = document.createElement(tag);
  element.textContent = text;
  if (cls) element.className = cls;
  return element;
};
const state = { model: "", abilities: new Set(), missing: {}, messages: [], parts: [], abort: null, key: sessionStorage.getItem("muomni-key") || "" };

// --- asking ---------------------------------------------------------------------------------------------------

async function ask(path, options = {}) {
  const headers = { ...(options.body ? { "Content-Type": "application/json" } : {}), ...(state.key ? { Authorization: `Bearer ${state.key}` } : {}) };
  const reply = await fetch(path, { ...options, headers });
  if (reply.ok) return reply;
  if (reply.status === 401) wantKey();
  const told = await reply.json().catch(() => ({}));
  throw new Error(told.error?.message || `status ${reply.status}`);
}

function wantKey() {
  $("key-row").hidden = false;
  if (state.key) $("key-told").textContent = "That key is not the one of this server.";
  $("key").focus();
}

$("key-row").addEventListener("submit", (event) => {
  event.preventDefault();
  state.key = $("key").value.trim();
  sessionStorage.setItem("muomni-key", state.key);
  begin();
});

async function* eventsOf(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart()).join("\n");
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

// --- what answers ---------------------------------------------------------------------------------------------

async function begin() {
  try {
    const told = await (await ask("muomni/abilities")).json();
    state.model = told.model;
    state.abilities = new Set(told.abilities);
    state.missing = told.missing;
    $("key-row").hidden = true;
    $("model").textContent = told.model;
    document.title = `${told.model} · muOmni`;
    $("voice").replaceChildren(...told.voices.map((voice) => new Option(voice, voice)));
    $("voice").hidden = told.voices.length < 2;
    enable();
    certificate(await (await ask("muomni/certificate")).json());
  } catch (error) {
    $("certificate").replaceChildren(made("small", error.message));
    enable();
  }
}

const TOLD = { chat: "answer", audio: "hear", images: "see", speech: "speak" };

function enable() {
  const can = (name) => state.abilities.has(name);
  const reasons = [];
  const set = (name, ids, extra = "") => {
    const reason = !state.model ? "not known yet" : can(name) ? extra : `this run can't ${TOLD[name]}: stage ${state.missing[name]} is missing`;
    if (state.model && reason) reasons.push(reason);
    for (const id of ids) {
      $(id).disabled = Boolean(reason);
      $(id).title = reason;
    }
  };
  const noDevice = navigator.mediaDevices ? "" : "microphone and camera need https, or this machine's own browser";
  set("chat", ["send", "question"]);
  set("audio", ["record"], noDevice);
  set("images", ["camera"], noDevice);
  set("speech", ["aloud", "voice"]);
  $("pick").disabled = !can("images") && !can("audio");
  $("pick").title = $("pick").disabled ? "this run takes neither pictures nor sounds" : "";
  $("file").disabled = $("pick").disabled;
  $("cannot").textContent = [...new Set(reasons)].join(" · ");
}

function certificate(told) {
  const rows = told.stages.map((stage) => {
    const details = made("details", "", "proof-stage");
    const summary = made("summary");
    const count = (verdict) => stage.gates.filter((gate) => gate.verdict === verdict).length;
    const counts = ["green", "waived", "red"].filter(count).map((verdict) => `${count(verdict)} ${verdict}`);
    summary.append(made("i", "", `dot ${stage.verdict}`), made("span", stage.name), made("small", counts.join(", ") || stage.verdict));
    const table = made("table");
    for (const gate of stage.gates) {
      const row = table.insertRow();
      const name = row.insertCell();
      name.append(made("i", "", `dot ${gate.verdict}`), ` ${gate.name.replaceAll("_", " ")}`);
      if (gate.verdict !== "green") name.append(made("small", ` ${gate.verdict}${gate.why ? `: ${gate.why}` : ""}`));
      const value = row.insertCell();
      value.className = "num";
      value.textContent = `${typeof gate.value === "number" ? +gate.value.toPrecision(3) : "–"} ${gate.threshold ?? ""}`;
    }
    for (const each of stage.inherited) table.insertRow().insertCell().append(made("small", `waived below it: ${each.stage} ${each.gate}: ${each.why}`));
    details.append(summary, stage.gates.length || stage.inherited.length ? table : made("small", "No gates were judged here: nothing was proven."));
    return details;
  });
  if (told.report && !state.key) {
    const link = made("a", "The report of the run");
    link.href = "muomni/report";
    link.target = "_blank";
    link.rel = "noopener";
    rows.push(link);
  }
  $("certificate").replaceChildren(...rows);
}

// --- what goes along ------------------------------------------------------------------------------------------

const dataURL = (blob) => new Promise((done, failed) => {
  const reader = new FileReader();
  reader.onload = () => done(reader.result);
  reader.onerror = () => failed(reader.error);
  reader.readAsDataURL(blob);
});

async function attach(blob, name) {
  const isImage = blob.type.startsWith("image/");
  const needed = isImage ? "images" : "audio";
  if (!isImage && !blob.type.startsWith("audio/")) return say(`${name}: neither a picture nor a sound`);
  if (!state.abilities.has(needed)) return say(`This run can't ${TOLD[needed]}: stage ${state.missing[needed]} is missing`);
  const url = await dataURL(isImage ? await asPng(blob) : blob.type === "audio/wav" ? blob : await asWav(blob));
  state.parts.push({ kind: needed, url, name });
  shown();
  say(`${name} goes along`);
}

async function asPng(blob) {
  // What the browser opens, turned as its notes say and no larger than a model looks at, becomes PNG.
  const bitmap = await createImageBitmap(blob, { imageOrientation: "from-image" });
  const scale = Math.min(1, 1024 / Math.max(bitmap.width, bitmap.height));
  const canvas = made("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

async function asWav(blob) {
  const opened = await new OfflineAudioContext(1, 1, 48000).decodeAudioData(await blob.arrayBuffer());
  return wav([opened.getChannelData(0)], opened.sampleRate);
}

function wav(chunks, rate) {
  const count = chunks.reduce((sum, chunk) => sum + chunk.length, 0);
  const view = new DataView(new ArrayBuffer(44 + 2 * count));
  const text = (at, word) => [...word].forEach((letter, n) => view.setUint8(at + n, letter.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + 2 * count, true); text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, rate, true); view.setUint32(28, 2 * rate, true); view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  text(36, "data"); view.setUint32(40, 2 * count, true);
  let at = 44;
  for (const chunk of chunks) for (const sample of chunk) { view.setInt16(at, Math.max(-1, Math.min(1, sample)) * 32767, true); at += 2; }
  return new Blob([view], { type: "audio/wav" });
}

function medium(part) {
  const element = made(part.kind === "images" ? "img" : "audio");
  element.src = part.url;
  if (part.kind === "images") element.alt = part.name;
  else { element.controls = true; element.setAttribute("aria-label", part.name); }
  return element;
}

function shown() {
  $("attached").replaceChildren(...state.parts.map((part, n) => {
    const item = made("li");
    const remove = made("button", "Remove");
    remove.type = "button";
    remove.setAttribute("aria-label", `Remove ${part.name}`);
    remove.addEventListener("click", () => { state.parts.splice(n, 1); shown(); $("question").focus(); });
    item.append(medium(part), remove);
    return item;
  }));
}

const say = (text) => { $("spoken-status").textContent = text; };
const complain = (error) => { say(error.message); $("cannot").textContent = error.message; };
const attachAll = async (files) => { for (const file of files) await attach(file, file.name || "picture").catch(complain); };

$("pick").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", async (event) => { await attachAll([...event.target.files]); event.target.value = ""; });
addEventListener("dragover", (event) => { event.preventDefault(); $("composer").classList.add("over"); });
addEventListener("dragleave", () => $("composer").classList.remove("over"));
addEventListener("drop", (event) => { event.preventDefault(); $("composer").classList.remove("over"); attachAll([...event.dataTransfer.files]); });
addEventListener("paste", (event) => { if (event.clipboardData.files.length) { event.preventDefault(); attachAll([...event.clipboardData.files]); } });

// --- microphone and camera ------------------------------------------------------------------------------------

let recording = null;

async function record() {
  const stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false } });
  const context = new AudioContext();
  const source = context.createMediaStreamSource(stream);
  const tap = context.createScriptProcessor(4096, 1, 1);
  const chunks = [];
  tap.onaudioprocess = (event) => chunks.push(event.inputBuffer.getChannelData(0).slice());
  source.connect(tap);
  tap.connect(context.destination);
  recording = { stream, context, chunks, tap };
  $("record").textContent = "Stop recording";
  $("record").setAttribute("aria-pressed", "true");
  say("Recording");
}

async function recorded() {
  const { stream, context, chunks, tap } = recording;
  recording = null;
  tap.disconnect();
  stream.getTracks().forEach((track) => track.stop());
  await context.close();
  $("record").textContent = "Record";
  $("record").setAttribute("aria-pressed", "false");
  await attach(wav(chunks, context.sampleRate), "recording");
}

$("record").addEventListener("click", () => (recording ? recorded() : record()).catch(complain));

let filming = null;
$("camera").addEventListener("click", async () => {
  try {
    filming = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    $("video").srcObject = filming;
    await $("video").play();
    $("camera-box").hidden = false;
    $("shoot").focus();
  } catch (error) { complain(error); }
});
function dark() {
  filming?.getTracks().forEach((track) => track.stop());
  filming = null;
  $("camera-box").hidden = true;
  $("camera").focus();
}
$("camera-off").addEventListener("click", dark);
$("shoot").addEventListener("click", async () => {
  const canvas = made("canvas");
  [canvas.width, canvas.height] = [$("video").videoWidth, $("video").videoHeight];
  canvas.getContext("2d").drawImage($("video"), 0, 0);
  const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
  dark();
  await attach(blob, "picture").catch(complain);
});

// --- sound that comes in pieces -------------------------------------------------------------------------------

const RATE_HZ = 24000; // of bare samples in this API

class Player {
  constructor() {
    this.context = new AudioContext({ sampleRate: RATE_HZ });
    this.until = 0;
    this.chunks = [];
    this.odd = null;
  }
  push(base64) {
    let bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    if (this.odd !== null) bytes = Uint8Array.of(this.odd, ...bytes);
    this.odd = bytes.length % 2 ? bytes[bytes.length - 1] : null;
    const view = new DataView(bytes.buffer, 0, bytes.length - (bytes.length % 2));
    const samples = Float32Array.from({ length: view.byteLength / 2 }, (_, n) => view.getInt16(2 * n, true) / 32768);
    if (!samples.length) return;
    this.chunks.push(samples);
    const buffer = this.context.createBuffer(1, samples.length, RATE_HZ);
    buffer.copyToChannel(samples, 0);
    const source = this.context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.context.destination);
    this.until = Math.max(this.until, this.context.currentTime + 0.05);
    source.start(this.until);
    this.until += buffer.duration;
  }
  stop() { if (this.context.state !== "closed") this.context.close(); }
}

// --- a question and its answer --------------------------------------------------------------------------------

function turn(who, cls) {
  $("empty")?.remove();
  const article = made("article", "", `turn ${cls}`);
  article.append(made("small", who));
  $("turns").append(article);
  return article;
}

function content(text, parts) {
  const media = parts.map((part) => part.kind === "images"
    ? { type: "image_url", image_url: { url: part.url } }
    : { type: "input_audio", input_audio: { data: part.url.split(",")[1], format: "wav" } });
  return media.length ? [...media, ...(text ? [{ type: "text", text }] : [])] : text;
}

let player = null;

async function send() {
  const text = $("question").value.trim();
  if (state.abort || !state.model || (!text && !state.parts.length)) return;
  const parts = state.parts.splice(0);
  $("question").value = "";
  shown();
  const mine = turn("you", "mine");
  mine.append(...parts.map(medium));
  if (text) mine.append(made("p", text));
  state.messages.push({ role: "user", content: content(text, parts) });
  const theirs = turn(state.model, "writing");
  const words = made("p");
  theirs.append(words);
  const isAloud = $("aloud").checked && !$("aloud").disabled;
  player?.stop();
  player = isAloud ? new Player() : null;
  state.abort = new AbortController();
  busy(true);
  announced = 0;
  const start = performance.now();
  const times = {};
  const mark = (name) => { times[name] ??= performance.now() - start; };
  let answer = "", usage = null, finish = null, spoken = null, failure = null;
  try {
    const body = { model: state.model, messages: state.messages, stream: true, stream_options: { include_usage: true } };
    if (isAloud) Object.assign(body, { modalities: ["text", "audio"], audio: { voice: $("voice").value || "default", format: "pcm16" } });
    const reply = await ask("v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal: state.abort.signal });
    for await (const event of eventsOf(reply)) {
      if (event.error) throw new Error(event.error.message);
      usage = event.usage || usage;
      const choice = event.choices?.[0];
      if (!choice) continue;
      const piece = choice.delta.content || choice.delta.audio?.transcript || "";
      spoken = choice.delta.audio?.id || spoken;
      if (piece) { mark("first words"); answer += piece; words.textContent = answer; follow(); aloudTo(answer); times["last words"] = performance.now() - start; }
      if (choice.delta.audio?.data) { mark("first sound"); player.push(choice.delta.audio.data); times["last sound"] = performance.now() - start; }
      finish = choice.finish_reason || finish;
    }
    mark("whole answer");
  } catch (error) {
    failure = error.name === "AbortError" ? "stopped" : error.message;
    player?.stop();
    theirs.append(made("span", failure, failure === "stopped" ? "quiet" : "error"));
    mark("whole answer");
  }
  theirs.classList.remove("writing");
  if (player?.chunks.length) {
    const url = await dataURL(wav(player.chunks, RATE_HZ));
    theirs.append(medium({ kind: "audio", url, name: "the answer, spoken" }));
  }
  if (!answer && !failure) theirs.append(made("span", "an empty answer", "quiet"));
  if (answer) state.messages.push({ role: "assistant", content: answer });
  else state.messages.pop();
  state.abort = null;
  busy(false);
  say(failure || answer.slice(announced) || (answer ? "The answer is there" : "An empty answer"));
  trace(usage, times, failure || finish);
  follow();
}

function busy(is) {
  $("stop").hidden = !is;
  $("send").hidden = is;
  if (is) say("Answering");
}
// Screen readers are given whole sentences as they come: a live region that changes with each token is read as stutter.
let announced = 0;
function aloudTo(answer) {
  const end = Math.max(...[".", "!", "?", "\n"].map((mark) => answer.lastIndexOf(mark))) + 1;
  if (end <= announced) return;
  say(answer.slice(announced, end));
  announced = end;
}
const follow = () => $("turns").lastElementChild?.scrollIntoView({ block: "nearest" });

function trace(usage, times, how) {
  const table = made("table");
  const head = (text) => { const cell = made("th", text); cell.colSpan = 2; table.insertRow().append(cell); };
  const row = (name, value) => { const line = table.insertRow(); line.insertCell().textContent = name; line.append(made("td", value, "num")); };
  if (usage) {
    head("Tokens read");
    const read = usage.prompt_tokens_details;
    for (const [name, key] of [["text", "text_tokens"], ["picture", "image_tokens"], ["sound", "audio_tokens"]]) row(name, read[key] ?? 0);
    head("Tokens written");
    const wrote = usage.completion_tokens_details;
    row("text", wrote.text_tokens ?? 0);
    row("sound", wrote.audio_tokens ?? 0);
  }
  head("Times, as this page saw them");
  for (const [name, ms] of Object.entries(times).sort((one, other) => one[1] - other[1])) row(name, `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`);
  row("ended by", how || "–");
  $("trace").replaceChildren(table);
}

$("composer").addEventListener("submit", (event) => { event.preventDefault(); send(); });
$("question").addEventListener("keydown", (event) => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); } });
$("stop").addEventListener("click", () => { state.abort?.abort(); player?.stop(); $("question").focus(); });
addEventListener("keydown", (event) => { if (event.key === "Escape") { if (filming) dark(); state.abort?.abort(); player?.stop(); } });
$("fresh").addEventListener("click", () => { state.abort?.abort(); player?.stop(); state.messages = []; state.parts = []; shown(); $("turns").replaceChildren(); $("question").focus(); });

// --- a run in training ----------------------------------------------------------------------------------------

let timer = null, version = "";
const spell = (s) => (s < 60 ? `${Math.round(s)} s` : s < 3600 ? `${Math.round(s / 60)} min` : `${(s / 3600).toFixed(1)} h`);

async function poll() {
  clearTimeout(timer);
  if ($("train").hidden) return;
  try {
    const chosen = $("stage").value;
    const told = await (await ask(`muomni/training?stage=${encodeURIComponent(chosen)}&seen=${version}`)).json();
    if (!told.stages.length) {
      $("progress").textContent = "This folder holds networks alone: no stage of it was, or is, in training.";
      $("stage").disabled = true;
      return;
    }
    $("stage").disabled = false;
    if ([...$("stage").options].map((each) => each.value).join() !== told.stages.map((each) => each.name).join())
      $("stage").replaceChildren(...told.stages.map((each) => new Option(each.name, each.name)));
    for (const [n, each] of told.stages.entries()) $("stage").options[n].textContent = `${each.name}: ${each.is_running ? "in training" : each.verdict}`;
    $("stage").value = told.stage;
    const steps = told.steps ? `step ${told.step} of ${told.steps}` : `step ${told.step}`;
    $("progress").textContent = [steps, told.is_running ? "in training" : told.verdict, told.eta_s === null ? "" : `${spell(told.eta_s)} left`].filter(Boolean).join(" · ");
    $("bar").hidden = !told.steps;
    $("bar").value = told.steps ? told.step / told.steps : 0;
    if (told.html !== null) $("followed").innerHTML = told.html;
    version = told.version;
  } catch (error) {
    $("progress").textContent = error.message;
  }
  timer = setTimeout(poll, 3000);
}
$("stage").addEventListener("change", () => { version = ""; poll(); });

// --- views and themes -----------------------------------------------------------------------------------------

function view(name) {
  for (const each of ["talk", "train"]) {
    $(each).hidden = each !== name;
    $(`tab-${each}`).setAttribute("aria-selected", each === name);
    $(`tab-${each}`).tabIndex = each === name ? 0 : -1;
  }
  if (name === "train") poll();
}
for (const each of ["talk", "train"]) {
  $(`tab-${each}`).addEventListener("click", () => { location.hash = each; });
  $(`tab-${each}`).addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    const other = each === "talk" ? "train" : "talk";
    location.hash = other;
    $(`tab-${other}`).focus();
  });
}
const byHash = () => view(location.hash === "#train" ? "train" : "talk");
addEventListener("hashchange", byHash);

const night = matchMedia("(prefers-color-scheme: dark)");
function paint() {
  const chosen = $("theme").value;
  document.documentElement.dataset.theme = chosen === "auto" ? (night.matches ? "dark" : "light") : chosen;
}
$("theme").value = localStorage.getItem("muomni-theme") || "auto";
$("theme").addEventListener("change", () => { localStorage.setItem("muomni-theme", $("theme").value); paint(); });
night.addEventListener("change", paint);
paint();
byHash();
begin();
