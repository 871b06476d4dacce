// The lines of single layers: a click on a row of a map draws the row, a second click removes it.
const chosenRows = []; // The oldest first, each with the line that shows it.
let drawRows = () => {};

function rowAt(name, y) {
  const { layers } = PANELS[name];
  const below = Math.max(0, Math.min(layers.length - 1, Math.floor(y)));
  return { below, name: layers[layers.length - 1 - below] };
}

function chooseRow(plot, y) {
  const { below, name } = rowAt(plot.name, y);
  const key = `${plot.name} ${below}`;
  const known = chosenRows.findIndex((row) => row.key === key);
  if (known >= 0) chosenRows.splice(known, 1);
  else chosenRows.push({ key, name, below, map: plot, trace: PANELS[plot.name].trace });
  drawRows();
}

function layersOf(plots) {
  const plot = plots.find((each) => each.name === "layers");
  if (!plot) return;
  const section = document.querySelector('section[aria-labelledby="h-layers"]');
  const list = section.querySelector(".chosen");
  const slots = plot.renderers.filter((line) => line.tags.includes("layer"));
  drawRows = () => {
    while (chosenRows.length > slots.length) chosenRows.shift();
    section.classList.toggle("empty", !chosenRows.length);
    list.replaceChildren();
    const free = slots.filter((slot) => !chosenRows.some((row) => row.slot === slot));
    for (const row of chosenRows) {
      row.slot ??= free.shift();
      row.slot.tags = [`trace:${row.trace}`, "mark:layer", "fit", "layer"];
      remember(row.slot.data_source, row.trace, columnsOf(row), plot);
      list.append(chipOf(row));
    }
    for (const slot of free) {
      slot.tags = ["trace:-1", "mark:layer", "fit", "layer"];
      remember(slot.data_source, 0, { step: [], norm: [] }, plot);
    }
    for (const slot of slots) reshape(slot.data_source);
    show([plot]);
  };
  drawRows();
}

function columnsOf({ map, below }) {
  const cells = map.renderers.find((each) => each.tags[1] === "mark:cells").data_source.data;
  const picture = cells.image[0];
  const count = picture.shape[1];
  const [first, width] = [cells.x[0], cells.dw[0] / count];
  return {
    step: Float64Array.from({ length: count }, (_, i) => first + (i + 0.5) * width),
    norm: Float64Array.from(picture.slice(below * count, (below + 1) * count)),
  };
}

function chipOf(row) {
  const [item, button] = ["li", "button"].map((tag) => document.createElement(tag));
  button.type = "button";
  const text = RUNS.length > 1 ? `${row.name} · ${RUNS[row.trace].label}` : row.name;
  const line = row.slot.glyph;
  const dash = line.line_dash.value ?? line.line_dash;
  button.append(
    swatchOf({ colour: line.line_color.value ?? line.line_color, dash: Array.isArray(dash) ? dash.join(" ") || "solid" : dash }),
    text, " ×",
  );
  button.setAttribute("aria-label", `Remove ${text}`);
  button.addEventListener("click", () => {
    chosenRows.splice(chosenRows.indexOf(row), 1);
    drawRows();
  });
  item.append(button);
  return item;
}
