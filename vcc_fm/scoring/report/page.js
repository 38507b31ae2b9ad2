"use strict";
// Sorts and searches the table of perturbations, and draws the changes of the one that is chosen. What comes from data
// becomes text nodes and attributes, never HTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const add = (parent, name, text) => {
    const made = parent.appendChild(document.createElement(name));
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const option = (parent, value, text) => { add(parent, "option", text).value = value; };

  // ------------------------------------------------------------------------------------------------------ the table
  const AT_FIRST = 100;
  const head = add(byId("rows").tHead, "tr");
  const body = byId("rows").tBodies[0];
  const metrics = [...new Set(data.columns.map((column) => column.metric))].filter((metric) => metric >= 0);
  const searched = data.rows.map((row) => `${row[0]}\n${row[1]}`.toLowerCase());
  const state = { by: -1, down: true, all: false };

  function shown(value, digits) {
    if (value === null) return "\u2013";
    if (typeof value === "string") return value;
    return value !== 0 && digits === 3 && Math.abs(value) < 0.001 ? value.toPrecision(2) : value.toFixed(digits);
  }

  function compare(a, b) {
    if (a === null || b === null) return (a === null) - (b === null); // what is missing stands last, either way
    const order = typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
    return state.down ? -order : order;
  }

  function visible() {
    if (metrics.length <= data.most_metrics) return data.columns.map((_, place) => place);
    const metric = Number(byId("metric").value);
    return data.columns.map((_, place) => place).filter((place) => [-1, metric].includes(data.columns[place].metric));
  }

  function drawHead() {
    head.replaceChildren();
    for (const place of visible()) {
      const column = data.columns[place];
      const cell = add(head, "th");
      cell.scope = "col";
      if (place === state.by) cell.ariaSort = state.down ? "descending" : "ascending";
      const button = add(cell, "button", column.head);
      button.type = "button";
      if (column.under) add(cell, "small", column.under).title = column.under;
      button.addEventListener("click", () => {
        const text = typeof data.rows[0][place] === "string";
        state.down = state.by === place ? !state.down : !text;
        state.by = place;
        drawHead();
        drawRows();
        head.cells[visible().indexOf(place)].firstChild.focus();
      });
    }
  }

  function drawRows() {
    const word = byId("search").value.trim().toLowerCase();
    const places = data.rows.map((_, place) => place).filter((place) => searched[place].includes(word));
    if (state.by >= 0) places.sort((a, b) => compare(data.rows[a][state.by], data.rows[b][state.by]) || a - b);
    const few = state.all ? places : places.slice(0, AT_FIRST);
    body.replaceChildren(...few.map((place) => {
      const line = document.createElement("tr");
      for (const column of visible()) {
        add(line, "td", shown(data.rows[place][column], data.columns[column].digits));
      }
      return line;
    }));
    byId("found").textContent = `${places.length} of ${data.rows.length} perturbations`;
    byId("more").hidden = few.length === places.length;
    byId("more").textContent = `Show all ${places.length}`;
  }

  if (metrics.length > data.most_metrics) {
    byId("of-metric").hidden = false;
    for (const metric of metrics) {
      option(byId("metric"), metric, data.columns.find((column) => column.metric === metric).head);
    }
    byId("metric").addEventListener("change", () => { drawHead(); drawRows(); });
  }
  byId("search").addEventListener("input", drawRows);
  byId("more").addEventListener("click", () => { state.all = true; drawRows(); });
  drawHead();
  drawRows();

  // ----------------------------------------------------------------------------------------------------- the scatter
  const SIDE = 480;
  const EDGE = 46;

  function svg(parent, name, attributes, text) {
    const made = parent.appendChild(document.createElementNS("http://www.w3.org/2000/svg", name));
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function draw() {
    const effect = data.effects[Number(byId("choose").value)];
    const largest = effect.measured.concat(effect.predicted).reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    const limit = 1.05 * (largest / 1000) + 0.05;
    const place = (value) => EDGE + ((value + limit) / (2 * limit)) * (SIDE - 2 * EDGE);
    const up = (value) => SIDE - place(value);
    byId("effect").replaceChildren();
    const figure = svg(byId("effect"), "svg", { viewBox: `0 0 ${SIDE} ${SIDE}`, role: "img" });
    figure.setAttribute("aria-label", `predicted against measured log fold changes of ${effect.perturbation}`);
    axes(figure, limit, place, up);
    effect.at.forEach((gene, number) => {
      const measured = effect.measured[number] / 1000;
      const predicted = effect.predicted[number] / 1000;
      const [x, y] = [place(measured).toFixed(1), up(predicted).toFixed(1)];
      const point = number === effect.target
        ? svg(figure, "path", { class: "target", d: `M${x} ${y}m-5 -5l10 10m0 -10l-10 10` })
        : svg(figure, "circle", { cx: x, cy: y, r: 2.5 });
      svg(point, "title", {}, `${data.genes[gene]}: measured ${measured}, predicted ${predicted}`);
    });
    const left = effect.all - effect.at.length;
    byId("effect-said").textContent = `${effect.perturbation} in ${effect.context}: r = ${shown(effect.r, 3)}`
      + (effect.significant === null ? "" : `, ${effect.significant} significant genes`)
      + `; ${effect.at.length} genes are shown, ${left} left out.`;
  }

  function axes(figure, limit, place, up) {
    const step = [0.1, 0.2, 0.5, 1, 2, 5, 10].find((one) => limit / one <= 4) || 20;
    svg(figure, "line", { x1: place(-limit), y1: up(-limit), x2: place(limit), y2: up(limit) });
    svg(figure, "line", { x1: place(-limit), y1: up(-limit), x2: place(limit), y2: up(-limit) });
    svg(figure, "line", { x1: place(-limit), y1: up(-limit), x2: place(-limit), y2: up(limit) });
    for (let number = -Math.floor(limit / step); number * step <= limit; number += 1) {
      const value = number * step;
      const text = String(Number(value.toFixed(1)));
      svg(figure, "text", { x: place(value), y: up(-limit) + 16, "text-anchor": "middle" }, text);
      svg(figure, "text", { x: place(-limit) - 6, y: up(value) + 4, "text-anchor": "end" }, text);
    }
    svg(figure, "text", { x: SIDE / 2, y: SIDE - 8, "text-anchor": "middle" }, "measured log2 fold change");
    svg(figure, "text", {
      x: 0, y: 0, "text-anchor": "middle", transform: `translate(12 ${SIDE / 2}) rotate(-90)`,
    }, "predicted log2 fold change");
  }

  const groups = new Map();
  data.effects.forEach((effect, number) => {
    if (!groups.has(effect.context)) {
      const group = add(byId("choose"), "optgroup");
      group.label = effect.context;
      groups.set(effect.context, group);
    }
    option(groups.get(effect.context), number, effect.perturbation);
  });
  if (data.effects.length) {
    byId("choose").addEventListener("change", draw);
    // Firefox keeps what was chosen before a reload; an effect of another number would then be drawn.
    byId("choose").value = "0";
    draw();
  }
})();
