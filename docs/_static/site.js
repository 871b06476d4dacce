"use strict";
// A box that scrolls must be within reach of the keyboard, and only a box that scrolls.
document.addEventListener("DOMContentLoaded", () => {
  const boxes = document.querySelectorAll(".table-wrapper, .highlight pre");
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

  // A report of the gallery is loaded when somebody opens it.
  for (const box of document.querySelectorAll("details.live")) {
    const frame = box.querySelector("iframe");
    box.addEventListener("toggle", () => { frame.src = frame.dataset.src; }, { once: true });
  }
});
