// Follows a study: asks for what is new, keeps it, and draws. Texts are only ever set
// as text, so nothing that a run is called can become a part of the page.
"use strict";

const POLL = 2000, HIDDEN = 15000, SOON = 50;
const STATES = ["done", "diverged", "running", "interrupted", "failed", "new"];
const WORDS = { new: "missing" };
const DASHES = ["", "6 3", "2 2", "8 2 2 2"];
const COLOURS = 7;
const told = { session: "", look: 0, seen: 0 };
const runs = new Map();
const hidden = new Set();
let order = [], metrics = {}, chosen = decodeURIComponent(location.hash.slice(1)), closer = null;

const $ = (id) => document.getElementById(id);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key in made && key !== "list") made[key] = value; else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function shape(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// What the server tells ------------------------------------------------------------

function merge(curves, news) {
  for (const [name, add] of Object.entries(news)) {
    const curve = curves[name] ??= { steps: [], values: [] };
    curve.steps.length = curve.values.length = add.from;
    for (const step of add.steps) curve.steps.push(step);
    for (const value of add.values) curve.values.push(value);
    curve.last = add.last;
    curve.every = add.every;
  }
}

function take(answer) {
  if (answer.session !== told.session) { runs.clear(); closer = null; }
  told.session = answer.session;
  told.look = told.seen = answer.look;
  for (const run of answer.runs) {
    const known = runs.get(run.id);
    const curves = known && !run.anew ? known.curves : Object.create(null);
    merge(curves, run.curves);
    runs.set(run.id, { ...run, curves });
  }
  if (answer.order) {
    order = answer.order;
    const there = new Set(order);
    for (const id of [...runs.keys()]) if (!there.has(id)) runs.delete(id);
  }
  metrics = answer.metrics;
  if (answer.details && answer.details.id === chosen) {
    if (!closer || closer.id !== chosen || answer.details.anew) closer = { id: chosen, curves: Object.create(null) };
    closer.layers = answer.details.layers;
    merge(closer.curves, answer.details.curves);
  }
  return answer;
}

let timer = 0;
async function poll() {
  clearTimeout(timer);
  let wait = document.hidden ? HIDDEN : POLL;
  const asked = chosen;
  const seen = closer && closer.id === chosen ? told.seen : 0;
  try {
    const query = new URLSearchParams({ session: told.session, after: told.look, run: chosen, seen });
    const reply = await fetch(`/data?${query}`);
    if (!reply.ok) throw new Error(String(reply.status));
    const answer = take(await reply.json());
    say(answer);
    if (answer.unread) wait = SOON;
    if (!runs.has(chosen)) choose(firstRun());
    if (asked !== chosen) wait = 0;
    draw();
  } catch (error) {
    complain("The server does not answer; what is shown may be old.");
    console.error(error);
  }
  clearTimeout(timer);  // Of another request, if two were on their way.
  timer = setTimeout(poll, wait);
}

function firstRun() {
  const known = order.filter((id) => runs.has(id));
  return known.find((id) => runs.get(id).state === "running")
    ?? known.find((id) => runs.get(id).step > 0) ?? known[0] ?? "";
}

function choose(id) {
  if (id === chosen) return;
  chosen = id;
  closer = null;
  told.seen = 0;
  history.replaceState(null, "", `#${encodeURIComponent(id)}`);
}

// Words ----------------------------------------------------------------------------

function complain(text) {
  $("said").textContent = text;
  $("said").hidden = !text;
}

function isOver(state) { return state === "done" || state === "diverged"; }

function say(answer) {
  complain(answer.said);
  document.title = `${answer.study} – adaprec`;
  $("study").textContent = answer.study;
  const all = [...runs.values()];
  const over = all.filter((run) => isOver(run.state)).length;
  const training = all.filter((run) => run.state === "running").length;
  const parts = [`${over} of ${order.length} runs have a result`];
  const holes = order.length - over;
  if (holes) parts.push(holes === 1 ? "1 is a hole" : `${holes} are holes`);
  if (training) parts.push(`${training} of them ${training === 1 ? "trains" : "train"}`);
  if (answer.unread) parts.push(`${answer.unread} are still being read`);
  const text = parts.join(", ");
  if ($("lead").textContent !== text) $("lead").textContent = text;
}

function number(value, digits = 4) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const small = value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6);
  return small ? value.toExponential(Math.max(digits - 2, 0)).replace("e+", "e") : String(Number(value.toPrecision(digits)));
}

