"use strict";
// A box that scrolls must be within reach of the keyboard, and only a box that scrolls.
document.addEventListener("DOMContentLoaded", () => {
  const boxes = document.querySelectorAll(".table-wrapper, .highlight pre, p:has(> img.wide)");
  const watch = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
      else target.removeAttribute("tabindex");
    }
  });
  for (const box of boxes) watch.observe(box);

  // A screen reader tells the two sidebars apart.
  const names = { ".sidebar-drawer": "All pages", ".toc-drawer": "On this page" };
  for (const [where, name] of Object.entries(names)) {
    document.querySelector(where)?.setAttribute("aria-label", name);
  }

  // A live report has the theme of the site, also after the reader switches it. The report says
  // when it listens.
  const tell = (report) => report?.postMessage({ theme: document.body.dataset.theme }, "*");
  const reports = () => [...document.querySelectorAll(".live iframe")].map((frame) => frame.contentWindow);
  addEventListener("message", ({ source }) => { if (reports().includes(source)) tell(source); });
  new MutationObserver(() => reports().forEach(tell))
    .observe(document.body, { attributeFilter: ["data-theme"] });

  // A report of the gallery is loaded when somebody opens it.
  for (const box of document.querySelectorAll("details.live")) {
    const frame = box.querySelector("iframe");
    box.addEventListener("toggle", () => { frame.src = frame.dataset.src; }, { once: true });
  }
});
