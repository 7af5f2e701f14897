"use strict";
// Filters the examples of each benchmark by mark, category and text, and enlarges an image. The page works without it.
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
for (const image of document.querySelectorAll(".zoom")) {
  image.disabled = false;
  image.addEventListener("click", () => {
    const large = image.closest(".example").classList.toggle("large");
    image.setAttribute("aria-pressed", large);
  });
}