function percent(value) { return value === null ? "–" : `${Number((100 * value).toPrecision(3))} %`; }

function mean(values) { return values.reduce((sum, value) => sum + value, 0) / values.length; }

// Arms -----------------------------------------------------------------------------

function arms() {
  const found = new Map();
  for (const id of order) {
    const run = runs.get(id);
    if (!run) continue;
    if (!found.has(run.arm)) found.set(run.arm, { arm: run.arm, runs: [], number: found.size });
    found.get(run.arm).runs.push(run);
  }
  const list = [...found.values()];
  const names = list.map((arm) => new Set(arm.runs.map((run) => run.name)));
  const times = new Map();
  for (const each of names) for (const name of each) times.set(name, (times.get(name) ?? 0) + 1);
  list.forEach((arm, k) => {
    const [own] = names[k];
    arm.label = names[k].size === 1 && times.get(own) === 1 ? own : arm.arm;
    arm.colour = k % COLOURS;
    arm.dash = DASHES[Math.floor(k / COLOURS) % DASHES.length];
    for (const run of arm.runs) run.of = arm;
  });
  return list;
}

function title(run) { return `${run.of.label} seed ${run.seed}`; }

function head(table, names) {
  const row = element("tr");
  names.forEach((name, k) => row.append(element("th", { scope: "col", className: k && name !== "state" && name !== "why" ? "" : "text" }, name)));
  table.tHead.replaceChildren(row);
}

function armTable(list) {
  const shown = STATES.filter((state) => list.some((arm) => arm.runs.some((run) => run.state === state)));
  const metric = $("metric").value;
  const focused = document.activeElement?.dataset?.arm;
  head($("arms"), ["arm", ...shown.map((state) => WORDS[state] ?? state), metric ? `${metric.replace("validation/", "")}, mean of done` : "metric", "cost"]);
  $("arms").tBodies[0].replaceChildren(...list.map((arm) => {
    const box = element("input", { type: "checkbox", checked: !hidden.has(arm.arm) });
    box.dataset.arm = arm.arm;
    box.addEventListener("change", () => {
      if (box.checked) hidden.delete(arm.arm); else hidden.add(arm.arm);
      draw();
    });
    const sample = shape("svg", { viewBox: "0 0 30 12", "aria-hidden": "true" },
      shape("path", { d: "M0 6H30", class: `curve chosen c${arm.colour}`, "stroke-dasharray": arm.dash }),
      marker(arm, 15, 6, 4, true));
    const row = element("tr", {}, element("td", { className: "text" }, element("label", { className: "arm" }, box, sample, element("span", {}, arm.label))));
    for (const state of shown) {
      const count = arm.runs.filter((run) => run.state === state).length;
      const hole = state === "failed" || state === "interrupted" || state === "new";
      row.append(element("td", { className: hole && count ? "hole" : "" }, count ? String(count) : ""));
    }
    const done = arm.runs.filter((run) => run.state === "done");
    const values = done.map((run) => run.curves[metric]?.last[1]).filter((value) => typeof value === "number");
    const costs = done.map((run) => run.cost).filter((cost) => typeof cost === "number");
    row.append(element("td", {}, values.length ? number(mean(values)) : "–"), element("td", {}, costs.length ? number(mean(costs), 3) : "–"));
    return row;
  }));
  if (focused !== undefined) for (const box of $("arms").querySelectorAll("input")) if (box.dataset.arm === focused) box.focus();
}

