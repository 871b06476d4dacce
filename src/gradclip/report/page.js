"use strict";
// Waits for Bokeh, then ties the page's buttons and colours to its figures.
(function wait() {
  const page = window.Bokeh && Bokeh.documents[0];
  const panels = document.querySelectorAll(".panel").length;
  if (!page || page.roots().length < panels) { setTimeout(wait, 20); return; }
  const plots = page.roots();
  const steps = plots[0].x_range;
  const whole = [steps.start, steps.end];

  // Colours and room, from the page's own rules.
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 640px)");
  const wideLeft = plots[0].min_border_left;
  function dress() {
    const css = getComputedStyle(document.documentElement);
    const of = (name) => css.getPropertyValue(name).trim();
    const text = { major_label_text_color: of("--axis") };
    const axis = { ...text, axis_label_text_color: of("--axis"), axis_line_color: of("--line"), major_tick_line_color: of("--line") };
    for (const plot of plots) {
      plot.min_border_left = narrow.matches ? 48 : wideLeft;
      for (const part of [...plot.left, ...plot.below, ...plot.center]) {
        if (part.type.endsWith("Axis")) part.setv(part.major_tick_line_color === null ? { ...axis, major_tick_line_color: null } : axis);
        if (part.type === "Grid" && part.grid_line_color !== null) part.grid_line_color = of("--grid");
        if (part.type === "ColorBar") part.setv({ ...text, title_text_color: of("--axis") });
      }
    }
  }
  dress();
  dark.addEventListener("change", dress);
  narrow.addEventListener("change", dress);

  // What is shown: each line belongs to a run and to a kind of mark.
  const hidden = new Set();
  function show() {
    for (const plot of plots) {
      for (const line of plot.renderers) {
        const [trace, mark] = line.tags;
        line.visible = !hidden.has(trace) && !hidden.has(`${plot.name} ${mark}`);
      }
    }
    for (const section of document.querySelectorAll(".panel[data-trace]")) {
      section.hidden = hidden.has(`trace:${section.dataset.trace}`);
    }
  }
  for (const button of document.querySelectorAll("button[aria-pressed]")) {
    const { trace, panel, mark } = button.dataset;
    const key = mark ? `${panel} mark:${mark}` : `trace:${trace}`;
    button.addEventListener("click", () => {
      const on = hidden.delete(key);
      if (!on) hidden.add(key);
      button.setAttribute("aria-pressed", String(on));
      show();
    });
  }

  // Which steps are shown.
  const from = document.getElementById("from");
  const to = document.getElementById("to");
  const look = (start, end) => { if (start < end) steps.setv({ start, end }); };
  const tell = () => {
    from.value = Math.ceil(Math.max(steps.start, Number(from.min)));
    to.value = Math.floor(Math.min(steps.end, Number(to.max)));
  };
  steps.change.connect(tell);
  tell();
  for (const field of [from, to]) {
    field.addEventListener("change", () => look(Number(from.value) - 0.5, Number(to.value) + 0.5));
  }
  // The command goes to the clipboard; where the browser forbids that, it is selected.
  const take = (button) => {
    const command = button.parentElement.querySelector("code");
    getSelection().selectAllChildren(command);
    const said = (text) => { button.textContent = text; };
    if (!navigator.clipboard) { said("Selected"); return; }
    navigator.clipboard.writeText(command.textContent).then(() => said("Copied"), () => said("Selected"));
  };
  document.querySelector(".axis").addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const { move, zoom, all, step, copy } = button.dataset;
    const width = steps.end - steps.start;
    const middle = (steps.start + steps.end) / 2;
    if (move) look(steps.start + move * width, steps.end + move * width);
    if (zoom) look(middle - zoom * width / 2, middle + zoom * width / 2);
    if (all !== undefined) look(...whole);
    if (copy !== undefined) take(button);
    if (step) {
      const around = Math.max(10, (whole[1] - whole[0]) / 40);
      look(Number(step) - around, Number(step) + around);
      document.getElementById("panels").scrollIntoView({ behavior: "smooth" });
    }
  });
  document.documentElement.dataset.ready = "true";
})();
