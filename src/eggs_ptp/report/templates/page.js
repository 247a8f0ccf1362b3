"use strict";
// Sorts the tables of all matrices by the column whose head is clicked; without this script the page shows the same.
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const heads = [...table.tHead.rows[0].cells];
  const words = new Intl.Collator("en", { numeric: true });
  const value = (text) => (Number.isNaN(parseFloat(text)) ? -Infinity : parseFloat(text));
  heads.forEach((head, column) => {
    const isNumber = head.classList.contains("number");
    const text = (row) => row.cells[column].textContent;
    const compare = isNumber ? (a, b) => value(text(a)) - value(text(b)) : (a, b) => words.compare(text(a), text(b));
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const [first, second] = isNumber ? ["descending", "ascending"] : ["ascending", "descending"];
      const order = head.getAttribute("aria-sort") === first ? second : first;
      heads.forEach((column) => column.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort((a, b) => sign * compare(a, b)));
    });
  });
}
// Collapsed parts are printed too.
let opened = [];
window.addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  opened.forEach((details) => { details.open = true; });
});
window.addEventListener("afterprint", () => opened.forEach((details) => { details.open = false; }));