// Axes -----------------------------------------------------------------------------

function ticks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((k) => k * power).find((each) => each >= raw) ?? raw;
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(k * step);
  return found;
}

function logTicks(low, high) {
  const found = [], first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
  const wide = last - first > 3;
  const every = Math.max(1, Math.ceil((last - first) / 6));
  for (let power = first; power <= last; power++) {
    if (wide && (power - first) % every) continue;
    for (const k of wide ? [1] : [1, 2, 5]) {
      const value = k * 10 ** power;
      if (value >= low * 0.999 && value <= high * 1.001) found.push(value);
    }
  }
  return found;
}

function axis(low, high, from, to, log) {
  if (!(high > low)) {
    const pad = log ? null : Math.abs(low) * 0.05 || 0.5;
    [low, high] = log ? [low / 1.5, high * 1.5] : [low - pad, high + pad];
  }
  const f = log ? Math.log : (x) => x;
  const scale = (to - from) / (f(high) - f(low));
  return {
    at: (x) => from + (f(x) - f(low)) * scale,
    back: (p) => (log ? Math.exp : (x) => x)(f(low) + (p - from) / scale),
    ticks: (count) => log ? logTicks(low, high) : ticks(low, high, count),
  };
}

function frame(figure, name, about, height) {
  if (!figure.firstChild) {
    figure.append(element("figcaption"), element("div"), element("p", { className: "readout" }));
  }
  const [caption, place, readout] = figure.children;
  caption.replaceChildren(name, element("span", {}, about ? ` ${about}` : ""));
  const width = Math.max(Math.round(place.clientWidth), 220);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", tabindex: 0, "aria-label": `${name} ${about}` });
  const focused = place.contains(document.activeElement);
  place.replaceChildren(svg);
  if (focused) svg.focus({ preventScroll: true });
  return { svg, width, height, readout, left: 52, right: width - 10, top: 8, bottom: height - 34 };
}

function axes(box, x, y, xName, text = (value) => number(value, 3)) {
  for (const value of y.ticks(5)) {
    const at = y.at(value);
    box.svg.append(shape("path", { class: "grid", d: `M${box.left} ${at.toFixed(1)}H${box.right}` }),
      shape("text", { x: box.left - 5, y: at + 4, "text-anchor": "end" }, text(value)));
  }
  let clear = -Infinity;
  for (const value of x.ticks(Math.max(3, Math.floor(box.width / 110)))) {
    const at = x.at(value), said = number(value, 3);
    if (at - clear < 7 * said.length) continue;
    clear = at + 8;
    box.svg.append(shape("path", { class: "grid", d: `M${at.toFixed(1)} ${box.bottom}v4` }),
      shape("text", { x: Math.min(at, box.right - 3 * said.length), y: box.bottom + 15, "text-anchor": "middle" }, said));
  }
  box.svg.append(shape("text", { x: (box.left + box.right) / 2, y: box.height - 4, "text-anchor": "middle" }, xName));
}

// Curves ---------------------------------------------------------------------------

function points(curve) {
  const { steps, values, last } = curve;
  const ends = steps.length && steps[steps.length - 1] === last[0];
  return ends ? [steps, values] : [[...steps, last[0]], [...values, last[1]]];
}

