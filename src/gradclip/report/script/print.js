// On paper everything is open and light, and each plot is a picture as wide as the paper.
function preparePrint(plots, dress) {
  const folded = [];
  const pictures = [];
  const open = () => {
    close();
    for (const part of document.querySelectorAll("details:not([open])")) {
      folded.push(part);
      part.open = true;
    }
    dress("print");
    for (const plot of plots) {
      const root = rootOf(plot);
      if (!root.clientWidth) continue; // The reader has hidden this panel.
      const view = Bokeh.index.find_one(plot);
      view.repaint(); // In the colours of paper, before the browser goes on.
      const picture = document.createElement("img");
      picture.className = "paper";
      picture.alt = root.getAttribute("aria-label");
      picture.src = view.canvas_view.compose().canvas.toDataURL();
      root.append(picture);
      pictures.push(picture);
    }
  };
  const close = () => {
    for (const part of folded.splice(0)) part.open = false;
    for (const picture of pictures.splice(0)) picture.remove();
    dress();
  };
  addEventListener("beforeprint", open);
  addEventListener("afterprint", close);
}
