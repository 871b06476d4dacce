// What the reader sees of the data: steps or time, smoothed or not, which runs, which scale.
const view = { axis: "step", weight: 0, hidden: new Set(), chosen: null };
const raw = new Map(); // Each source on the step axis, with its trace and the columns of the record.

const entry = (map, key) => (map instanceof Map ? map.get(key) : map[key]);
const fieldOf = (spec) => (typeof spec === "string" ? spec : spec.field);
const traceOf = (renderer) => Number(renderer.tags[0].slice(6));
const isMap = (plot) => PANELS[plot.name].trace !== null;
const scaleOf = (plot) => PANELS[plot.name].scale;
const onSteps = (plot) => plot.name !== "spread";

function remember(source, trace, data, plot) {
  raw.set(source, { trace, data, plot });
}

// The unit of the axis of time: seconds, minutes or hours.
const longest = Math.max(0, ...RUNS.map((run) => run.clock[1].at(-1) ?? 0));
const UNIT = longest > 7200 ? [3600, "hours"] : longest > 600 ? [60, "minutes"] : [1, "seconds"];

function timeOf(trace, step) {
  const [steps, seconds] = RUNS[trace].clock;
  if (!steps.length) return NaN;
  let [low, high] = [0, steps.length - 1];
  if (step <= steps[0]) return seconds[0] / UNIT[0];
  if (step >= steps[high]) return seconds[high] / UNIT[0];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= step) low = middle; else high = middle;
  }
  const share = (step - steps[low]) / (steps[high] - steps[low]);
  return (seconds[low] + share * (seconds[high] - seconds[low])) / UNIT[0];
}

// The label of a tick of the axis that all panels share.
function stepText(tick, ticks) {
  const gap = ticks.length > 1 ? ticks[1] - ticks[0] : 1;
  const digits = Math.max(0, Math.min(9, -Math.floor(Math.log10(gap))));
  return tick.toLocaleString("en", { maximumFractionDigits: digits });
}

// The mean that forgets: a step that is n steps back weighs weight ** n as much. On a logarithmic
// scale it is the mean of the logarithms, so that one spike does not lift all that follows.
function smoothed(steps, values, weight, log) {
  const found = new Float64Array(values.length).fill(NaN);
  let [sum, total, before] = [0, 0, null];
  for (let i = 0; i < values.length; i++) {
    if (!Number.isFinite(values[i])) continue;
    const kept = before === null ? 0 : weight ** Math.max(steps[i] - before, 1);
    sum = kept * sum + (1 - weight) * (log ? Math.log(values[i]) : values[i]);
    total = kept * total + (1 - weight);
    before = steps[i];
    found[i] = log ? Math.exp(sum / total) : sum / total;
  }
  return found;
}

// Give a source the columns that this view needs; a smoothed column has the name with a tilde.
function reshape(source) {
  const { trace, data, plot } = raw.get(source);
  const log = scaleOf(plot) === "log";
  const made = {};
  for (const [name, column] of Object.entries(data)) {
    const known = log && name !== "step";
    made[name] = known ? Float64Array.from(column, (value) => (value > 0 ? value : NaN)) : column;
  }
  const smooth = plot.renderers.filter((each) => each.data_source === source && each.tags.includes("smooth"));
  const names = smooth.map(({ glyph }) => fieldOf(glyph.y).replace("~", ""));
  const point = () => smooth.forEach(({ glyph }, i) => {
    glyph.y = { field: view.weight ? `${names[i]}~` : names[i] };
  });
  if (view.weight) {
    for (const name of names) made[`${name}~`] = smoothed(data.step, made[name], view.weight, log);
  } else point(); // No line may point at a column that is gone.
  if (view.axis === "time") {
    made.step = Float64Array.from(data.step, (step) => timeOf(trace, step));
  }
  source.data = made;
  point();
}

// Fit the y axis to the visible lines in the visible steps.
function fit(plot) {
  const panel = PANELS[plot.name];
  setTicks(plot);
  if (isMap(plot) || plot.name === "rate") return;
  const log = scaleOf(plot) === "log";
  const { start, end } = plot.x_range;
  let [low, high] = [Infinity, -Infinity];
  for (const { visible, tags, glyph, data_source: { data } } of plot.renderers) {
    if (!visible || !tags.includes("fit")) continue;
    const [xs, name] = [data[fieldOf(glyph.x)], fieldOf(glyph.y)];
    for (const ys of new Set([data[name], data[name.replace("~", "")]])) {
      for (let i = 0; i < xs.length; i++) {
        if (xs[i] < start || xs[i] > end || !Number.isFinite(ys[i]) || (log && ys[i] <= 0)) continue;
        low = Math.min(low, ys[i]);
        high = Math.max(high, ys[i]);
      }
    }
  }
  if (low > high) return;
  const range = scaleOf(plot) === panel.scales[0] || !panel.scales.length
    ? plot.y_range : entry(plot.extra_y_ranges, "other");
  if (log) {
    const [from, to] = [Math.log10(low), Math.log10(high)];
    const pad = Math.max(0.06 * (to - from), 0.04);
    range.setv({ start: 10 ** Math.max(from - pad, -323), end: 10 ** Math.min(to + pad, 308.2) });
  } else {
    const half = high / 2 - low / 2; // Halves cannot overflow.
    const pad = 0.12 * half || 0.1 * Math.abs(high) || 1;
    const least = (value) => Math.max(-1.7e308, Math.min(1.7e308, value));
    range.setv({ start: panel.low ?? least(low - pad), end: least(high + pad) });
  }
  setTicks(plot);
}

function setTicks(plot) {
  for (const axis of [...plot.left, ...plot.below]) {
    if (axis.type !== "LogAxis" || axis.ticker.type !== "FixedTicker") continue;
    const range = plot.below.includes(axis) ? plot.x_range
      : axis.y_range_name === "other" ? entry(plot.extra_y_ranges, "other") : plot.y_range;
    axis.ticker.ticks = logTicks(range.start, range.end);
  }
}

// Each line belongs to a run and to a kind of mark; the reader hides either.
function show(plots) {
  for (const plot of plots) {
    for (const line of plot.renderers) {
      const [trace, mark] = line.tags;
      const on = !view.hidden.has(trace) && !view.hidden.has(`${plot.name} ${mark}`);
      line.visible = on && (!line.tags.includes("raw") || view.weight > 0);
    }
    fit(plot);
  }
  for (const section of document.querySelectorAll(".panel[data-trace]")) {
    section.hidden = view.hidden.has(`trace:${section.dataset.trace}`) || view.axis === "time";
  }
  const note = document.getElementById("no-maps");
  if (note) note.hidden = view.axis !== "time";
}

function setScale(plot, scale) {
  const panel = PANELS[plot.name];
  panel.scale = scale;
  const other = scale !== panel.scales[0];
  for (const line of plot.renderers) {
    if (line.y_range_name !== "edge") line.y_range_name = other ? "other" : "default";
  }
  for (const part of [...plot.left, ...plot.center]) {
    const axis = part.type === "Grid" ? part.axis : part;
    if (part.type === "Grid" && part.dimension !== 1) continue;
    if (axis && (part.type === "Grid" || part.type.endsWith("Axis"))) {
      part.visible = (axis.y_range_name === "other") === other;
    }
  }
  for (const [source, { plot: own }] of raw) if (own === plot) reshape(source);
  fit(plot);
}
