// The page at work: filters, figures, export and download.
"use strict";

(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  Figures.use(data);
  const rows = data.configurations;
  const byId = (id) => document.getElementById(id);
  const charts = [...document.querySelectorAll(".chart")];
  const CONFIG = { displayModeBar: false, responsive: false, doubleClick: "reset" };
  const CARDS = 12;
  let printing = false;
  let filters;

  // Knob values of a method get line styles in order: the same for all methods with the same values.
  function numberVariants() {
    const known = [];
    for (const row of [...rows, ...data.kept]) {
      const key = JSON.stringify(row.knobs);
      if (Object.values(row.knobs).every((value) => value === null)) { row.variant = 0; continue; }
      if (!known.includes(key)) { known.push(key); }
      row.variant = known.indexOf(key);
    }
  }

  function buildFilters() {
    const fields = document.querySelector("#filters .fields");
    const built = { model: null, method: [], task: [], knobs: {}, zero: null };
    if (data.models.length > 1) {
      const field = group(fields, "Model");
      built.model = document.createElement("select");
      built.model.setAttribute("aria-label", "Model");
      for (const model of data.models) { built.model.add(new Option(model, model)); }
      field.append(built.model);
    }
    const methods = group(fields, "Methods");
    for (const [method, title] of Object.entries(data.titles)) { built.method.push(check(methods, "method", method, title, swatch(method))); }
    for (const knob of data.knobs) {
      const values = [...new Set(rows.map((row) => row.knobs[knob]).filter((value) => value !== null))].sort((a, b) => a - b);
      const field = group(fields, knob);
      built.knobs[knob] = values.map((value) => check(field, `knob:${knob}`, JSON.stringify(value), String(value)));
    }
    if (data.tasks.length > 1) {
      const tasks = group(fields, "Tasks");
      for (const task of data.tasks) { built.task.push(check(tasks, "task", task.name, task.name)); }
    }
    built.zero = check(group(fields, "Axes"), "zero", "zero", "start at zero");
    return built;
  }

  function group(parent, title) {
    const field = document.createElement("fieldset"), legend = document.createElement("legend");
    legend.textContent = title;
    field.append(legend);
    parent.append(field);
    return field;
  }

  function check(parent, name, value, title, picture) {
    const label = document.createElement("label"), box = document.createElement("input");
    Object.assign(box, { type: "checkbox", name, value, checked: true });
    label.append(box, ...(picture ? [picture] : []), title);
    parent.append(label);
    return box;
  }

  function swatch(method) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("width", "18"); svg.setAttribute("height", "6"); svg.setAttribute("aria-hidden", "true");
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    for (const [name, value] of Object.entries({ x1: 0, x2: 18, y1: 3, y2: 3, stroke: Figures.style(method, 0).color, "stroke-width": 4 })) { line.setAttribute(name, value); }
    svg.append(line);
    return svg;
  }

  function fillSelects() {
    for (const [name, [title]] of Object.entries(Figures.MEASURES)) { byId("measure").add(new Option(title, name)); }
    byId("measure").addEventListener("change", draw);
    if (byId("cell")) { byId("cell").addEventListener("change", drawHeat); }
  }

  function chosen(boxes) { return new Set(boxes.filter((box) => box.checked).map((box) => box.value)); }

  function passes() {
    const model = filters.model ? filters.model.value : data.models[0];
    const methods = chosen(filters.method);
    const tasks = filters.task.length ? chosen(filters.task) : new Set(data.tasks.map((task) => task.name));
    const knobs = Object.entries(filters.knobs).map(([name, boxes]) => [name, chosen(boxes)]);
    const fits = (row) => row.model === model && methods.has(row.method) && knobs.every(([name, values]) => row.knobs[name] === null || values.has(JSON.stringify(row.knobs[name])));
    return { fits, tasks };
  }

  function update() {
    const { fits, tasks } = passes();
    const visible = rows.filter((row) => fits(row) && tasks.has(row.task));
    byId("shown").textContent = `${visible.length} of ${rows.length} configurations shown`;
    for (const line of document.querySelectorAll("tr[data-row]")) { line.hidden = !fits(rows[line.dataset.row]); }
    for (const figure of document.querySelectorAll("figure[data-task]")) { figure.hidden = !tasks.has(figure.dataset.task); }
    showLegends(visible);
    showCards(fits, tasks);
    fillCells(fits, tasks);
    draw();
  }

  function showLegends(visible) {
    const found = Figures.series(visible.filter((row) => row.score !== null), data.titles);
    for (const list of document.querySelectorAll(".legend")) {
      const kind = list.dataset.kind;
      const entries = found.filter((one) => kind !== "agreement" || one.method !== data.reference);
      if (kind === "memory" && entries.length) { entries.unshift({ front: true, name: "Pareto front" }); }
      list.replaceChildren(...entries.map((one) => {
        const item = document.createElement("li");
        item.append(Figures.key(one, kind), one.name);
        return item;
      }));
    }
  }

  // The worst first, but no document twice for a method, and room for every method.
  function showCards(fits, tasks) {
    const cards = [...document.querySelectorAll(".card")];
    const possible = cards.filter((card) => tasks.has(card.dataset.task) && fits({ model: card.dataset.model, method: card.dataset.method, knobs: JSON.parse(card.dataset.knobs) }));
    const share = Math.ceil(CARDS / new Set(possible.map((card) => card.dataset.method)).size);
    const seen = new Set(), count = {}, shown = new Set();
    for (const card of possible) {
      const { method, task, doc } = card.dataset, key = `${method} ${task} ${doc}`;
      if (shown.size >= CARDS || seen.has(key) || (count[method] || 0) >= share) { continue; }
      seen.add(key);
      shown.add(card);
      count[method] = (count[method] || 0) + 1;
    }
    for (const card of cards) { card.hidden = !shown.has(card); }
    if (byId("no-cards")) { byId("no-cards").hidden = shown.size > 0; }
  }

  function fillCells(fits, tasks) {
    const select = byId("cell");
    if (!select) { return; }
    const before = select.value;
    const found = data.kept.filter((run) => fits(run) && run.tasks.some((task) => tasks.has(task)));
    select.replaceChildren(...found.map((run) => {
      const seed = run.seed === null ? "" : ` · seed ${run.seed}`;
      const budget = run.budget === null ? "" : ` · budget ${run.budget}`;
      return new Option(`${Figures.label(run, data.titles)}${budget}${seed} · ${run.tasks.join(", ")}`, run.cell);
    }));
    const best = found.find((run) => run.cell === before) || found.find((run) => run.budget !== null) || found[0];
    if (best) { select.value = best.cell; }
  }

  function draw() {
    const { fits } = passes();
    charts.forEach((chart) => { if (chart.dataset.kind !== "heat") { drawTask(chart, fits); } });
    drawHeat();
  }

  function drawTask(chart, fits) {
    const figure = chart.closest("figure");
    if (figure.hidden) { return; }
    const task = data.tasks.find((one) => one.name === figure.dataset.task);
    const visible = rows.filter((row) => row.task === task.name && row.score !== null && fits(row));
    const [traces, axes, summary] = BUILD[chart.dataset.kind](visible, task);
    if (!traces.some((trace) => trace.x.length)) { return empty(chart, "Nothing to show with these filters."); }
    show(chart, traces, axes);
    chart.setAttribute("aria-label", `${summary}; ${traces.filter((trace) => trace.meta.kind === "series").length} series. The table below holds the values.`);
  }

  const BUILD = {
    curve: (visible, task) => budgetLines(visible, task.metric, { x: "effective_budget", y: "score", band: true }, `${task.metric} of ${task.name} against effective budget`),
    agreement: (visible, task) => {
      const others = visible.filter((row) => row.method !== data.reference);
      const [traces, axes, summary] = budgetLines(others, "identical answers", { x: "effective_budget", y: "agreement", band: false }, `Agreement with FullKV on ${task.name} against effective budget`);
      axes.yaxis.tickformat = ".0%";
      return [traces, axes, summary];
    },
    memory: (visible, task) => {
      const usable = visible.filter((row) => row.kv_bytes_per_sample !== null);
      const traces = [Figures.frontTrace(usable), ...Figures.lines(usable, data.titles, { x: "kv_bytes_per_sample", y: "score", band: false })];
      const axes = { xaxis: usable.length ? Figures.logAxis("KV memory per prompt", usable.map((row) => row.kv_bytes_per_sample), Figures.bytes) : {}, yaxis: vertical(task.metric) };
      return [traces, axes, `${task.metric} of ${task.name} against KV memory`];
    },
    time: (visible, task) => {
      const measure = byId("measure").value, [title] = Figures.MEASURES[measure];
      const axes = { xaxis: { ...Figures.axis("nominal budget"), type: "category" }, yaxis: vertical(title), barmode: "group", bargap: 0.25, bargroupgap: 0.08 };
      if (measure.startsWith("kv_bytes")) {
        const top = Math.max(0, ...visible.map((row) => row[measure] || 0)), step = 2 ** Math.max(0, Math.floor(Math.log2(top / 3 || 1)));
        const ticks = Array.from({ length: Math.ceil(top / step) + 1 }, (_, index) => index * step);
        Object.assign(axes.yaxis, { tickvals: ticks, ticktext: ticks.map(Figures.bytes) });
      }
      return [Figures.bars(visible, data.titles, measure), axes, `${title} on ${task.name} by nominal budget`];
    },
  };

  function budgetLines(visible, title, keys, summary) {
    const traces = Figures.lines(visible, data.titles, keys);
    const xs = visible.filter((row) => row[keys.y] !== null && row[keys.x] !== null).map((row) => row[keys.x]);
    return [traces, { xaxis: xs.length ? Figures.logAxis("effective budget, entries per KV head", xs, String) : {}, yaxis: vertical(title) }, summary];
  }

  function vertical(title) { return { ...Figures.axis(title), rangemode: filters.zero.checked ? "tozero" : "normal" }; }

  function show(chart, traces, axes) {
    if (chart.querySelector(".empty")) { chart.replaceChildren(); }
    Plotly.react(chart, traces, Figures.layout(width(chart), printing ? 270 : 340, axes), CONFIG);
  }

  function width(chart) { return printing ? 640 : Math.max(280, Math.floor(chart.getBoundingClientRect().width)); }

  function empty(chart, text) {
    Plotly.purge(chart);
    const note = document.createElement("p");
    Object.assign(note, { className: "empty", textContent: text });
    chart.replaceChildren(note);
    chart.setAttribute("aria-label", text);
  }

  function drawHeat() {
    const chart = byId("heat");
    if (!chart) { return; }
    const run = data.kept.find((one) => one.cell === byId("cell").value);
    byId("heat-table").replaceChildren();
    byId("heat-title").textContent = "";
    if (!run) { return empty(chart, "Nothing to show with these filters."); }
    if (chart.querySelector(".empty")) { chart.replaceChildren(); }
    const across = width(chart), layers = run.kept.length;
    const axes = { xaxis: { ...Figures.axis("KV head"), showgrid: false, dtick: Math.ceil(run.kept[0].length / 16) }, yaxis: { ...Figures.axis("layer"), showgrid: false, autorange: "reversed", dtick: Math.ceil(layers / 16) } };
    const height = Math.min(620, Math.max(260, 90 + layers * 26));
    Plotly.react(chart, Figures.heat(run.kept), Figures.layout(across, height, axes), CONFIG);
    const flat = run.kept.flat();
    byId("heat-title").textContent = byId("cell").selectedOptions[0].text;
    chart.setAttribute("aria-label", `Heat map of entries kept in ${layers} layers by ${run.kept[0].length} KV heads, from ${Math.min(...flat)} to ${Math.max(...flat)}. The table below holds the values.`);
    const head = byId("heat-table").createTHead().insertRow();
    for (const text of ["layer", ...run.kept[0].map((_, index) => `head ${index}`)]) { heading(head, text, "col"); }
    const body = byId("heat-table").createTBody();
    run.kept.forEach((layer, index) => {
      const line = body.insertRow();
      heading(line, index, "row");
      for (const value of layer) { line.insertCell().textContent = value; }
    });
  }

  function heading(line, text, scope) {
    const cell = document.createElement("th");
    Object.assign(cell, { textContent: text, scope });
    line.append(cell);
  }

  async function exportFigure(button) {
    const figure = button.closest("figure"), chart = figure.querySelector(".chart"), format = button.dataset.export;
    if (!chart.data) { return; }
    const alone = Figures.exported(chart, `${data.study}: ${figure.querySelector("h3").textContent}`);
    const uri = await Plotly.toImage(alone, { format, width: alone.layout.width, height: alone.layout.height, scale: format === "png" ? 3 : 1 });
    const name = [data.study, chart.dataset.kind, figure.dataset.task].filter(Boolean).join("-");
    save(await (await fetch(uri)).blob(), `${name}.${format}`);
  }

  function save(blob, name) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  numberVariants();
  filters = buildFilters();
  fillSelects();
  for (const image of document.querySelectorAll("img[data-image]")) { image.src = data.images[image.dataset.image]; }
  byId("filters").addEventListener("change", update);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("csv").addEventListener("click", () => save(new Blob([JSON.parse(byId("csv-data").textContent)], { type: "text/csv" }), `${data.study}-results.csv`));
  document.addEventListener("click", (event) => { if (event.target.dataset && event.target.dataset.export) { exportFigure(event.target); } });
  if (matchMedia("(max-width: 700px)").matches) { document.querySelector("#filters details").open = false; }
  let resizing;
  let lastWidth = document.body.clientWidth;
  addEventListener("resize", () => {
    // On a phone the address bar changes the height alone.
    if (printing || document.body.clientWidth === lastWidth) { return; }
    lastWidth = document.body.clientWidth;
    clearTimeout(resizing);
    resizing = setTimeout(draw, 150);
  });
  addEventListener("beforeprint", () => { printing = true; draw(); });
  addEventListener("afterprint", () => { printing = false; draw(); });
  update();
  document.documentElement.dataset.ready = "true";
})();
