// The tooltip of every panel over lines: the values of each run at the pointer.
const MOST_ROWS = 24;

function swatchOf({ colour, dash }) {
  const make = (name, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };
  const svg = make("svg", { width: 26, height: 10, viewBox: "0 0 26 10", "aria-hidden": "true" });
  const line = { d: "M0 5h26", stroke: colour, "stroke-width": 3 };
  svg.append(make("path", dash === "solid" ? line : { ...line, "stroke-dasharray": dash }));
  return svg;
}

function nearest(xs, x) {
  let [low, high] = [0, xs.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] <= x) low = middle; else high = middle;
  }
  return Math.abs(xs[high] - x) < Math.abs(xs[low] - x) ? high : low;
}

// The rows of the tooltip: a trace, its text and its place, nearest to x.
function rowsAt(plot, x) {
  const rows = [];
  for (const [index, text] of Object.entries(PANELS[plot.name].tips)) {
    const names = [...text.matchAll(/\{(\w+)\}/g)].map((match) => match[1]);
    const line = plot.renderers.find((each) =>
      each.tags[0] === `trace:${index}` && names.every((name) => name in each.data_source.data));
    if (!line || view.hidden.has(`trace:${index}`)) continue;
    const xs = line.data_source.data.step ?? line.data_source.data.x;
    if (!xs.length || x < xs[0] - reach(plot) || x > xs.at(-1) + reach(plot)) continue;
    const at = nearest(xs, x);
    const values = raw.get(line.data_source)?.data ?? line.data_source.data;
    const share = plot.name === "rate" || plot.name === "spread";
    const filled = text.replace(/\{(\w+)\}/g, (_, name) =>
      share ? `${numberText(100 * values[name][at])} %` : numberText(values[name][at]));
    rows.push({ index: Number(index), text: filled, x: xs[at], step: values.step?.[at] });
  }
  return rows;
}

const reach = (plot) => (plot.x_range.end - plot.x_range.start) / 100;

function headOf(plot, rows, x) {
  if (!onSteps(plot)) return `norm ${numberText(x)}`;
  const near = rows.reduce((a, b) => (Math.abs(b.x - x) < Math.abs(a.x - x) ? b : a));
  if (view.axis === "time") return `${numberText(near.x)} ${UNIT[1]}`;
  return `step ${near.step.toLocaleString("en")}`;
}

const rootOf = (plot) => document.querySelector(`section[aria-labelledby="h-${CSS.escape(plot.name)}"] .plot`);

function tipOf(plot) {
  const root = rootOf(plot);
  let tip = root.querySelector(".tip");
  if (!tip) {
    tip = document.createElement("div");
    tip.className = "tip";
    tip.hidden = true;
    root.append(tip);
  }
  return tip;
}

function pointedAt(event) {
  const plot = event.origin;
  if (isMap(plot)) {
    if (event.event_name === "tap") chooseRow(plot, event.y);
    return;
  }
  const tip = tipOf(plot);
  const rows = event.event_name === "mouseleave" ? [] : rowsAt(plot, event.x);
  tip.hidden = !rows.length;
  if (!rows.length) return;
  const head = document.createElement("b");
  head.textContent = headOf(plot, rows, event.x);
  tip.replaceChildren(head);
  for (const { index, text } of rows.slice(0, MOST_ROWS)) {
    const [row, name, value] = ["p", "span", "span"].map((tag) => document.createElement(tag));
    name.textContent = RUNS[index].label;
    value.textContent = text;
    row.append(swatchOf(RUNS[index]), name, value);
    tip.append(row);
  }
  if (rows.length > MOST_ROWS) tip.append(`and ${rows.length - MOST_ROWS} more runs`);
  const room = tip.parentElement.clientWidth;
  const left = event.sx + 16 + tip.offsetWidth > room ? event.sx - 16 - tip.offsetWidth : event.sx + 16;
  tip.style.left = `${Math.max(4, Math.min(left, room - tip.offsetWidth - 4))}px`;
  tip.style.top = `${Math.max(0, event.sy - 10)}px`;
}
