"use strict";
// sorting of tables, choosing of deposits, and what the pictures show; the page reads well without any of it
(() => {
  const value = (cell) => {
    const text = cell.dataset.value ?? cell.textContent.trim();
    const number = parseFloat(text);
    return Number.isNaN(number) || !/^[-+\d.]/.test(text) ? text : number;
  };
  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === ""); // what is unknown comes last either way
    return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
      const falling = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const body = table.tBodies[0];
      const rows = [...body.rows].map((row) => [value(row.cells[column]), row]);
      rows.sort(([a], [b]) => (falling && a !== "" && b !== "" ? compare(b, a) : compare(a, b)));
      body.append(...rows.map(([, row]) => row));
    }));
  }

  const lesions = document.querySelector("table[data-lesions]");
  const report = { chosen: 1, choose, place: (number) => places(number) };
  window.report = report;
  if (!lesions) return;
  const row = (number) => lesions.querySelector(`tr[data-lesion="${number}"]`);
  const places = (number) => row(number)?.dataset.place.split(" ").map(Number);

  function choose(number, focus = false) {
    if (!row(number)) return;
    report.chosen = number;
    for (const one of document.querySelectorAll(".chosen")) one.classList.remove("chosen");
    for (const one of document.querySelectorAll(`[data-lesion="${number}"]`)) one.classList.add("chosen");
    for (const one of lesions.querySelectorAll(".choose")) one.setAttribute("aria-pressed", String(row(number).contains(one)));
    document.querySelector("[data-chosen]").textContent = number;
    const slices = document.getElementById(`slices-${number}`);
    document.querySelector("[data-slices]").replaceChildren(...(slices ? [slices.content.cloneNode(true)] : []));
    if (focus) row(number).querySelector(".choose").focus();
    document.dispatchEvent(new CustomEvent("chosen", { detail: number }));
  }
  document.addEventListener("click", (event) => {
    const near = event.target.closest("[data-lesion]");
    if (near) choose(Number(near.dataset.lesion));
  });
  lesions.addEventListener("keydown", (event) => {
    const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
    const next = step && event.target.closest("tr[data-lesion]")?.[step];
    if (!next) return;
    event.preventDefault();
    choose(Number(next.dataset.lesion), true);
  });
  row(1)?.classList.add("chosen");

  const controls = document.querySelector("form[data-pictures]");
  const views = document.querySelector("[data-views]");
  const show = () => {
    const by = controls.elements.colour.value;
    views.className = `views by-${by}${controls.elements.numbers.checked ? "" : " no-numbers"}${controls.elements.outlines.checked ? "" : " no-outlines"}`;
    document.querySelector(".for-size").hidden = by !== "size";
    document.querySelector(".for-region").hidden = by !== "region";
  };
  controls.addEventListener("change", show);
  show();
})();
