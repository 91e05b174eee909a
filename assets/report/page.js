"use strict";
// Draws the page from the JSON in it. All text goes in as text, never as HTML.
(() => {
  const root = document.getElementById("page");
  let data = JSON.parse(document.getElementById("data").textContent);
  let charts = [];

  // ---- Building blocks ----------------------------------------------------------------------------------------
  const has = (value) => value !== null && value !== undefined;
  const el = (tag, attributes, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
    for (const child of children.flat(Infinity)) if (has(child) && child !== false) node.append(child);
    return node;
  };
  const number = (value, digits = 4) => {
    if (!has(value) || !Number.isFinite(value)) return "–";
    if (value === 0) return "0";
    const size = Math.abs(value);
    return size >= 1e6 || size < 1e-4 ? value.toExponential(2) : String(Number(value.toPrecision(digits)));
  };
  const fixed = (value, digits) => (has(value) ? value.toFixed(digits) : "–");
  const percent = (share) => (has(share) ? `${fixed(100 * share, 1)} %` : "–");
  const duration = (seconds) => {
    if (!has(seconds)) return "–";
    if (seconds < 100) return `${number(seconds, 3)} s`;
    const minutes = Math.round(seconds / 6) / 10;
    return minutes < 100 ? `${minutes} min` : `${fixed(seconds / 3600, 1)} h`;
  };
  const bytes = (n) => {
    if (!has(n)) return "–";
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = 0;
    for (; n >= 1024 && unit + 1 < units.length; unit++) n /= 1024;
    return `${unit ? n.toFixed(n < 10 ? 2 : 1) : n} ${units[unit]}`;
  };
  const line = (row) => el("tr", null, row.map((cell) => (cell instanceof Node && cell.tagName === "TD" ? cell : el("td", null, cell))));
  const table = (head, rows, caption, attributes) => [
    el("div", { class: "scroll" }, el("table", attributes,
      el("thead", null, el("tr", null, head.map((h) => el("th", { scope: "col" }, h)))),
      el("tbody", null, rows.map((row) => (row instanceof Node ? row : line(row)))))),
    caption && el("p", { class: "caption" }, caption),
  ];
  const card = (title, ...children) => el("section", { class: "card" }, el("h3", null, title), ...children);
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // ---- Charts -------------------------------------------------------------------------------------------------
  // A figure with a chart: series are {label, values, color, points, line}. It is drawn once the page stands.
  const figure = (title, chart) => {
    const plot = el("div", { class: "plot" });
    charts.push({ title, plot, ...chart });
    return el("figure", null, el("h4", null, title), plot, chart.note && el("figcaption", null, chart.note));
  };
  // The part of a chart that somebody zoomed into, if they did.
  const zoomOf = ({ scales: { x }, data: [at] }) => (x.min > at[0] || x.max < at[at.length - 1] ? { min: x.min, max: x.max } : null);
  // What a chart is called, and where among those of that name, which stays when the page is made anew.
  const places = () => charts.map((chart, i) => `${chart.title} ${charts.slice(0, i).filter((c) => c.title === chart.title).length}`);
  const draw = (chart) => {
    const zoom = chart.drawn ? zoomOf(chart.drawn) : chart.zoom;
    if (chart.drawn) chart.drawn.destroy();
    const text = css("--soft"), grid = css("--line");
    const axis = (label, format) => ({
      stroke: text, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid, width: 1 }, label, labelSize: 20, size: 52,
      font: "11px system-ui, sans-serif", labelFont: "11px system-ui, sans-serif",
      values: (u, splits) => splits.map((v) => (has(v) ? format(v) : "")),
    });
    const all = chart.series.flatMap((s) => s.values).filter((v) => has(v));
    const [low, high] = [Math.min(...all.slice(0, 5e4)), Math.max(...all.slice(0, 5e4))];
    const log = chart.log && low > 0 && high / low > 20;
    const format = chart.format || ((v) => number(v));
    const formatX = (v) => number(v);
    const options = {
      width: chart.plot.clientWidth, height: 240,
      scales: { x: { time: false, ...(chart.range && { range: chart.range }) }, y: { distr: log ? 3 : 1, ...(chart.rangeY && { range: chart.rangeY }) } },
      axes: [{ ...axis(chart.x, formatX), size: 32 }, axis(chart.y, format)],
      series: [{ label: chart.x.split(" (")[0], value: (u, v) => (has(v) ? formatX(v) : "–") }, ...chart.series.map((s) => ({
        label: s.label, stroke: css(s.color), width: 1.6, spanGaps: false,
        paths: s.line === false ? () => null : undefined,
        // A little wider, or the line to the next block shows at its edges.
        gaps: (u, index, from, to, gaps) => gaps.map(([a, b]) => [a - uPlot.pxRatio, b + uPlot.pxRatio]),
        points: s.points ? { show: true, size: s.points, fill: s.hollow ? css("--card") : css(s.color), width: 2 } : { show: s.values.length < 2 },
        value: (u, v) => (has(v) ? format(v) : "–"),
      }))],
      legend: { live: chart.live !== false },
      cursor: { points: { size: 7 }, y: false },
      hooks: chart.labels ? { draw: [chart.labels] } : {},
    };
    chart.drawn = new uPlot(options, [chart.at, ...chart.series.map((s) => s.values)], chart.plot);
    if (zoom) chart.drawn.setScale("x", zoom);
  };
  const redraw = () => charts.forEach(draw);

  // ---- Parts of one run ---------------------------------------------------------------------------------------
  const row = (run, model) => (run.info.results || []).find((r) => r.model === model);
  const stages = (run) => (run.info.options && run.info.options.stages) || [];

  const tiles = (run) => {
    const [dense, result] = [row(run, "dense"), row(run, "result")];
    const memory = run.info.memory || {};
    const tile = (value, what) => el("div", { class: "tile" }, el("b", null, value), el("span", { class: "soft" }, what));
    return el("div", { class: "tiles" },
      result && (has(result.perplexity) ? tile(number(result.perplexity), `perplexity (dense ${number(dense && dense.perplexity)})`)
        : tile(number(result.nll), "nats per token (the perplexity overflows)")),
      result && has(result.kl_to_dense) && tile(number(result.kl_to_dense, 3), "nats KL to dense"),
      result && has(result.top1_agreement) && tile(percent(result.top1_agreement), "of tokens predicted as by dense"),
      has(run.info.seconds) && tile(duration(run.info.seconds), "in all"),
      has(memory.peak) ? tile(bytes(memory.peak), "device memory, peak") : has(memory.plan_total) ? tile(bytes(memory.plan_total), "device memory, planned") : null);
  };

  const setup = (run) => {
    const info = run.info;
    const asked = info.windows_asked > info.windows ? ` (${info.windows_asked} asked for)` : "";
    const kept = has(info.windows) ? `${info.windows} windows${asked} of ${info.window} tokens${info.segments ? `, ${info.segments}` : ""}` : null;
    const entries = [
      ["Model", info.model], ["Method", info.method], ["Pattern", info.pattern], ["Start mask", info.start],
      ["Stages", stages(run).map((s) => `${s.trains} on the ${s.objective} objective`).join(", then ")],
      ["Calibration", [info.calib, kept].filter(has).join(": ")], ["Measured on", info.eval], ["Seed", info.seed],
      ["Permuted", has(info.permutation) ? info.permutation.channels.join(", ") : null], ["Left dense", (info.left_dense || []).join(", ")],
      ["Kept weights", has(info.kept_weights_changed) ? (info.kept_weights_changed ? "changed" : "as in the source") : null],
      ["Adapter", info.adapter], ["Kernel preset", info.preset], ["Version", info.version],
      ["Interrupted", info.interrupted ? "yes: this is what there was until then" : null], ["Resumed", info.resumed ? "yes" : null],
    ].filter(([, value]) => has(value) && value !== "");
    return card("Configuration and adapter",
      entries.length ? el("dl", null, entries.map(([key, value]) => [el("dt", null, key), el("dd", null, String(value))])) : el("p", null, "Not known."),
      run.config && el("details", null, el("summary", null, "All options (config.toml)"), el("pre", null, run.config)),
      info.options && el("details", null, el("summary", null, "What they resolved to"), el("pre", null, JSON.stringify(info.options, null, 1))));
  };

  const results = (run) => {
    const rows = run.info.results || [];
    if (!rows.length) return null;
    const from = rows[0];
    return card("Perplexity", table(["model", "perplexity", "nats/token", "KL to dense", "top-1 as dense"],
      rows.map((r) => [r.model, fixed(r.perplexity, 3), fixed(r.nll, 4), has(r.kl_to_dense) ? fixed(r.kl_to_dense, 4) : "", has(r.top1_agreement) ? percent(r.top1_agreement) : ""]),
      `${from.windows} windows${run.info.eval_windows_asked > from.windows ? ` (${run.info.eval_windows_asked} asked for)` : ""} of ${from.window} tokens. KL: mean divergence from the dense model's prediction, nats per token.`));
  };

  // Steps with a gap between blocks, so that no line joins them.
  const curve = (curves, name) => {
    const [at, values] = [[], []];
    curves.step.forEach((step, i) => {
      if (i && curves.block[i] !== curves.block[i - 1]) { at.push(step - 0.5); values.push(null); }
      at.push(step);
      values.push(curves.columns[name][i]);
    });
    return { at, values };
  };
  const training = (run) => {
    const parts = run.curves.map((curves) => {
      const blocks = new Set(curves.block.filter(has)).size;
      const x = blocks ? `step (${blocks} blocks one behind another)` : "step";
      const objective = (stages(run)[curves.stage - 1] || {}).objective;
      const unit = blocks ? "share of the block's update" : "nats per token";
      const some = (title, names, y, log, note) => {
        const known = names.filter((name) => curves.columns[name]);
        if (!known.length) return null;
        const all = known.map((name) => curve(curves, name));
        return figure(title, {
          x, y, log, note, at: all[0].at,
          series: all.map((c, i) => ({ label: known[i], values: c.values, color: `--c${names.indexOf(known[i]) + (names.length > 1 ? 1 : 0)}` })),
        });
      };
      const thin = curves.every > 1 ? `Every ${curves.every}th of ${curves.steps} steps.` : null;
      const what = objective === "block" || blocks ? "squared error of the block's output" : null;
      return card(`Learning: ${curves.title}`,
        some("Loss", ["loss"], unit, true, [what && `Loss: ${what}.`, thin].filter(has).join(" ") || null),
        some("Residual and tracker", ["residual", "tracker"], unit, false, "Residual: loss of the drawn mask less that of the start mask; tracker: its moving average."),
        some("Temperature", ["temperature"], "", true));
    });
    return parts.length ? parts : null;
  };

  // As a block uses them; others come first.
  const order = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
  const short = (kind) => kind.replace(/_proj$/, "");
  const heat = (run, title, value, show, caption, tip) => {
    const known = run.cells.filter((cell) => has(value(cell)));
    if (!known.length) return null;
    const kinds = [...new Set(run.cells.map((cell) => cell.kind))].sort((a, b) => order.indexOf(a) - order.indexOf(b));
    const blocks = [...new Set(run.cells.map((cell) => cell.block))];
    const most = Math.max(...known.map(value));
    const rows = blocks.map((block) => el("tr", null, el("td", null, has(block) ? String(block) : "–"), kinds.map((kind) => {
      const cell = run.cells.find((c) => c.block === block && c.kind === kind);
      const v = cell && value(cell);
      if (!has(v)) return el("td", null, "");
      const strength = most > 0 ? 0.06 + 0.64 * (v / most) : 0;
      return el("td", { style: `background:rgba(${css("--heat")},${strength.toFixed(3)})`, title: `${cell.name}\n${tip(cell)}` }, show(v));
    })));
    return card(title, table(["block", ...kinds.map(short)], rows, caption, { class: "heat" }));
  };
  const three = (v) => (v >= 0.9995 ? v.toFixed(2) : v.toFixed(v < 0.01 ? 4 : 3).replace(/^0/, ""));
  const errors = (run) => {
    const tip = (c) => [["start", c.start], ["mask", c.error], ["repaired", c.repaired]].filter(([, v]) => has(v)).map(([k, v]) => `${k} ${number(v)}`).join(", ");
    const learns = run.learned.length > 0;
    const walk = learns ? " These are of the walk that made the start mask, before the learning." : "";
    return [
      heat(run, learns ? "Output error by projection, start mask" : "Output error by projection", (c) => c.error, three, `Squared error of the projection's output as a share of its energy.${walk}`, tip),
      heat(run, "Output error after the repair", (c) => c.repaired, three, "The same with the kept weights re-fitted.", tip),
    ].filter(has);
  };
  const moved = (run) => {
    const share = (c) => (has(c.changed) && c.groups ? c.changed / c.groups : null);
    const tip = (c) => `${c.changed} of ${has(c.groups) ? c.groups : "?"} groups`;
    const caption = "Share of the groups whose kept weights are not those of the start mask, in percent.";
    return heat(run, "How far the mask moved from its start", share, (v) => fixed(100 * v, 1), caption, tip)
      || heat(run, "How far the mask moved from its start", (c) => c.changed, String, "Groups that differ from the start mask.", tip);
  };
  const learned = (run) => {
    if (!run.learned.length) return null;
    const rows = run.learned.map((l) => [
      has(l.block) ? `block ${l.block}` : "model", has(l.stage) ? String(l.stage) : "–", number(l.start), number(l.error),
      l.skipped ? "adds nothing: start kept" : l.kept === false ? "start kept" : number(l.error / l.start, 3), has(l.groups_changed) ? l.groups_changed.toLocaleString("en") : "–", duration(l.seconds)]);
    return card("Blocks and model, before and after learning", table(["", "stage", "start", "learned", "ratio", "groups changed", "time"], rows,
      "Mean over 128 calibration windows with strict masks: of a block the squared error as a share of its update, of the model nats per token."));
  };
  const time = (run) => {
    const total = run.phases.reduce((sum, p) => sum + p.seconds, 0);
    const kernels = run.info.kernels;
    if (!run.phases.length && !kernels) return null;
    const bars = (seconds, all) => el("td", { class: "bars" }, el("span", { class: "bar", style: `width:${(100 * seconds / Math.max(all, 1e-9)).toFixed(1)}%` }));
    const rows = run.phases.map((p) => [el("td", { class: "text" }, p.phase), duration(p.seconds), percent(p.seconds / Math.max(total, 1e-9)), bars(p.seconds, total)]);
    const sum = (kernels || []).reduce((all, k) => all + k.ms, 0);
    return card("Time",
      rows.length ? table(["part", "time", "share", ""], rows, run.summed ? "Sums of what metrics.jsonl says; what lies between is not in them." : `${duration(total)} in all.`) : null,
      kernels ? table(["kernel", "calls", "ms", "share", "GFLOP/s", "GB/s"], kernels.map((k) => [k.kernel, String(k.calls), fixed(k.ms, 1), percent(k.ms / Math.max(sum, 1e-9)), fixed(k.gflops, 1), fixed(k.gbytes, 1)]), "Measured on the device by --profile.")
        : run.finished ? el("p", { class: "soft" }, "By kernel: not measured; prune --profile does so.") : null);
  };
  const memory = (run) => {
    const m = run.info.memory;
    if (!m || !m.plan) return null;
    const real = new Map((m.at_peak || []).map((i) => [i.item, i.bytes]));
    const names = [...new Set([...m.plan.map((i) => i.item), ...real.keys()])];
    const planned = new Map(m.plan.map((i) => [i.item, i.bytes]));
    const off = (a, b) => (has(a) && has(b) && a ? `${b >= a ? "+" : "−"}${fixed(Math.abs(100 * (b / a - 1)), 1)} %` : "");
    const rows = names.map((n) => [n, bytes(planned.get(n)), has(m.peak) ? bytes(real.get(n)) : "–", off(planned.get(n), real.get(n))]);
    rows.push(["total", bytes(m.plan_total), bytes(m.peak), off(m.plan_total, m.peak)].map((c) => el("td", null, el("b", null, c))));
    return card("Device memory, planned and measured", table(["", "plan", "at the peak", ""], rows));
  };
  const windows = (run) => {
    const w = run.windows && run.windows.loss;
    if (!w || !Array.isArray(w.dense) || !Array.isArray(w.result)) return null;
    return card("Loss by window", figure("Mean loss of every evaluation window", {
      x: "window", y: "nats per token", at: w.result.map((_, i) => i),
      series: [{ label: "dense", values: w.dense, color: "--c0" }, { label: "result", values: w.result, color: "--c1" }],
      note: `${run.windows.windows} windows of ${run.windows.window} tokens of ${run.windows.text}.`,
    }));
  };
  const visible = (token) => (token.trim() ? token : token.replace(/ /g, "␣").replace(/\n/g, "↵\n").replace(/\t/g, "⇥")) || "∅";
  const worst = (run) => {
    const list = (run.windows && run.windows.worst) || [];
    if (!list.length) return null;
    const items = list.map((t) => el("li", null,
      el("q", null, t.position > 12 ? "…" : "", t.before || "", el("mark", null, visible(String(t.token))), `${t.after || ""}…`),
      el("span", { class: "soft" }, `loss ${fixed(t.dense, 2)} → ${fixed(t.result, 2)} nats (+${fixed(t.rise, 2)}), window ${t.window}, token ${t.position}`)));
    const node = card("Tokens whose loss rose most", el("ol", { class: "worst" }, items));
    node.classList.add("long", "wide");
    return node;
  };
  const notes = (list, title) => (list.length ? el("div", { class: "notes" }, el("b", null, title), el("ul", null, list.map((t) => el("li", null, t)))) : null);

  // ---- The page -----------------------------------------------------------------------------------------------
  const topics = [
    ["Result", results], ["Configuration", setup], ["Learning", training], ["Errors", errors], ["Moves", moved], ["Blocks", learned],
    ["Time", time], ["Memory", memory], ["Windows", windows], ["Tokens", worst],
  ];
  const one = (run) => [
    el("h1", null, run.name),
    el("p", { class: "soft" }, [run.info.method, run.info.pattern, run.info.model, run.info.adapter].filter(has).join(" · ")),
    tiles(run),
    notes(run.missing, run.finished ? "Not on this page" : has(data.live) ? "Under way" : "Not finished"),
    el("div", { class: "grid", style: "margin-top:1rem" }, topics.map(([, make]) => make(run)).flat().filter(has)),
  ];

  const versus = () => {
    const { time, time_of: timeOf, memory, notes: remarks } = data.versus;
    const upTo = timeOf === "seconds" ? "that of the whole run, measuring included" : "that of the method, until its mask was there";
    const front = new Set([...time, ...memory].filter((p) => p.front).map((p) => p.run));
    const rows = data.runs.map((run, i) => {
      const [dense, result] = [row(run, "dense"), row(run, "result")];
      const cells = [run.name, run.info.method || "–", run.info.pattern || "–", fixed(dense && dense.perplexity, 3), fixed(result && result.perplexity, 3),
        fixed(result && result.kl_to_dense, 4), percent(result && result.top1_agreement), duration(run.info[timeOf]), bytes((run.info.memory || {}).peak)];
      return el("tr", front.has(i) ? { class: "front" } : null, cells.map((c) => el("td", null, c)));
    });
    // The largest unit of which there are two.
    const unitOf = (points, units) => units.findLast(([, size]) => points.some((p) => p.cost >= 2 * size)) || units[0];
    const scatter = (title, told, x, unit) => {
      if (!told.length) return null;
      const points = told.map((p) => ({ ...p, cost: p.cost / unit }));
      // Room for the names on both sides.
      const room = (u, low, high) => { const gap = (high - low || Math.abs(high) || 1) * 0.15; return [low - gap, high + gap]; };
      const labels = (u) => {
        const { ctx } = u, ratio = uPlot.pxRatio, middle = u.bbox.left + u.bbox.width / 2;
        ctx.save();
        ctx.font = `${11 * ratio}px system-ui, sans-serif`;
        ctx.fillStyle = css("--text");
        // From above, each beside its point or as far below as those before it leave room.
        const placed = [], high = 12 * ratio;
        const at = points.map((p) => ({ name: data.runs[p.run].name, px: u.valToPos(p.cost, "x", true), py: u.valToPos(p.perplexity, "y", true) }));
        at.sort((a, b) => a.py - b.py).forEach(({ name, px, py }) => {
          const right = px > middle, width = ctx.measureText(name).width;
          const left = right ? px - 9 * ratio - width : px + 9 * ratio;
          let y = py - 7 * ratio;
          const taken = () => placed.find((o) => left < o.left + o.width && o.left < left + width && Math.abs(o.y - y) < high);
          for (let other = taken(); other; other = taken()) y = other.y + high;
          placed.push({ left, width, y });
          ctx.fillText(name, left, y);
        });
        ctx.restore();
      };
      return card(title, figure("Lower left is better", {
        x, y: "perplexity of the result", at: points.map((p) => p.cost), labels, range: room, rangeY: room, live: false,
        series: [
          { label: "no other run beats it in both", values: points.map((p) => (p.front ? p.perplexity : null)), color: "--c2", points: 11, line: false },
          { label: "beaten", values: points.map((p) => (p.front ? null : p.perplexity)), color: "--c1", points: 9, hollow: true, line: false },
        ],
      }));
    };
    return [
      el("h1", null, `${data.runs.length} runs`),
      notes(remarks, "Before comparing"),
      el("div", { class: "card", style: "margin-top:1rem" }, table(["run", "method", "pattern", "dense", "perplexity", "KL to dense", "top-1 as dense", "time", "memory"], rows,
        `◆: no other run has a lower perplexity for as little time, or for as little memory (Pareto front). Time is ${upTo}; memory is the peak on the device.`)),
      el("div", { class: "grid", style: "margin-top:1rem" }, [
        scatter("Quality against time", time, ...unitOf(time, [["seconds", 1], ["minutes", 60], ["hours", 3600]])),
        scatter("Quality against memory", memory, ...unitOf(memory, [["KiB at the peak", 2 ** 10], ["MiB at the peak", 2 ** 20], ["GiB at the peak", 2 ** 30]]))].filter(has)),
    ];
  };
  const several = () => {
    const parts = versus();
    for (const [title, make] of topics) {
      const made = data.runs.map((run) => {
        const nodes = [make(run)].flat().filter(has);
        nodes.forEach((node) => node.prepend(el("div", { class: "soft" }, run.name)));
        return nodes;
      });
      if (!made.some((nodes) => nodes.length)) continue;
      parts.push(el("h2", null, title), el("div", { class: "grid several" }, made.flat()));
    }
    data.runs.forEach((run) => parts.push(notes(run.missing, `${run.name}: not on this page`)));
    return parts.filter(has);
  };
  const render = () => {
    root.classList.toggle("several", data.runs.length > 1);
    const open = new Set([...document.querySelectorAll("details[open] > summary")].map((s) => s.textContent));
    const before = places();
    const zooms = new Map(charts.map((chart, i) => [before[i], chart.drawn && zoomOf(chart.drawn)]));
    charts.forEach((chart) => chart.drawn && chart.drawn.destroy());
    charts = [];
    const state = has(data.live) ? el("p", { class: "soft", id: "live", role: "status" }, "live") : null;
    const body = data.runs.length > 1 ? several() : data.runs.length ? one(data.runs[0]) : [el("p", null, "The run has not begun yet.")];
    root.replaceChildren(...[state, ...body, el("footer", null, `Made by ${data.generator}. Charts: uPlot (MIT). Drag over a chart to zoom in, double-click to zoom out.`)].flat().filter(has));
    document.querySelectorAll("details").forEach((d) => { d.open = open.has(d.firstChild.textContent); });
    places().forEach((place, i) => { charts[i].zoom = zooms.get(place); });
    redraw();
  };

  render();
  let width = root.clientWidth;
  addEventListener("resize", () => { if (root.clientWidth !== width) { width = root.clientWidth; redraw(); } });
  const again = () => render();
  for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", again);
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => { d.open = true; }));

  // While a run goes on, its page asks for what is new.
  const poll = async () => {
    const status = document.getElementById("live");
    try {
      const answer = await fetch(`data.json?seen=${encodeURIComponent(data.live)}`, { cache: "no-store" });
      if (answer.status === 200) { data = await answer.json(); render(); }
      if (status) status.textContent = "live";
    } catch {
      if (status) status.textContent = "The run has ended, or cannot be reached: this is its last state.";
    }
    setTimeout(poll, 2000);
  };
  if (has(data.live)) setTimeout(poll, 2000);

  // What the charts hold, for those who test the page.
  window.maskwrightCharts = () => charts.map((c) => {
    const { series, data: held, scales: { x } } = c.drawn;
    return { title: c.title, x: [x.min, x.max], series: series.slice(1).map((s) => s.label), data: held.map((d) => Array.from(d)) };
  });
  // How many pixels of a chart are drawn.
  const pixels = ({ plot }) => {
    const canvas = plot.querySelector("canvas");
    const { data: all } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let drawn = 0;
    for (let i = 3; i < all.length; i += 4) if (all[i]) drawn++;
    return drawn;
  };
  if (location.hash === "#check") {
    setTimeout(() => {
      const held = window.maskwrightCharts().map((c, i) => ({ ...c, drawn: pixels(charts[i]) }));
      const found = { charts: held, height: document.documentElement.scrollHeight, overflow: document.documentElement.scrollWidth - innerWidth };
      const node = el("script", { type: "application/json", id: "checked" });
      node.textContent = JSON.stringify(found).replace(/</g, "\\u003c");
      document.body.append(node);
    }, 300);
  }
})();