// lines: {curve, colour, dash, name, chosen}
function plot(figure, lines, name, about, options = {}) {
  const drawn = lines.map((line) => ({ ...line, xy: points(line.curve) }));
  figure.hidden = !drawn.length;
  if (!drawn.length) return;
  const positive = (value) => value !== null && (!options.log || value > 0);
  let low = Infinity, high = -Infinity, end = 1;
  for (const line of drawn) {
    for (const value of line.xy[1]) if (positive(value)) { if (value < low) low = value; if (value > high) high = value; }
    end = Math.max(end, line.xy[0].at(-1));
  }
  if (!(low <= high)) [low, high] = options.log ? [0.1, 1] : [0, 1];
  if (options.zero) { low = 0; high = high || 0.01; }
  const box = frame(figure, name, about, options.height ?? 230);
  const x = axis(0, end, box.left, box.right), y = axis(low, high, box.bottom, box.top, options.log);
  axes(box, x, y, "step", options.percent ? percent : undefined);
  const many = drawn.length > 12;
  drawn.sort((a, b) => (a.chosen ?? 0) - (b.chosen ?? 0));
  for (const line of drawn) {
    const [steps, values] = line.xy;
    let d = "", pen = "M", single = true;
    for (let k = 0; k < steps.length; k++) {
      if (!positive(values[k])) { pen = "M"; continue; }
      d += `${pen}${x.at(steps[k]).toFixed(1)} ${y.at(values[k]).toFixed(1)}`;
      if (pen === "L") single = false;
      pen = "L";
    }
    if (d && single) d += "h.01";
    box.svg.append(shape("path", { d, class: `curve c${line.colour}${many ? " many" : ""}${line.chosen ? " chosen" : ""}`, "stroke-dasharray": line.dash ?? "", "stroke-linecap": "round" }));
  }
  point(box, x, y, drawn, end, options.percent ? percent : number);
}

function valueAt([steps, values], step) {
  let low = 0, high = steps.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (steps[middle] <= step) low = middle; else high = middle - 1;
  }
  return steps[low] <= step ? [steps[low], values[low]] : [null, null];
}

// A line that follows the pointer, or the arrow keys, and says what is there.
const cursors = new WeakMap();
function point(box, x, y, lines, end, text) {
  const figure = box.svg.closest("figure");
  const cross = shape("path", { class: "cross", d: "" });
  box.svg.append(cross);
  const show = (step, height) => {
    step = Math.min(Math.max(step, 0), end);
    cursors.set(figure, { step, height });
    cross.setAttribute("d", `M${x.at(step).toFixed(1)} ${box.top}V${box.bottom}`);
    let best = null, distance = Infinity;
    for (const line of lines) {
      const [at, value] = valueAt(line.xy, step);
      if (value === null) continue;
      const away = height === null ? (line.chosen ? 0 : 1) : Math.abs(y.at(value) - height);
      if (away < distance) { distance = away; best = { line, at, value }; }
    }
    box.readout.textContent = best ? `step ${best.at}: ${text(best.value)}, ${best.line.name}` : `step ${Math.round(step)}: nothing yet`;
  };
  const leave = () => { cursors.delete(figure); cross.setAttribute("d", ""); box.readout.textContent = ""; };
  box.svg.addEventListener("pointermove", (event) => {
    const rectangle = box.svg.getBoundingClientRect();
    const ratio = box.width / rectangle.width;
    show(x.back((event.clientX - rectangle.left) * ratio), (event.clientY - rectangle.top) * ratio);
  });
  box.svg.addEventListener("pointerleave", leave);
  box.svg.addEventListener("blur", leave);
  box.svg.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") leave();
    if (!by) return;
    event.preventDefault();
    const now = cursors.get(figure)?.step ?? (by > 0 ? 0 : end);
    show(now + by * Math.max(end / 100, 1), null);
  });
  const before = cursors.get(figure);
  if (before) show(before.step, before.height);
}

function linesOf(list, name) {
  const found = [];
  for (const arm of list) {
    if (hidden.has(arm.arm)) continue;
    for (const run of arm.runs) {
      const curve = run.curves[name];
      if (curve) found.push({ curve, colour: arm.colour, dash: arm.dash, name: title(run), chosen: run.id === chosen });
    }
  }
  return found;
}

function thinned(lines) {
  const every = Math.max(1, ...lines.map((line) => line.curve.every));
  return every > 1 ? `(of up to ${every} rows one)` : "";
}

// The plane of metric and cost -----------------------------------------------------

