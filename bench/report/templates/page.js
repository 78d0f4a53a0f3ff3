"use strict";
(() => {
  document.documentElement.classList.add("scripted");
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children); // strings become text, never markup
    return element;
  };

  // -- leaderboards: sort, filter, choose columns ------------------------------------------------------------------

  const compare = (index, numeric, sign) => (a, b) => {
    const [x, y] = [a, b].map((row) => row.cells[index].dataset.key);
    if (x === undefined || y === undefined) return (x === undefined) - (y === undefined); // missing comes last
    return sign * (numeric ? Number(x) - Number(y) : x.localeCompare(y, "en"));
  };

  for (const board of all(".board")) {
    const body = board.querySelector("tbody");
    const heads = all("thead th", board);
    const rows = [...body.rows];
    const status = board.querySelector(".status");
    const filter = board.querySelector(".filter");
    const family = board.querySelector(".family");
    let order = "";

    const tell = () => {
      const shown = rows.filter((row) => !row.hidden).length;
      status.textContent = `${shown} of ${rows.length} rows${order}`;
    };

    heads.forEach((head, index) => {
      head.querySelector("button").addEventListener("click", () => {
        const next = { ascending: "descending", descending: "" }[head.getAttribute("aria-sort")] ?? "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        if (next) head.setAttribute("aria-sort", next);
        const sign = next === "descending" ? -1 : 1;
        const numeric = head.dataset.numeric === "yes";
        body.append(...(next ? [...rows].sort(compare(index, numeric, sign)) : rows));
        order = next ? `, by ${head.textContent.trim()}, ${next}` : "";
        tell();
      });
    });

    const choose = () => {
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of rows) {
        const fits = words.every((word) => row.dataset.search.includes(word));
        row.hidden = !fits || (family.value !== "" && row.dataset.family !== family.value);
      }
      tell();
    };
    filter.addEventListener("input", choose);
    family.addEventListener("change", choose);

    for (const box of all("[data-column]", board)) {
      const index = Number(box.dataset.column) + 1; // the method comes first and stays
      const set = () => {
        for (const row of all("tr", board)) row.cells[index].hidden = !box.checked;
      };
      box.addEventListener("change", set);
      set(); // a reload may have kept a tick
    }
    choose();
  }

  // -- pages of methods: a link opens what it leads to -------------------------------------------------------------

  const open = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target instanceof HTMLDetailsElement) {
      target.open = true;
      target.scrollIntoView();
      target.querySelector("summary").focus({ preventScroll: true });
    }
  };
  addEventListener("hashchange", open);
  open();
  for (const [name, state] of [["unfold", true], ["fold", false]]) {
    for (const button of all(`.${name}`)) {
      button.addEventListener("click", () => {
        for (const page of all("details.page", button.closest("section"))) page.open = state;
      });
    }
  }

  // -- texts of two methods after the same prompts -----------------------------------------------------------------

  const dialog = document.querySelector("dialog");
  let agreed = () => {};
  for (const button of all("button", dialog)) {
    button.addEventListener("click", () => {
      dialog.close();
      if (button.value === "yes") agreed();
    });
  }

  let made = 0;
  const hiddenText = (name, where, text, judged) => {
    const id = `text-${(made += 1)}`;
    const verb = document.createTextNode("Show ");
    const button = make("button", { type: "button", "aria-expanded": "false", "aria-controls": id }, verb, name);
    button.append(make("span", { class: "hidden" }, ` ${where}`));
    const body = make("div", { class: "body", id, dir: "auto", hidden: "" });
    const turn = (shown) => {
      button.setAttribute("aria-expanded", String(shown));
      verb.data = shown ? "Hide " : "Show ";
      body.textContent = shown ? text || "(empty)" : ""; // what is hidden is not in the document either
      body.classList.toggle("empty", !text.trim());
      body.hidden = !shown;
    };
    button.addEventListener("click", () => turn(body.hidden));
    const element = make("div", { class: "sample" }, button);
    if (judged) element.append(make("span", { class: "judged" }, judged));
    element.append(body);
    return { element, turn };
  };

  const chooser = (title, options, chosen) => {
    const select = make("select");
    options.forEach((option, i) => select.append(make("option", { value: i }, String(option))));
    select.value = chosen;
    return { select, label: make("label", {}, title, select) };
  };

  const compareTexts = (root, sides) => {
    const sets = chooser("Prompts of", sides.map((side) => side.suites.join(", ")), 0);
    const sizes = [5, 10, 20, Infinity];
    const size = chooser("at a time", sizes.map((n) => (n === Infinity ? "all" : n)), 0);
    const names = make("span", { class: "controls" });
    const back = make("button", { type: "button", class: "back" }, "Previous");
    const on = make("button", { type: "button", class: "on" }, "Next");
    const reveal = make("button", { type: "button", class: "reveal-all" }, "Reveal all on this page");
    const hide = make("button", { type: "button", class: "hide-all" }, "Hide all");
    const status = make("p", { class: "status", role: "status" });
    const list = make("div", { class: "list" });
    if (sides.length < 2) sets.label.hidden = true;
    root.append(
      make("div", { class: "controls" }, sets.label, names, size.label),
      make("div", { class: "controls" }, back, on, reveal, hide, status),
      list,
    );
    let left, right, start, texts;

    const show = () => {
      const side = sides[sets.select.value];
      const step = Math.min(sizes[size.select.value], side.prompts.length);
      const end = Math.min(start + step, side.prompts.length);
      const shown = [left, right].map((one) => side.written[one.select.value]);
      texts = [];
      const hidden = (...about) => {
        const one = hiddenText(...about);
        texts.push(one);
        return one.element;
      };
      list.replaceChildren();
      for (let i = start; i < end; i += 1) {
        const columns = shown.map((own) => {
          const samples = (own.texts[i] ?? []).map((text, j) => {
            const judged = side.scorers
              .map((scorer, k) => [scorer, own.scores[i][j][k]])
              .filter(([, score]) => score !== null)
              .map(([scorer, score]) => `${scorer} ${score.toFixed(2)}`)
              .join(" · ");
            return hidden(`text ${j + 1}`, `of ${own.label} after prompt ${i + 1}`, text, judged);
          });
          return make("div", {}, make("h4", {}, own.label), ...samples);
        });
        list.append(
          make("section", { class: "prompt" }, make("h3", {}, `Prompt ${i + 1}`),
            hidden("prompt", `${i + 1}`, side.prompts[i], ""), make("div", { class: "pair" }, ...columns)),
        );
      }
      back.disabled = start === 0;
      on.disabled = end === side.prompts.length;
      const samples = Math.max(...shown.map((own) => own.texts[start]?.length ?? 0));
      const rest = side.total > side.prompts.length || side.samples > samples
        ? ` The first ones are here; stored are ${side.total} prompts with ${side.samples} texts each.` : "";
      status.textContent = `Prompts ${start + 1} to ${end} of ${side.prompts.length}, ${samples} texts each.${rest}`;
    };

    const fill = () => {
      const side = sides[sets.select.value];
      const labels = side.written.map((own) => own.label);
      left = chooser("left", labels, side.left);
      right = chooser("right", labels, side.right);
      for (const one of [left, right]) one.select.addEventListener("change", show);
      names.replaceChildren(left.label, right.label);
      start = 0;
      show();
    };
    const go = (direction) => {
      const { length } = sides[sets.select.value].prompts;
      const step = Math.min(sizes[size.select.value], length);
      start = Math.max(0, Math.min(start + direction * step, length - 1));
      show();
    };
    sets.select.addEventListener("change", fill);
    size.select.addEventListener("change", () => go(0));
    back.addEventListener("click", () => go(-1));
    on.addEventListener("click", () => go(1));
    hide.addEventListener("click", () => texts.forEach((one) => one.turn(false)));
    reveal.addEventListener("click", () => {
      dialog.querySelector(".ask").textContent = `That is ${texts.length} prompts and texts.`;
      agreed = () => texts.forEach((one) => one.turn(true));
      dialog.showModal();
    });
    fill();
  };

  for (const data of all("script.sides")) {
    const root = document.querySelector(`.texts[data-table="${data.dataset.table}"]`);
    compareTexts(root, JSON.parse(data.textContent));
  }
})();
