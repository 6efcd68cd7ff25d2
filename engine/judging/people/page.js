"use strict";
// Labels are a list, one for each row of the page from the first on: undo takes the last one away.
const batch = JSON.parse(document.getElementById("batch").textContent);
const part = (id) => document.getElementById(id);
const LEVELS = ["significantly_better", "better", "slightly_better", "marginally_better"];
const WORDS = ["significantly", "clearly", "slightly", "marginally"];
const UNSAFE = /[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]|\p{Cs}/gu;
const STORED = `alignloop/${batch.batch}/${batch.person}`;
let labels = [], edits = false, editing = null, started = performance.now(), saved = 0;

function keep() {
  try {
    localStorage.setItem(STORED, JSON.stringify(labels));
  } catch {
    warn("This browser does not keep your work: save the file (d) before you close the page.");
  }
}

function restore() {
  try {
    const found = JSON.parse(localStorage.getItem(STORED) || "[]");
    if (Array.isArray(found) && found.every((label, place) => label.row === batch.rows[place]?.row)) labels = found;
  } catch { /* nothing was kept */ }
}

function warn(text) {
  part("problem").textContent = text;
  part("problem").hidden = false;
}

function clean(text) {
  return text.replace(/\r\n?/g, "\n");
}

// Shows a text as text: what could reorder or hide the rest of it is shown as its escape.
function write(element, text) {
  element.replaceChildren();
  let end = 0;
  const given = clean(text);
  for (const match of given.matchAll(UNSAFE)) {
    const code = match[0].charCodeAt(0), escape = document.createElement("span");
    escape.className = "escape";
    escape.textContent = code < 256 ? "\\x" + code.toString(16).padStart(2, "0") : "\\u" + code.toString(16).padStart(4, "0");
    element.append(given.slice(end, match.index), escape);
    end = match.index + match[0].length;
  }
  element.append(given.slice(end));
  element.dir = "auto";
}

function show() {
  const done = labels.length, all = batch.rows.length, row = batch.rows[done];
  const skipped = labels.filter((label) => label.verdict === "skipped").length;
  part("bar").max = Math.max(1, all);
  part("bar").value = done;
  part("count").textContent = `${done} of ${all} done` + (skipped ? `, ${skipped} skipped` : "") +
    (done && saved === done ? ", saved" : "");
  part("row").hidden = !row || editing !== null;
  part("editor").hidden = editing === null;
  part("done").hidden = Boolean(row);
  for (const button of [...part("scale").children, part("skip"), part("edit")]) button.disabled = !row || editing !== null;
  part("undo").disabled = !done || editing !== null;
  part("edit").setAttribute("aria-pressed", String(edits));
  if (!row || editing !== null) return;
  part("request").replaceChildren(...row.prompt.flatMap((turn) => {
    const role = document.createElement("p"), text = document.createElement("div");
    role.className = "role";
    role.textContent = turn.role;
    text.className = "text";
    write(text, turn.content);
    return row.prompt.length > 1 ? [role, text] : [text];
  }));
  write(part("a"), row.answers[0]);
  write(part("b"), row.answers[1]);
}

function next(label) {
  const row = batch.rows[labels.length], seconds = Math.round(performance.now() - started) / 1000;
  labels.push({ row: row.row, first: row.first, ...label, seconds });
  edits = false;
  keep();
  restart();
}

function restart() {
  started = performance.now();
  show();
  scrollTo(0, 0);
}

// The key 1 is "A is significantly better", 5 a tie, 9 "B is significantly better".
function choose(key) {
  const row = batch.rows[labels.length];
  if (!row) return;
  if (key === 5) return next({ verdict: "tie" });
  const side = key < 5 ? 0 : 1, other = row.first === "one" ? "other" : "one";
  const label = { verdict: side ? other : row.first, strength: LEVELS[side ? 9 - key : key - 1] };
  if (!edits) return next(label);
  editing = { label, before: clean(row.answers[side]).replace(UNSAFE, "") };
  part("editing").textContent = `Improve answer ${"AB"[side]}`;
  part("text").value = editing.before;
  show();
  part("text").focus();
}

function endEditing(keeps) {
  const { label, before } = editing, text = part("text").value;
  editing = null;
  if (!keeps) return show();
  next(text.trim() && text.trim() !== before.trim() ? { ...label, edited: text } : label);
}

function undo() {
  labels.pop();
  keep();
  restart();
}

function save() {
  const head = { format: batch.format, run: batch.run, step: batch.step, batch: batch.batch, person: batch.person };
  const lines = [head, ...labels, { end: true, labels: labels.length }].map((line) => JSON.stringify(line) + "\n");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
  link.download = `${batch.person}.labels.jsonl`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  saved = labels.length;
  show();
}

function help() {
  part("help").hidden = !part("help").hidden;
  part("ask").setAttribute("aria-expanded", String(!part("help").hidden));
  scrollTo(0, 0);
}

const ACTIONS = {
  e: ["edit", () => { edits = !edits; show(); }],
  s: ["skip", () => next({ verdict: "skipped" })],
  u: ["undo", undo],
  d: ["save", save],
  "?": ["ask", help],
};

addEventListener("keydown", (event) => {
  if (editing !== null) {
    if (event.key === "Escape") endEditing(false);
    else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) endEditing(true);
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const [id, act] = ACTIONS[event.key.toLowerCase()] || [], isChoice = /^[1-9]$/.test(event.key);
  if (!isChoice && !id) return;
  event.preventDefault(); // else the key is also typed into the editor that it opens
  if (isChoice) choose(Number(event.key));
  else if (!part(id).disabled) act();
});
addEventListener("beforeunload", (event) => {
  if (labels.length && saved !== labels.length && !part("problem").hidden) event.preventDefault();
});
for (let key = 1; key <= 9; key++) {
  const button = document.createElement("button"), word = WORDS[key < 5 ? key - 1 : 9 - key];
  button.type = "button";
  button.textContent = String(key);
  button.className = key < 5 ? "a" : key > 5 ? "b" : "";
  button.title = key === 5 ? "both are equally good" : `${key < 5 ? "A" : "B"} is ${word} better`;
  button.setAttribute("aria-label", button.title);
  button.addEventListener("click", () => choose(key));
  part("scale").append(button);
}
for (const [id, act] of Object.values(ACTIONS)) part(id).addEventListener("click", act);
part("keep").addEventListener("click", () => endEditing(true));
part("back").addEventListener("click", () => endEditing(false));
part("who").textContent = `${batch.person}, ${batch.step} of ${batch.run}`;
if (batch.rubric) {
  write(part("rubric"), batch.rubric);
  part("rubric").hidden = false;
}
restore();
if (!labels.length) help();
show();