function marker(arm, x, y, size, filled) {
  const kind = Math.floor(arm.number / COLOURS) % 4, s = size;
  const look = { class: `c${arm.colour} ${filled ? `f${arm.colour}` : "open"}` };
  if (kind === 0) return shape("circle", { ...look, cx: x, cy: y, r: s });
  const d = [null, `M${x - s} ${y - s}h${2 * s}v${2 * s}h${-2 * s}z`, `M${x} ${y - 1.3 * s}l${1.3 * s} ${1.3 * s}l${-1.3 * s} ${1.3 * s}l${-1.3 * s} ${-1.3 * s}z`,
    `M${x} ${y - s}l${s} ${2 * s}h${-2 * s}z`][kind];
  return shape("path", { ...look, d });
}

function plane(list, metric) {
  const figure = $("p-plane"), found = [], means = [];
  for (const arm of list) {
    if (hidden.has(arm.arm)) continue;
    const done = [];
    for (const run of arm.runs) {
      const value = run.curves[metric]?.last[1];
      if (typeof value !== "number" || !(run.cost > 0)) continue;
      const each = { arm, run, cost: run.cost, value };
      found.push(each);
      if (run.state === "done") done.push(each);
    }
    if (done.length) means.push({ arm, cost: mean(done.map((p) => p.cost)), value: mean(done.map((p) => p.value)), count: done.length });
  }
  figure.hidden = !found.length;
  if (!found.length) return;
  const costs = found.map((p) => p.cost), values = found.map((p) => p.value);
  const [least, most] = [Math.min(...costs), Math.max(...costs)];
  const log = most > 3 * least;
  const box = frame(figure, `${metric.replace("validation/", "")} against cost`, "small: runs, hollow until done; large: arms, of those done", 230);
  const pad = log ? [least / 1.3, most * 1.3] : [least - (most - least) * 0.06, most + (most - least) * 0.06];
  const spread = (Math.max(...values) - Math.min(...values)) * 0.06;
  const x = axis(...pad, box.left, box.right, log), y = axis(Math.min(...values) - spread, Math.max(...values) + spread, box.bottom, box.top);
  axes(box, x, y, "bit operations relative to float32");
  const higher = metrics[metric];
  if (higher !== null && higher !== undefined) {
    const sign = higher ? 1 : -1, front = [];
    for (const p of [...means].sort((a, b) => a.cost - b.cost || sign * (b.value - a.value))) {
      if (!front.length || sign * p.value > sign * front.at(-1).value) front.push(p);
    }
    box.svg.append(shape("path", { class: "front", d: front.map((p, k) => `${k ? "L" : "M"}${x.at(p.cost).toFixed(1)} ${y.at(p.value).toFixed(1)}`).join("") }));
  }
  const told = (p) => `${p.run ? title(p.run) : `${p.arm.label}, mean of ${p.count}`}: ${number(p.value)} at cost ${number(p.cost, 3)}`;
  for (const p of found) {
    const made = marker(p.arm, x.at(p.cost), y.at(p.value), p.run.id === chosen ? 5 : 3, p.run.state === "done");
    made.append(shape("title", {}, told(p)));
    box.svg.append(made);
  }
  for (const p of means) {
    const made = marker(p.arm, x.at(p.cost), y.at(p.value), 7, true);
    made.append(shape("title", {}, told(p)));
    box.svg.append(made);
  }
  box.svg.addEventListener("pointermove", (event) => {
    const rectangle = box.svg.getBoundingClientRect(), ratio = box.width / rectangle.width;
    const [px, py] = [(event.clientX - rectangle.left) * ratio, (event.clientY - rectangle.top) * ratio];
    const away = (p) => Math.hypot(x.at(p.cost) - px, y.at(p.value) - py);
    box.readout.textContent = told([...found, ...means].reduce((a, b) => away(b) < away(a) ? b : a));
  });
  let at = -1;
  box.svg.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    const all = [...means, ...found];
    at = (at + by + all.length) % all.length;
    box.readout.textContent = told(all[at]);
  });
}

