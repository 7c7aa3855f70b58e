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

  // Theme: the system's until the button is pressed; the button names the other one.
  const system = matchMedia("(prefers-color-scheme: dark)");
  const button = byId("theme");
  let chosen = false;
  const setTheme = (dark) => {
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    button.textContent = dark ? "Light theme" : "Dark theme";
  };
  setTheme(system.matches);
  button.hidden = false;
  system.addEventListener("change", (event) => chosen || setTheme(event.matches));
  button.addEventListener("click", () => {
    chosen = true;
    setTheme(document.documentElement.dataset.theme !== "dark");
  });

  // Paper has no folds to click: all open for printing, and close again.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open], #list *)")];
    opened.forEach((fold) => { fold.open = true; });
  });
  addEventListener("afterprint", () => opened.forEach((fold) => { fold.open = false; }));

  // Tables: numbers sort as numbers, dashes last, a third click restores the order. The rows of one
  // task stay together: they are sorted among themselves, then the tasks by their first row.
  const value = (cell) => {
    const text = (cell.querySelector(".value") || cell).textContent.trim().replace(/^</, "");
    const number = parseFloat(text.replace(/,/g, ""));
    return Number.isNaN(number) ? (text === "–" ? null : text.toLowerCase()) : number;
  };
  const compare = (a, b) => {
    if (a === null || b === null) return (a === null) - (b === null);
    if (typeof a === typeof b) return a < b ? -1 : a > b ? 1 : 0;
    return typeof a === "number" ? -1 : 1;
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const original = [...table.tBodies].map((body) =>
      ({ body, name: body.rows[0].cells[0], rows: [...body.rows] }));
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.firstChild.addEventListener("click", () => {
      const next = { ascending: "", descending: "ascending" }[head.getAttribute("aria-sort")];
      const order = next === undefined ? "descending" : next;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      if (order) head.setAttribute("aria-sort", order);
      const factor = order === "ascending" ? 1 : -1;
      const sorted = (entries) => !order ? entries : [...entries].sort((a, b) =>
        a.key === null || b.key === null ? compare(a.key, b.key) : factor * compare(a.key, b.key));
      const bodies = original.map(({ body, name, rows }) => {
        name.remove();
        const inner = column === 0 ? rows.map((row) => ({ row }))
          : sorted(rows.map((row) => ({ row, key: value(row.cells[column - 1]) })));
        inner[0].row.prepend(name);
        body.append(...inner.map(({ row }) => row));
        return { body, key: column === 0 ? value(name) : inner[0].key };
      });
      table.append(...sorted(bodies).map(({ body }) => body));
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

  // The key to the marks: names above their columns; a narrow page, or one of very many runs, has
  // the name next to each mark instead.
  data.runs.forEach((name) => byId("key").append(make("span", "", name)));
  byId("samples-list").className = data.runs.length > 16 ? "many" : "columns";

  let found = [];
  let page = 0;
  const details = (item) => {
    const box = make("div");
    box.append(make("div", "prompt", item[PROMPT]));
    if (item[CHOICES].length) {
      const scroll = make("div", "scroll");
      scroll.tabIndex = 0;
      const table = make("table", "sheet");
      const head = table.createTHead().insertRow();
      for (const name of ["choice", ...data.runs]) {
        const cell = make("th", "", name);
        cell.scope = "col";
        head.append(cell);
      }
      const body = table.createTBody();
      item[CHOICES].forEach((choice, index) => {
        const row = body.insertRow();
        const name = make("th", "choice", choice + (index === item[GOLD] ? "  ✓ gold" : ""));
        name.scope = "row";
        row.append(name);
        item[SCORES].forEach((scores, run) => {
          const known = scores.filter((one) => one !== null);
          const top = known.length && scores[index] === Math.max(...known);
          const text = scores[index] === undefined || scores[index] === null
            ? "–" : scores[index].toFixed(3);
          const cell = make("td", top ? "best" : "");
          cell.append(make("span", "key", data.runs[run]), make("span", "value", text));
          row.append(cell);
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
        const mark = make("span", is === null ? "none" : is ? "right" : "wrong");
        const sign = make("span", "sign", is === null ? "·" : is ? "✓" : "✗");
        sign.setAttribute("role", "img");
        sign.setAttribute("aria-label", is === null ? "not run" : is ? "right" : "wrong");
        mark.append(sign, make("span", "run", name));
        mark.title = name;
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
