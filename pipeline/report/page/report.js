"use strict";
// The page is complete without this script: it adds the search, the arrows of one step, and a reload while the run goes on.
const store = {
  get(key) { try { return sessionStorage.getItem(key); } catch { return null; } },
  set(key, value) { try { sessionStorage.setItem(key, value); } catch { /* a browser that keeps nothing */ } },
};
const answers = [...document.querySelectorAll(".answer")];
const search = document.getElementById("search"), filter = document.getElementById("filter");
function show() {
  const words = search.value.toLowerCase(), kind = filter.value;
  let count = 0;
  for (const answer of answers) {
    answer.hidden = (kind && answer.dataset.change !== kind) || !answer.textContent.toLowerCase().includes(words);
    count += answer.hidden ? 0 : 1;
  }
  document.getElementById("count").textContent = `${count} of ${answers.length}`;
  store.set("search", search.value);
  store.set("filter", kind);
}
if (search) {
  search.value = store.get("search") || "";
  filter.value = store.get("filter") || "";
  search.addEventListener("input", show);
  filter.addEventListener("change", show);
  show();
}
for (const node of document.querySelectorAll("[data-step]")) {
  const edges = document.querySelectorAll(`[data-from="${node.dataset.step}"], [data-to="${node.dataset.step}"]`);
  const mark = (on) => edges.forEach((edge) => edge.classList.toggle("on", on));
  for (const name of ["mouseenter", "focus"]) node.addEventListener(name, () => mark(true));
  for (const name of ["mouseleave", "blur"]) node.addEventListener(name, () => mark(false));
}
function open() {
  const step = location.hash && document.getElementById(location.hash.slice(1));
  if (!step) return;
  for (let one = step; one; one = one.parentElement.closest("details")) one.open = true;
  step.scrollIntoView();
}
addEventListener("hashchange", open);
addEventListener("beforeprint", () => { for (const one of document.querySelectorAll("#warnings")) one.open = true; });
open();
const nameOf = (details) => details.id || details.querySelector("summary").textContent;
const seconds = Number(document.body.dataset.refresh);
if (seconds) {
  const top = store.get("top"), opened = JSON.parse(store.get("opened") || "[]");
  const every = [...document.querySelectorAll("details")];
  every.forEach((one) => { if (opened.includes(nameOf(one))) one.open = true; });
  if (top) scrollTo(0, Number(top));
  setTimeout(() => {
    store.set("top", String(scrollY));
    store.set("opened", JSON.stringify(every.filter((one) => one.open).map(nameOf)));
    location.reload();
  }, seconds * 1000);
}