// Precision of one run -------------------------------------------------------------

// As in the figures: a colour for each width there is, few bits dark.
const VIRIDIS = [[70, 12, 95], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
function shade(bits, widths) {
  const t = widths.length > 1 ? widths.indexOf(bits) / (widths.length - 1) * 4 : 2, k = Math.min(Math.floor(t), 3);
  return VIRIDIS[k].map((c, i) => Math.round(c + (VIRIDIS[k + 1][i] - c) * (t - k)));
}

function operandName(operands) {
  const parts = operands.map((name) => name.split("."));
  const roles = [...new Set(parts.map(([, role]) => role))].sort();
  const full = roles.every((role) => parts.filter(([, r]) => r === role).length === 2);
  if (operands.length === 6) return "all operands";
  return full ? roles.join(", ") : operands.join(", ");
}

function bits(run) {
  const figure = $("p-bits");
  const operands = closer ? Object.keys(closer.curves).filter((name) => name.startsWith("bits/")) : [];
  figure.hidden = !operands.length;
  if (!operands.length) return;
  const groups = new Map();
  for (const name of operands) {
    const { steps, values, last } = closer.curves[name];
    const same = steps.at(-1) === last[0];
    const all = same ? values : [...values, last[1]], starts = same ? steps : [...steps, last[0]];
    const key = JSON.stringify([starts, all]);
    if (!groups.has(key)) groups.set(key, { names: [], starts, values: all });
    groups.get(key).names.push(name.slice(5));
  }
  const layers = closer.layers.length, rows = [...groups.values()];
  const widths = [...new Set(rows.flatMap((group) => group.values.flat()))].filter((b) => b !== null).sort((a, b) => a - b);
  const every = Math.max(1, ...operands.map((name) => closer.curves[name].every));
  const cell = Math.max(5, Math.min(18, Math.floor(320 / (layers * rows.length))));
  const block = layers * cell + 24;
  const box = frame(figure, "Precision of each layer", `${title(run)}${every > 1 ? `, of ${every} changes one` : ""}`, rows.length * block + 52);
  const longest = Math.max(...closer.layers.map((name) => name.length));
  box.left = Math.min(Math.max(52, 6.4 * Math.min(longest, 24) + 10), box.width * 0.35);
  const end = Math.max(run.step, 1), x = axis(0, run.state === "running" ? run.steps : end, box.left, box.right);
  const room = Math.floor((box.left - 8) / 6.2), named = Math.ceil(12 / cell);
  const line = (b) => b === null ? "unknown" : `${b} bits`;
  rows.forEach((group, g) => {
    const top = g * block + 18;
    box.svg.append(shape("text", { x: box.left, y: top - 5 }, operandName(group.names)));
    for (let j = 0; j < layers; j++) {
      const name = closer.layers[j];
      if (j % named === 0) box.svg.append(shape("text", { x: box.left - 5, y: top + j * cell + Math.min(cell, 12), "text-anchor": "end" }, name.length > room ? `…${name.slice(1 - room)}` : name));
      let k = 0;
      while (k < group.starts.length) {
        let next = k + 1;
        while (next < group.starts.length && group.values[next][j] === group.values[k][j]) next++;
        const b = group.values[k][j], from = x.at(group.starts[k] - 1), to = x.at(next < group.starts.length ? group.starts[next] - 1 : end);
        if (b !== null) {
          const made = shape("rect", { x: from.toFixed(1), y: top + j * cell, width: Math.max(to - from, 0.3).toFixed(1), height: cell - (cell > 8 ? 1 : 0), fill: `rgb(${shade(b, widths)})` });
          made.append(shape("title", {}, `${name}, ${operandName(group.names)}: ${line(b)} from step ${group.starts[k]}`));
          box.svg.append(made);
        }
        k = next;
      }
    }
  });
  const bottom = rows.length * block + 2;
  for (const value of x.ticks(Math.max(3, Math.floor(box.width / 110)))) {
    box.svg.append(shape("path", { class: "grid", d: `M${x.at(value).toFixed(1)} ${bottom}v4` }), shape("text", { x: Math.min(x.at(value), box.right - 10), y: bottom + 15, "text-anchor": "middle" }, number(value, 3)));
  }
  const shown = widths.length > 9 ? widths.filter((_, k) => k % Math.ceil(widths.length / 9) === 0) : widths;
  const step = Math.min(30, (box.right - box.left - 30) / shown.length);
  shown.forEach((b, k) => {
    const [r, g, bl] = shade(b, widths), dark = 0.3 * r + 0.6 * g + 0.1 * bl < 130;
    box.svg.append(shape("rect", { x: box.left + k * step, y: bottom + 22, width: step - 2, height: 15, fill: `rgb(${[r, g, bl]})` }),
      shape("text", { x: box.left + k * step + step / 2 - 1, y: bottom + 33, "text-anchor": "middle", class: dark ? "on" : "off" }, String(b)));
  });
  box.svg.append(shape("text", { x: box.left + shown.length * step + 4, y: bottom + 33 }, "bits"));
  box.svg.addEventListener("pointermove", (event) => {
    const rectangle = box.svg.getBoundingClientRect(), ratio = box.width / rectangle.width;
    const height = (event.clientY - rectangle.top) * ratio, g = Math.floor(height / block), j = Math.floor((height - g * block - 18) / cell);
    const group = rows[g], step = Math.ceil(x.back((event.clientX - rectangle.left) * ratio));
    if (!group || j < 0 || j >= layers || step < 1 || step > end) { box.readout.textContent = ""; return; }
    const [at, row] = valueAt([group.starts, group.values], step);
    box.readout.textContent = at === null ? "" : `step ${step}: ${line(row[j])}, ${closer.layers[j]}, ${operandName(group.names)}`;
  });
}

function roles(kind) {
  if (!closer) return [];
  const names = Object.keys(closer.curves).filter((name) => name.startsWith(`${kind}/`)).sort();
  return names.map((name, k) => ({ curve: closer.curves[name], colour: k, dash: DASHES[k % 4], name: name.split("/")[1], chosen: true }));
}

function legend(lines) { return `largest of any layer; ${lines.map((line) => line.name).join(", ")}`; }

function one(run) {
  const parts = [`${WORDS[run.state] ?? run.state}, step ${run.step} of ${run.steps}`];
  if (run.left) parts.push(`${run.left} left`);
  if (run.cost !== null) parts.push(`cost ${number(run.cost, 3)}`);
  if (run.message) parts.push(run.message);
  $("one").textContent = parts.join(", ");
  bits(run);
  for (const [kind, id] of [["saturation_fraction", "p-saturation-roles"], ["underflow_fraction", "p-underflow-roles"]]) {
    const lines = roles(kind);
    plot($(id), lines, `${kind === "saturation_fraction" ? "Saturated" : "Underflowed"} elements by role`, "", { zero: true, percent: true, height: 190 });
    if (lines.length) key($(id), lines);
  }
}

function key(figure, lines) {
  const span = figure.querySelector("figcaption span");
  span.textContent = " ";
  for (const line of lines) {
    span.append(shape("svg", { viewBox: "0 0 24 10", width: 24, height: 10, class: "key", "aria-hidden": "true" },
      shape("path", { d: "M0 5H24", class: `curve chosen c${line.colour}`, "stroke-dasharray": line.dash })), ` ${line.name}  `);
  }
}

// The table of runs ----------------------------------------------------------------

function options(select, values, labels, value) {
  const now = JSON.stringify([values, labels]);
  if (select.dataset.now !== now) {
    select.dataset.now = now;
    select.replaceChildren(...values.map((each, k) => element("option", { value: each }, labels[k])));
  }
  if (values.includes(value)) select.value = value;
}

function runTable(list, metric) {
  const which = $("which").value;
  const wanted = { "": () => true, holes: (run) => !isOver(run.state), running: (run) => run.state === "running" }[which];
  const focused = document.activeElement?.dataset?.run;
  head($("runs"), ["run", "seed", "state", "step", "", "left", "loss", metric ? metric.replace("validation/", "") : "metric", "cost", "why"]);
  const rows = [];
  for (const arm of list) {
    for (const run of arm.runs.filter(wanted)) {
      const name = element("button", { type: "button" }, arm.label);
      name.dataset.run = run.id;
      name.addEventListener("click", () => { choose(run.id); draw(); poll(); $("h-one").scrollIntoView({ block: "start" }); });
      rows.push(element("tr", { className: run.id === chosen ? "chosen" : "" },
        element("td", { className: "text" }, name),
        element("td", {}, String(run.seed)),
        element("td", { className: `text ${isOver(run.state) ? "over" : run.state === "running" ? "" : "hole"}` }, WORDS[run.state] ?? run.state),
        element("td", {}, `${run.step}/${run.steps}`),
        element("td", {}, element("progress", { max: run.steps, value: run.step, ariaLabel: `${run.step} of ${run.steps} steps` })),
        element("td", {}, run.left),
        element("td", {}, number(run.curves.loss?.last[1])),
        element("td", {}, number(run.curves[metric]?.last[1])),
        element("td", {}, number(run.cost, 3)),
        element("td", { className: "message" }, run.message)));
    }
  }
  $("runs").tBodies[0].replaceChildren(...rows);
  if (focused !== undefined) for (const button of $("runs").querySelectorAll("button")) if (button.dataset.run === focused) button.focus({ preventScroll: true });
}

// All of it ------------------------------------------------------------------------

function draw() {
  const list = arms();
  const names = Object.keys(metrics);
  const preferred = names.find((name) => name === "validation/highest/accuracy") ?? names.find((name) => name.startsWith("validation/highest/")) ?? names[0];
  const metric = names.includes($("metric").value) ? $("metric").value : preferred ?? "";
  options($("metric"), names, names.map((name) => name.replace("validation/", "")), metric);
  const shown = [...runs.values()].filter((run) => run.of);
  options($("run"), order.filter((id) => runs.has(id)), order.filter((id) => runs.has(id)).map((id) => title(runs.get(id))), chosen);
  armTable(list);
  const loss = linesOf(list, "loss");
  plot($("p-loss"), loss, "Training loss", thinned(loss), { log: $("log").checked });
  const evaluated = linesOf(list, metric);
  plot($("p-metric"), evaluated, `Validation, ${metric.replace("validation/", "")}`, thinned(evaluated), { log: $("log").checked && metric.endsWith("loss") });
  plane(list, metric);
  plot($("p-saturation"), linesOf(list, "saturation_fraction"), "Saturated elements", "largest of any tensor", { zero: true, percent: true });
  plot($("p-underflow"), linesOf(list, "underflow_fraction"), "Underflowed elements", "largest of any tensor", { zero: true, percent: true });
  const scaled = shown.some((run) => run.curves.loss_scale && (run.curves.loss_scale.values.some((value) => value !== 1) || run.curves.loss_scale.last[1] !== 1));
  plot($("p-scale"), scaled ? linesOf(list, "loss_scale") : [], "Loss scale", "", { log: true });
  $("no-statistics").hidden = !shown.some((run) => run.curves.loss) || shown.some((run) => run.curves.saturation_fraction || run.curves.underflow_fraction);
  if (runs.has(chosen)) one(runs.get(chosen));
  runTable(list, metric);
}

for (const id of ["metric", "log", "which"]) $(id).addEventListener("change", draw);
$("run").addEventListener("change", (event) => { choose(event.target.value); draw(); poll(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
let resized = 0;
addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(draw, 100); });
poll();
