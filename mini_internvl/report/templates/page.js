"use strict";
// Filters the examples of each benchmark by mark, category and text, and enlarges images. The page works without it.
for (const part of document.querySelectorAll("[data-examples]")) {
  const bar = part.querySelector(".filter");
  const cards = [...part.querySelectorAll(".example")];
  const texts = cards.map((card) => card.textContent.replace(/\s+/g, " ").toLowerCase());
  const category = bar.querySelector("select");
  const search = bar.querySelector("input[type=search]");
  const said = part.querySelector("output");
  const apply = () => {
    const chosen = bar.querySelector("input[type=radio]:checked").value;
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    cards.forEach((card, place) => {
      const fits =
        (chosen === "all" || card.dataset.state === chosen) &&
        (!category || !category.value || card.dataset.labels.split(" ").includes(category.value)) &&
        words.every((word) => texts[place].includes(word));
      card.hidden = !fits;
      shown += fits;
    });
    said.textContent = shown === cards.length ? "" : `${shown} of these ${cards.length} fit`;
  };
  bar.classList.add("ready");
  bar.addEventListener("input", apply);
  apply();
}
const dialog = document.querySelector("dialog");
for (const shot of document.querySelectorAll(".shot")) {
  shot.disabled = false;
  shot.addEventListener("click", () => {
    const image = shot.querySelector("img");
    const frame = dialog.firstElementChild;
    frame.replaceChildren(...[...shot.children].map((child) => child.cloneNode(true)));
    frame.style.setProperty("--width", `${image.naturalWidth}px`);
    frame.style.setProperty("--ratio", image.naturalWidth / image.naturalHeight);
    dialog.showModal();
  });
}
dialog.addEventListener("click", () => dialog.close());
