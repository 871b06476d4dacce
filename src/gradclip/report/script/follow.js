// A page that follows a run looks into its own file in a hidden frame, loads itself anew once the
// file was written anew, and goes on where the reader was. A page cannot read a file otherwise.
const LOOKS = "gradclip looks";
if (window.name === LOOKS && window.parent !== window) {
  parent.postMessage({ written: PAGE.written }, "*");
  window.stop(); // The frame needs no more than the first lines.
} else if (PAGE.every !== null) {
  let frame = null;
  addEventListener("message", ({ source, data }) => {
    if (!frame || source !== frame.contentWindow) return;
    frame.remove();
    frame = null;
    if (data.written === PAGE.written) return;
    history.replaceState({ gradclip: savedView() }, "");
    location.reload();
  });
  setInterval(() => {
    if (frame) frame.remove();
    frame = document.createElement("iframe");
    frame.name = LOOKS;
    frame.hidden = true;
    frame.src = location.href.split("#")[0];
    document.body.append(frame);
  }, 1000 * PAGE.every);
}

let atWhole = () => null;

function savedView() {
  return {
    scroll: scrollY,
    open: [...document.querySelectorAll("details")].map((part) => part.open),
    hidden: [...view.hidden],
    axis: view.axis,
    weight: view.weight,
    chosen: view.chosen,
    scales: Object.fromEntries(Object.entries(PANELS).map(([name, panel]) => [name, panel.scale])),
    rows: chosenRows.map(({ map, below }) => [map.name, below]),
    steps: atWhole(),
  };
}

function restoreView({ steps, whole, look, press, choose, setAxis, setWeight, plots }) {
  atWhole = () => {
    const [start, end] = whole();
    return steps.start === start && steps.end === end ? null : [steps.start, steps.end];
  };
  const saved = history.state?.gradclip;
  history.scrollRestoration = "manual";
  if (!saved) return;
  const folds = document.querySelectorAll("details");
  if (folds.length === saved.open.length) folds.forEach((part, i) => { part.open = saved.open[i]; });
  view.hidden = new Set(saved.hidden);
  for (const select of document.querySelectorAll("select[data-scale]")) {
    select.value = saved.scales[select.dataset.scale] ?? select.value;
    select.dispatchEvent(new Event("change"));
  }
  const smooth = document.getElementById("smooth");
  smooth.value = String(saved.weight);
  setWeight(saved.weight);
  const axis = document.getElementById("x-axis");
  if (axis && saved.axis === "time") {
    axis.value = "time";
    setAxis("time");
  }
  for (const [name, below] of saved.rows) {
    const map = plots.find((plot) => plot.name === name);
    if (map && below < PANELS[name].layers.length) chooseRow(map, below);
  }
  press();
  if (saved.chosen) choose(saved.chosen.step, saved.chosen.trace);
  if (saved.steps) look(...saved.steps);
  const settle = () => scrollTo(0, saved.scroll);
  requestAnimationFrame(settle);
  setTimeout(settle, 300); // The figures have their heights by then.
}
