"use strict";
// Sorts, filters and turns the objects of a comparison. Everything that it shows is in the page already.
const FRAMES_ACROSS = 6;
const MILLISECONDS_PER_FRAME = 250;
const body = document.querySelector("#objects tbody");
const rows = [...body.rows];
const metric = document.querySelector("#metric");
const play = document.querySelector("#play");
let timer = 0;
let frame = 0;
let sorted = { by: "", sign: 1 };

function valueOf(cell) {
  const text = (cell.dataset.values ?? "").split(" ")[Number(metric.value)];
  return text ? Number(text) : NaN;
}

function showValues() {
  for (const row of rows) {
    for (const cell of row.querySelectorAll("td")) {
      const value = valueOf(cell);
      cell.querySelector(".value").textContent = Number.isNaN(value) ? "" : value.toFixed(4);
    }
  }
}

function compare(a, b) {
  if (sorted.by === "prompt") return a.dataset.prompt.localeCompare(b.dataset.prompt) || a.dataset.order - b.dataset.order;
  const [x, y] = [a, b].map((row) => valueOf(row.querySelectorAll("td")[Number(sorted.by)]));
  if (Number.isNaN(x) || Number.isNaN(y)) return sorted.sign * (Number.isNaN(x) - Number.isNaN(y)); // they stay last
  return x - y;
}

function sortRows() {
  if (!sorted.by) return;
  body.append(...rows.toSorted((a, b) => sorted.sign * compare(a, b)));
}

for (const button of document.querySelectorAll("[data-sort]")) {
  button.addEventListener("click", () => {
    const by = button.dataset.sort;
    sorted = { by, sign: sorted.by === by ? -sorted.sign : by === "prompt" ? 1 : -1 };
    for (const head of document.querySelectorAll("#objects thead th")) head.removeAttribute("aria-sort");
    button.closest("th").setAttribute("aria-sort", sorted.sign > 0 ? "ascending" : "descending");
    sortRows();
  });
}

metric.addEventListener("change", () => { showValues(); sortRows(); });

document.querySelector("#controls").addEventListener("submit", (event) => event.preventDefault());
document.querySelector("#filter").addEventListener("input", (event) => {
  const words = event.target.value.toLowerCase().split(/\s+/);
  for (const row of rows) row.hidden = !words.every((word) => row.dataset.prompt.toLowerCase().includes(word));
  document.querySelector("#count").textContent = `${rows.filter((row) => !row.hidden).length} rows`;
});

function turn() {
  frame += 1;
  for (const image of document.querySelectorAll(".turn img")) {
    if (!image.naturalWidth) continue;
    const down = Math.max(1, Math.round((image.naturalHeight / image.naturalWidth) * FRAMES_ACROSS));
    const shown = frame % (FRAMES_ACROSS * down);
    const [x, y] = [shown % FRAMES_ACROSS, Math.floor(shown / FRAMES_ACROSS)];
    image.style.transform = `translate(${(-100 * x) / FRAMES_ACROSS}%, ${(-100 * y) / down}%)`;
  }
}

play.addEventListener("click", () => {
  clearInterval(timer);
  timer = timer ? 0 : setInterval(turn, MILLISECONDS_PER_FRAME);
  play.setAttribute("aria-pressed", String(timer !== 0));
});
