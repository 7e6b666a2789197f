// What the figures are made of: pure functions from rows to Plotly traces and layouts.
"use strict";

const Figures = (() => {
  // Of the page's data: method -> [colour, marker], and the method that the others are compared with.
  let styles = {}, reference = "";
  function use(data) { styles = data.styles; reference = data.reference; }

  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
  const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif';
  const INK = "#1c2128", MUTED = "#57606a", RULE = "#e3e7eb";
  // Plotly's markers as paths around the origin.
  const MARKS = {
    circle: "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0Z", square: "M-4 -4H4V4H-4Z", "triangle-up": "M0 -5L5 4H-5Z", diamond: "M0 -6L5 0L0 6L-5 0Z",
    star: "M0 -6.5L1.6 -2.2L6.2 -2L2.6 0.8L3.8 5.3L0 2.7L-3.8 5.3L-2.6 0.8L-6.2 -2L-1.6 -2.2Z",
    x: "M0 -2.2L3 -5L5 -3L2.2 0L5 3L3 5L0 2.2L-3 5L-5 3L-2.2 0L-5 -3L-3 -5Z", hexagon: "M0 -5.5L4.8 -2.7V2.7L0 5.5L-4.8 2.7V-2.7Z",
    cross: "M-1.7 -5H1.7V-1.7H5V1.7H1.7V5H-1.7V1.7H-5V-1.7H-1.7Z", pentagon: "M0 -5.5L5.2 -1.7L3.2 4.5H-3.2L-5.2 -1.7Z",
  };

  const MEASURES = {
    decode_seconds_per_step: ["decode, ms per step of a batch", (value) => value * 1000, (value) => value.toFixed(2) + " ms"],
    decode_seconds_per_token: ["decode, ms per token", (value) => value * 1000, (value) => value.toFixed(2) + " ms"],
    prefill_seconds_per_sample: ["prefill, ms per sample", (value) => value * 1000, (value) => value.toFixed(1) + " ms"],
    kv_bytes_per_sample: ["KV memory of a prompt, per sample", (value) => value, bytes],
    kv_bytes_peak_per_call: ["peak KV memory of a call", (value) => value, bytes],
    kv_bytes_end_per_sample: ["KV memory in use at the end, per sample", (value) => value, bytes],
    kv_bytes_reserve_per_sample: ["KV memory allocated and free at the end, per sample", (value) => value, bytes],
    seconds: ["whole run, s", (value) => value, (value) => value.toFixed(0) + " s"],
  };

  function escape(text) { return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;"); }

  function bytes(value) {
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = 0;
    while (value >= 1024 && unit < units.length - 1) { value /= 1024; unit += 1; }
    return (value < 10 && unit ? value.toFixed(value % 1 ? 1 : 0) : value.toFixed(0)) + " " + units[unit];
  }

  function knobText(knobs) {
    return Object.entries(knobs).filter(([, value]) => value !== null).map(([name, value]) => `${name} ${value}`).join(" · ");
  }

  function label(row, titles) {
    const knobs = knobText(row.knobs);
    return titles[row.method] + (knobs ? " · " + knobs : "");
  }

  function style(method, variant) {
    const [color, symbol] = styles[method] || ["#444444", "pentagon"];
    return { color, symbol: variant % 2 ? symbol + "-open" : symbol, dash: DASHES[variant % DASHES.length] };
  }

  // Rows of one task -> one series per method and knob values, in the study's order.
  function series(rows, titles) {
    const found = new Map();
    for (const row of rows) {
      const key = row.method + "|" + JSON.stringify(row.knobs);
      if (!found.has(key)) { found.set(key, { method: row.method, knobs: row.knobs, name: label(row, titles), variant: row.variant, rows: [] }); }
      found.get(key).rows.push(row);
    }
    return [...found.values()];
  }

  function hover(row, titles) {
    const lines = [`<b>${escape(label(row, titles))}</b>`];
    const interval = row.ci_low === null ? "" : ` [${row.ci_low.toFixed(3)}, ${row.ci_high.toFixed(3)}]`;
    lines.push(`${escape(row.metric)} ${row.score.toFixed(3)}${interval}`);
    if (row.effective_budget !== null) { lines.push(`effective budget ${row.effective_budget.toFixed(1)}, nominal ${row.budget === null ? "all" : row.budget}`); }
    if (row.kv_bytes_per_sample !== null) { lines.push(`KV ${bytes(row.kv_bytes_per_sample)}${row.kv_share === null ? "" : `, ${(row.kv_share * 100).toFixed(1)} % of full`}`); }
    if (row.agreement !== null) { lines.push(`${(row.agreement * 100).toFixed(0)} % answers as FullKV`); }
    lines.push(`${row.samples} samples${row.seeds > 1 ? `, ${row.seeds_done} of ${row.seeds} seeds` : ""}`);
    return lines.join("<br>");
  }

  // Eight-digit hex: nearly transparent.
  function translucent(color) { return color + "1c"; }

  // Lines over x with bands; FullKV as a line across and a point at its own x.
  function lines(rows, titles, { x, y, band }) {
    const usable = rows.filter((row) => row[x] !== null && row[y] !== null && row.score !== null);
    const all = usable.map((row) => row[x]);
    const [left, right] = [Math.min(...all), Math.max(...all)];
    const bands = [], traces = [], points = [];
    for (const one of series(usable, titles)) {
      const sorted = [...one.rows].sort((a, b) => a[x] - b[x]);
      const look = style(one.method, one.variant);
      const xs = sorted.map((row) => row[x]), ys = sorted.map((row) => row[y]);
      const text = sorted.map((row) => hover(row, titles));
      const full = one.method === reference;
      const known = band ? sorted.filter((row) => row.ci_low !== null) : [];
      if (known.length) {
        const across = full ? [left, right] : known.map((row) => row[x]);
        const low = full ? [known[0].ci_low, known[0].ci_low] : known.map((row) => row.ci_low);
        const high = full ? [known[0].ci_high, known[0].ci_high] : known.map((row) => row.ci_high);
        bands.push({
          type: "scatter", mode: "lines", meta: { kind: "band", method: one.method }, x: [...across, ...across.slice().reverse()],
          y: [...high, ...low.slice().reverse()], fill: "toself", fillcolor: translucent(look.color), line: { width: 0 },
          hoverinfo: "skip", showlegend: false, legendgroup: one.name,
        });
      }
      if (full) {
        traces.push({
          type: "scatter", mode: "lines", meta: { kind: "line", method: one.method }, x: [left, right], y: [ys[0], ys[0]],
          line: { color: look.color, width: 1.5, dash: "dash" }, hoverinfo: "skip", showlegend: false, legendgroup: one.name,
        });
      }
      for (const row of band ? sorted : []) {
        if (!row.each.length) { continue; }
        points.push({
          type: "scatter", mode: "markers", meta: { kind: "seeds", method: one.method }, x: row.each.map((seed) => seed[x]), y: row.each.map((seed) => seed[y]),
          marker: { color: look.color, symbol: "circle-open", size: 5, line: { width: 1 } }, opacity: 0.7, showlegend: false, legendgroup: one.name,
          text: row.each.map((seed) => `<b>${escape(one.name)}</b><br>seed ${seed.seed}: ${seed[y].toFixed(3)}`), hovertemplate: "%{text}<extra></extra>",
        });
      }
      traces.push({
        type: "scatter", mode: full ? "markers" : "lines+markers", meta: { kind: "series", method: one.method, knobs: one.knobs }, cliponaxis: false,
        name: escape(one.name), legendgroup: one.name, x: xs, y: ys, text, hovertemplate: "%{text}<extra></extra>",
        line: { color: look.color, width: 2, dash: look.dash },
        marker: { color: look.color, symbol: look.symbol, size: look.symbol.startsWith("star") ? 11 : 9, line: { width: 1.5, color: look.color } },
      });
    }
    return [...bands, ...points, ...traces];
  }

  // Configurations that no other beats with as few bytes, by rising bytes.
  function front(rows) {
    const sorted = rows.filter((row) => row.kv_bytes_per_sample !== null && row.score !== null).sort((a, b) => a.kv_bytes_per_sample - b.kv_bytes_per_sample || b.score - a.score);
    const best = [];
    for (const row of sorted) { if (!best.length || row.score > best[best.length - 1].score) { best.push(row); } }
    return best;
  }

  function frontTrace(rows) {
    const best = front(rows);
    return {
      type: "scatter", mode: "lines", name: "Pareto front", meta: { kind: "front" }, x: best.map((row) => row.kv_bytes_per_sample), y: best.map((row) => row.score),
      line: { color: "#8c959f", width: 6, shape: "hv" }, opacity: 0.45, hoverinfo: "skip",
    };
  }

  function bars(rows, titles, measure) {
    const [, convert, write] = MEASURES[measure];
    const usable = rows.filter((row) => row[measure] !== null);
    const full = usable.find((row) => row.method === reference);
    const budgets = [...new Set(usable.filter((row) => row.budget !== null).map((row) => row.budget))].sort((a, b) => a - b).map(String);
    const traces = series(usable.filter((row) => row.method !== reference && row.budget !== null), titles).map((one) => {
      const look = style(one.method, one.variant);
      const sorted = [...one.rows].sort((a, b) => a.budget - b.budget);
      return {
        type: "bar", name: escape(one.name), meta: { kind: "series", method: one.method, knobs: one.knobs }, x: sorted.map((row) => String(row.budget)),
        y: sorted.map((row) => convert(row[measure])), marker: { color: look.color, pattern: { shape: ["", "/", ".", "x", "-", "+"][one.variant % 6], solidity: 0.3, size: 7, fillmode: "overlay", fgcolor: "#fff", bgcolor: look.color } },
        text: sorted.map((row) => `<b>${escape(one.name)}</b><br>${write(convert(row[measure]))}<br>nominal budget ${row.budget}, effective ${row.effective_budget === null ? "unknown" : row.effective_budget.toFixed(1)}`),
        textposition: "none", hovertemplate: "%{text}<extra></extra>",
      };
    });
    if (full && budgets.length) {
      const value = convert(full[measure]);
      traces.push({
        type: "scatter", mode: "lines", name: titles[reference], meta: { kind: "line", method: reference }, x: budgets, y: budgets.map(() => value),
        line: { color: INK, width: 1.5, dash: "dash" }, text: budgets.map(() => `<b>${titles[reference]}</b><br>${write(value)}`), hovertemplate: "%{text}<extra></extra>",
      });
    }
    return traces;
  }

  function heat(values) {
    return [{
      type: "heatmap", z: values, x: values[0].map((_, head) => head), y: values.map((_, layer) => layer), colorscale: "Cividis", xgap: 1, ygap: 1,
      hovertemplate: "layer %{y}, KV head %{x}<br>%{z:.1f} entries<extra></extra>",
      colorbar: { title: { text: "entries", side: "top", font: { size: 12 } }, thickness: 14, outlinewidth: 0 },
    }];
  }

  function powers(values, step = 2) {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const ticks = [];
    for (let power = Math.floor(Math.log2(low)); power <= Math.ceil(Math.log2(high)); power += 1) { ticks.push(2 ** power); }
    return ticks.length > 8 && step === 2 ? ticks.filter((_, index) => index % 2 === 0) : ticks;
  }

  function logAxis(title, values, write) {
    const ticks = powers(values);
    const [low, high] = [Math.log10(Math.min(...values)), Math.log10(Math.max(...values))];
    const margin = Math.max((high - low) * 0.05, 0.05);
    return { ...axis(title), type: "log", tickvals: ticks, ticktext: ticks.map(write), range: [low - margin, high + margin] };
  }

  function axis(title) {
    return { title: { text: title, font: { size: 13, color: MUTED }, standoff: 10 }, gridcolor: RULE, zeroline: false, linecolor: "#8c959f", ticks: "outside", ticklen: 4, tickcolor: "#8c959f", automargin: true };
  }

  // Without Plotly's legend: the page has its own, which wraps on small screens; exported figures get one.
  function layout(width, height, axes) {
    return {
      font: { family: FONT, size: 12, color: INK }, paper_bgcolor: "#fff", plot_bgcolor: "#fff", width, height, showlegend: false,
      margin: { l: 58, r: 14, t: 14, b: 52 }, hovermode: "closest", dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
      hoverlabel: { bgcolor: "#fff", bordercolor: "#8c959f", align: "left", font: { family: FONT, size: 12.5, color: INK } },
      ...axes,
    };
  }

  // A figure on its own, as it is exported: title on top, legend at the right.
  function exported(figure, title) {
    const names = figure.data.filter((trace) => trace.name && trace.showlegend !== false).map((trace) => trace.name.length);
    const room = names.length ? 70 + 7.2 * Math.max(...names) : 0;
    const height = Math.max(420, figure.layout.height, 90 + names.length * 24);
    const layout = {
      ...figure.layout, width: 640 + room, height, showlegend: names.length > 0, legend: { x: 1.02, y: 1, font: { size: 12 } },
      title: { text: escape(title), font: { size: 15 }, x: 0.02, xanchor: "left" }, margin: { ...figure.layout.margin, t: 48, r: 14 + room },
    };
    return { data: figure.data, layout };
  }

  // A line with its marker, or a bar's square, for the page's legend.
  function key(one, kind) {
    const look = one.front ? { color: "#8c959f", dash: "solid" } : style(one.method, one.variant);
    const svg = element("svg", { width: 34, height: 16, viewBox: "0 0 34 16", "aria-hidden": "true" });
    if (kind === "time" && one.method !== reference) {
      svg.append(element("rect", { x: 10, y: 1, width: 14, height: 14, fill: look.color }));
      if (one.variant) { svg.append(element("path", { d: "M10 15L24 1M10 8L17 1M17 15L24 8", stroke: "#fff", "stroke-width": 1.6 })); }
      return svg;
    }
    const dash = one.method === reference ? "6 4" : { solid: "none", dash: "7 4", dot: "2 3", dashdot: "7 3 2 3", longdash: "11 4", longdashdot: "11 3 2 3" }[look.dash];
    svg.append(element("line", { x1: 0, x2: 34, y1: 8, y2: 8, stroke: look.color, "stroke-width": one.front ? 6 : 2, "stroke-dasharray": dash, opacity: one.front ? 0.45 : 1 }));
    if (!one.front && !(kind === "time")) {
      const open = look.symbol.endsWith("-open");
      const mark = element("path", { d: MARKS[look.symbol.replace("-open", "")] || MARKS.circle, fill: open ? "#fff" : look.color, stroke: look.color, "stroke-width": 1.5, transform: "translate(17 8)" });
      svg.append(mark);
    }
    return svg;
  }

  function element(name, attributes) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) { made.setAttribute(key, value); }
    return made;
  }

  return { MEASURES, axis, bars, bytes, exported, front, frontTrace, heat, key, label, layout, lines, logAxis, series, style, use };
})();
