// Sorts the cards by what the list names; the order in the file is the first one.
"use strict";
(() => {
  const list = document.getElementById("sort");
  const gallery = document.getElementById("gallery");
  const cards = [...gallery.children];
  list.addEventListener("change", () => {
    const [key, direction] = list.value.split(" ");
    const value = (card) => {
      const text = card.getAttribute(`data-${key}`);
      return text === null || text === "" ? -Infinity : Number(text) * (direction === "up" ? 1 : -1);
    };
    const sorted = key === "listed" ? cards : [...cards].sort((a, b) => value(b) - value(a));
    gallery.replaceChildren(...sorted);
  });
})();
