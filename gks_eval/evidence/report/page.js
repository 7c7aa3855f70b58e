"use strict";
(() => {
  const PAGE = 50;
  const byId = (id) => document.getElementById(id);
  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };

  // Theme: the system's unless the button says otherwise.
  const system = matchMedia("(prefers-color-scheme: dark)");
  const setTheme = (dark) => {
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    byId("theme").setAttribute("aria-pressed", String(dark));
  };
  setTheme(system.matches);
  system.addEventListener("change", (event) => setTheme(event.matches));
  byId("theme").addEventListener("click", () =>
    setTheme(document.documentElement.dataset.theme !== "dark"));

  // Tables: numbers sort as numbers, dashes last, a third click restores the order.
  const value = (cell) => {
    const text = cell.textContent.trim().replace(/^</, "");
    const number = parseFloat(text.replace(/,/g, ""));
    return Number.isNaN(number) ? (text === "–" ? null : text.toLowerCase()) : number;
  };
  const compare = (a, b) => {
    if (a === null || b === null) return (a === null) - (b === null);
    if (typeof a === typeof b) return a < b ? -1 : a > b ? 1 : 0;
    return typeof a === "number" ? -1 : 1;
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    const original = [...body.rows];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.firstChild.addEventListener("click", () => {
      const next = { ascending: "", descending: "ascending" }[head.getAttribute("aria-sort")];
      const order = next === undefined ? "descending" : next;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      let rows = original;
      if (order) {
        head.setAttribute("aria-sort", order);
        const factor = order === "ascending" ? 1 : -1;
        rows = original.map((row) => [value(row.cells[column]), row]).sort(([a], [b]) =>
          a === null || b === null ? compare(a, b) : factor * compare(a, b)).map(([, row]) => row);
      }
      body.append(...rows);
    }));
  }

  // Samples: one page of rows is built at a time, an item's details when it is opened.
  const data = JSON.parse(byId("data").textContent);
  const [TASK, ID, PROMPT, CHOICES, GOLD, TARGET, VALUES, SCORES, TEXTS] = [...Array(9).keys()];
  const right = (item, run) => item[VALUES][run] === null ? null : item[VALUES][run] > 0;
  const kinds = [["all", "all", () => true],
    ["changed", "changed between runs", (item) => {
      const known = new Set(item[VALUES].filter((v) => v !== null));
      return known.size > 1;
    }]];
  data.runs.slice(1).forEach((name, index) => {
    const run = index + 1;
    kinds.push([`gain${run}`, `${name}: gained`, (item) =>
      item[VALUES][run] !== null && item[VALUES][0] !== null && item[VALUES][run] > item[VALUES][0]]);
    kinds.push([`loss${run}`, `${name}: lost`, (item) =>
      item[VALUES][run] !== null && item[VALUES][0] !== null && item[VALUES][run] < item[VALUES][0]]);
  });
  kinds.push(["wrong", "wrong in every run", (item) =>
    item[VALUES].every((v) => v === null || v <= 0)]);
  const option = (select, text, key) => {
    const node = make("option", "", text);
    node.value = key;
    select.append(node);
  };
  option(byId("f-task"), "all", "");
  data.tasks.forEach((name, index) => option(byId("f-task"), name, String(index)));
  kinds.forEach(([key, text]) => option(byId("f-kind"), text, key));

  let found = [];
  let page = 0;
  const details = (item) => {
    const box = make("div");
    box.append(make("div", "prompt", item[PROMPT]));
    if (item[CHOICES].length) {
      const scroll = make("div", "scroll");
      scroll.tabIndex = 0;
      const table = make("table");
      const head = table.createTHead().insertRow();
      for (const name of ["choice", ...data.runs]) {
        const cell = make("th", "", name);
        cell.scope = "col";
        head.append(cell);
      }
      const body = table.createTBody();
      item[CHOICES].forEach((choice, index) => {
        const row = body.insertRow();
        row.append(make("td", "choice", choice + (index === item[GOLD] ? "  ✓ gold" : "")));
        item[SCORES].forEach((scores) => {
          const known = scores.filter((one) => one !== null);
          const top = known.length && scores[index] === Math.max(...known);
          const text = scores[index] === undefined || scores[index] === null
            ? "–" : scores[index].toFixed(3);
          row.append(make("td", top ? "best" : "", text));
        });
      });
      scroll.append(table);
      box.append(scroll, make("p", "note", "Summed log-likelihoods; the highest is shaded."));
    }
    if (item[GOLD] < 0) box.append(make("p", "note", `Gold: ${item[TARGET]}`));
    data.runs.forEach((name, run) => {
      const score = item[VALUES][run];
      const line = make("p", score === null ? "" : score > 0 ? "right" : "wrong",
        `${name}: ${score === null ? "not run" : `score ${score}`}`);
      box.append(line);
      if (item[TEXTS][run]) box.append(make("div", "text", item[TEXTS][run]));
    });
    return box;
  };
  const show = () => {
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    page = Math.min(page, pages - 1);
    const rows = found.slice(page * PAGE, (page + 1) * PAGE).map((item) => {
      const row = make("li");
      const box = make("details");
      const summary = make("summary");
      summary.append(make("span", "where", `${data.tasks[item[TASK]]} ${item[ID]}`));
      summary.append(make("span", "start", item[PROMPT].slice(0, 300)));
      const marks = make("span", "marks");
      data.runs.forEach((name, run) => {
        const is = right(item, run);
        const mark = make("span", is ? "right" : "wrong", is === null ? "·" : is ? "✓" : "✗");
        mark.title = `${name}: ${is === null ? "not run" : is ? "right" : "wrong"}`;
        mark.setAttribute("role", "img");
        mark.setAttribute("aria-label", mark.title);
        marks.append(mark);
      });
      summary.append(marks);
      box.append(summary);
      box.addEventListener("toggle", () => {
        if (box.open && box.childElementCount === 1) box.append(details(item));
      });
      row.append(box);
      return row;
    });
    byId("list").replaceChildren(...rows);
    byId("page").textContent = `page ${page + 1} of ${pages}`;
    byId("prev").disabled = page === 0;
    byId("next").disabled = page >= pages - 1;
  };
  const filter = () => {
    const task = byId("f-task").value;
    const test = kinds.find(([key]) => key === byId("f-kind").value)[2];
    const text = byId("f-text").value.trim().toLowerCase();
    found = data.items.filter((item) => (task === "" || item[TASK] === Number(task)) && test(item) &&
      (!text || item[PROMPT].toLowerCase().includes(text) ||
        item[CHOICES].some((choice) => choice.toLowerCase().includes(text))));
    const left = data.total - data.items.length;
    byId("count").textContent = `${found.length.toLocaleString("en")} of ` +
      `${data.items.length.toLocaleString("en")} samples` +
      (left ? `; ${left.toLocaleString("en")} unchanged ones are left out of this page` : "");
    page = 0;
    show();
  };
  let timer = 0;
  byId("f-text").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(filter, 150);
  });
  byId("f-task").addEventListener("change", filter);
  byId("f-kind").addEventListener("change", filter);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("prev").addEventListener("click", () => { page -= 1; show(); });
  byId("next").addEventListener("click", () => { page += 1; show(); });
  filter();
})();
