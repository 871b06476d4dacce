// The page follows the system's theme, and in a frame the theme that the page around it asks for.
const THEMES = new Map([
  ["auto", ["light dark", "screen and (prefers-color-scheme: dark)"]],
  ["dark", ["dark", "screen"]],
  ["light", ["light", "not all"]],
]);

function followTheme(dress) {
  const ofDark = [...document.styleSheets].flatMap((sheet) => [...sheet.cssRules])
    .find((rule) => rule.media && rule.conditionText.includes("dark"));
  addEventListener("message", ({ source, data }) => {
    const theme = THEMES.get(data?.theme);
    if (window === parent || source !== parent || !theme) return;
    [document.querySelector("meta[name='color-scheme']").content, ofDark.media.mediaText] = theme;
    dress();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => dress());
  if (window !== parent) parent.postMessage("gradclip: ready for a theme", "*");
}
