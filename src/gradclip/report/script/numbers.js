// Numbers as text, as gradclip.show.words.number writes them, and the ticks of logarithmic axes.
function numberText(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const rounded = Number(value.toPrecision(4));
  const size = Math.abs(rounded);
  const plain = size === 0 || (size >= 1e-4 && size < 1e4);
  const text = plain ? String(rounded) : rounded.toExponential().replace("e+", "e");
  return text.replaceAll("-", "−");
}

function logTicks(start, end) {
  const [low, high] = [Math.log10(start), Math.log10(end)];
  if (!(high > low)) return [];
  if (high - low < 0.5) {
    const rough = (end - start) / 4;
    const ten = 10 ** Math.floor(Math.log10(rough));
    const step = ten * [1, 2, 5, 10].find((each) => each * ten >= rough);
    const first = Math.ceil(start / step);
    return Array.from({ length: 8 }, (_, i) => (first + i) * step).filter((tick) => tick <= end);
  }
  const every = Math.max(1, Math.ceil((high - low) / 7));
  const parts = high - low < 2.5 ? [1, 2, 5] : [1];
  const ticks = [];
  for (let ten = Math.floor(low); ten <= high; ten += every) {
    for (const part of parts) ticks.push(Number(`${part}e${ten}`));
  }
  return ticks.filter((tick) => tick >= start && tick <= end);
}
