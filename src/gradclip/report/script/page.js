// Waits for Bokeh, then ties the page's controls and colours to its figures.
(function wait() {
  const page = window.Bokeh && Bokeh.documents[0];
  const panels = document.querySelectorAll(".panel").length;
  if (!page || page.roots().length < panels) { setTimeout(wait, 20); return; }
  const plots = page.roots();
  const steps = plots.find(onSteps).x_range;
  const ofSteps = [steps.start, steps.end];
  let whole = ofSteps;
  const byId = (id) => document.getElementById(id);

  // Colours and room, from the page's own rules.
  const narrow = matchMedia("(max-width: 640px)");
  const wideLeft = plots[0].min_border_left;
  function dress(media) {
    document.documentElement.classList.toggle("light", media === "print");
    const css = getComputedStyle(document.documentElement);
    const of = (name) => css.getPropertyValue(name).trim();
    // A plot on paper is half as wide.
    const size = media === "print" ? { major_label_text_font_size: "17px", axis_label_text_font_size: "17px" } : { major_label_text_font_size: "12px", axis_label_text_font_size: "12px" };
    const text = { major_label_text_color: of("--axis") };
    const axis = { ...text, axis_label_text_color: of("--axis"), axis_line_color: of("--line"), major_tick_line_color: of("--line") };
    for (const plot of plots) {
      plot.min_border_left = narrow.matches ? 48 : wideLeft;
      for (const part of [...plot.left, ...plot.below, ...plot.center]) {
        if (part.type.endsWith("Axis")) part.setv({ ...(isMap(plot) || narrow.matches ? {} : size), ...(part.major_tick_line_color === null ? { ...axis, major_tick_line_color: null } : axis) });
        if (part.type === "Grid" && part.grid_line_color !== null) part.grid_line_color = of("--grid");
        if (part.type === "ColorBar") part.setv({ ...text, title_text_color: of("--axis") });
        if (part.type === "Span") part.line_color = of("--ink");
      }
    }
  }
  dress();
  narrow.addEventListener("change", () => dress());
  followTheme(dress);
  preparePrint(plots, dress);

  for (const plot of plots) {
    if (!onSteps(plot) || isMap(plot)) continue;
    for (const line of plot.renderers) {
      if (!raw.has(line.data_source) && traceOf(line) >= 0) {
        remember(line.data_source, traceOf(line), { ...line.data_source.data }, plot);
      }
    }
  }

  // Which runs and marks are shown. A run has a button in each legend.
  const keyOf = ({ trace, panel, mark }) => (mark ? `${panel} mark:${mark}` : `trace:${trace}`);
  const buttons = [...document.querySelectorAll("button[aria-pressed]")];
  function press() {
    for (const button of buttons) {
      button.setAttribute("aria-pressed", String(!view.hidden.has(keyOf(button.dataset))));
    }
    show(plots);
  }
  for (const button of buttons) {
    const key = keyOf(button.dataset);
    if (button.getAttribute("aria-pressed") === "false") view.hidden.add(key);
    button.addEventListener("click", () => {
      if (!view.hidden.delete(key)) view.hidden.add(key);
      press();
    });
    if (button.dataset.mark) continue;
    // Under the pointer, one run stands out.
    const mute = (others) => {
      for (const line of plots.filter((plot) => !isMap(plot)).flatMap((plot) => plot.renderers)) {
        line.muted = others && line.tags[0] !== key;
      }
    };
    for (const [name, on] of [["mouseenter", true], ["focus", true], ["mouseleave", false], ["blur", false]]) {
      button.addEventListener(name, () => mute(on && RUNS.length > 1 && !view.hidden.has(key) && (name !== "focus" || button.matches(":focus-visible"))));
    }
  }

  // Which steps, or times, are shown.
  const [from, to, goal] = ["from", "to", "goal"].map(byId);
  const look = (start, end) => { if (start < end) steps.setv({ start, end }); };
  const tell = () => {
    const round = (value, how) => (view.axis === "time" ? Number(value.toPrecision(4)) : Math[how](value));
    from.value = round(Math.max(steps.start, Number(from.min)), "ceil");
    to.value = round(Math.min(steps.end, Number(to.max)), "floor");
  };
  let waiting = false;
  steps.change.connect(() => {
    tell();
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      for (const plot of plots.filter(onSteps)) fit(plot);
    });
  });
  const spread = plots.find((plot) => !onSteps(plot));
  if (spread) spread.x_range.change.connect(() => setTicks(spread));
  const half = () => (view.axis === "time" ? 0 : 0.5);
  for (const field of [from, to]) {
    field.addEventListener("change", () => look(Number(from.value) - half(), Number(to.value) + half()));
  }

  // The step to which the reader jumps: a line in every panel, and both axes fitted.
  const lineAt = plots.find(onSteps).center.find((part) => part.type === "Span");
  function choose(step, trace) {
    view.chosen = { step, trace };
    goal.value = step;
    lineAt.setv({ location: view.axis === "time" ? timeOf(trace, step) : step, visible: true });
  }
  function jump(step, trace) {
    choose(step, trace);
    const width = whole[1] - whole[0];
    const around = view.axis === "time" ? width / 40 : Math.max(10, width / 40);
    look(lineAt.location - around, lineAt.location + around);
    byId("panels").scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  }
  goal.addEventListener("change", () => {
    if (goal.value === "") { view.chosen = null; lineAt.visible = false; return; }
    const step = Math.round(Math.max(Number(goal.min), Math.min(Number(goal.max), Number(goal.value))));
    const longestRun = RUNS.findIndex(({ clock }) => step <= (clock[0].at(-1) ?? -1));
    jump(step, Math.max(0, longestRun));
  });

  function setAxis(name) {
    view.axis = name;
    for (const source of raw.keys()) reshape(source);
    const time = name === "time";
    const last = Math.max(...RUNS.map((run) => run.clock[1].at(-1) ?? 0)) / UNIT[0];
    whole = time ? [-0.01 * last, 1.01 * last] : ofSteps;
    for (const plot of plots.filter(onSteps)) {
      plot.below[0].axis_label = time ? `${UNIT[1]} since the start of the run` : "step";
      plot.below[0].ticker.min_interval = time ? 0 : 1;
    }
    for (const field of [from, to]) {
      field.min = time ? 0 : goal.min;
      field.max = time ? last : goal.max;
      field.step = time ? "any" : 1;
    }
    byId("axis-word").textContent = time ? UNIT[1].replace(/^./, (c) => c.toUpperCase()) : "Steps";
    look(...whole);
    if (view.chosen) choose(view.chosen.step, view.chosen.trace);
    show(plots);
  }
  function setWeight(weight) {
    view.weight = weight;
    for (const [source, { plot }] of raw) if (plot.name === "loss" || plot.name === "norm") reshape(source);
    show(plots);
  }
  byId("x-axis")?.addEventListener("change", (event) => setAxis(event.target.value));
  byId("smooth").addEventListener("change", (event) => setWeight(Number(event.target.value)));
  for (const select of document.querySelectorAll("select[data-scale]")) {
    const plot = plots.find((each) => each.name === select.dataset.scale);
    select.addEventListener("change", () => setScale(plot, select.value));
  }
  layersOf(plots);

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
    const { move, zoom, all, step, of, copy } = button.dataset;
    const width = steps.end - steps.start;
    const middle = (steps.start + steps.end) / 2;
    if (move) look(steps.start + move * width, steps.end + move * width);
    if (zoom) look(middle - zoom * width / 2, middle + zoom * width / 2);
    if (all !== undefined) look(...whole);
    if (copy !== undefined) take(button);
    if (step) jump(Number(step), Number(of));
  });
  tell();
  press();
  if (window.restoreView) restoreView({ steps, whole: () => whole, look, press, jump, choose, setAxis, setWeight, plots });
  document.documentElement.dataset.ready = "true";
})();
