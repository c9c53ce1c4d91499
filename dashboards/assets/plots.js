// What all plots of a page share: one line under the pointer, one plot at full screen, keys to walk through findings.
"use strict";

(function () {
  const graphs = () => document.querySelectorAll("figure.panel .js-plotly-plot");

  // One line at the same place of every plot; drawn beside plotly, so that no plot is drawn anew.
  function lineAt(x) {
    for (const graph of graphs()) {
      const axis = graph._fullLayout && graph._fullLayout.xaxis;
      if (!axis || graph.offsetParent === null) continue;
      let line = graph.querySelector(":scope > .hover-line");
      if (!line) {
        line = document.createElement("div");
        line.className = "hover-line";
        graph.appendChild(line);
      }
      const at = axis.d2p(x);
      const inside = at >= 0 && at <= axis._length;
      line.style.display = inside ? "block" : "none";
      if (!inside) continue;
      const size = graph._fullLayout._size;
      line.style.left = `${axis._offset + at}px`;
      line.style.top = `${size.t}px`;
      line.style.height = `${size.h}px`;
    }
  }

  function unline() {
    document.querySelectorAll(".hover-line").forEach((line) => (line.style.display = "none"));
  }

  const listening = new WeakSet();
  new MutationObserver(() => {
    for (const graph of graphs()) {
      if (listening.has(graph) || typeof graph.on !== "function") continue;
      listening.add(graph);
      graph.on("plotly_hover", (event) => lineAt(event.points[0].x));
      graph.on("plotly_unhover", unline);
    }
  }).observe(document.documentElement, { childList: true, subtree: true });

  document.addEventListener("click", (event) => {
    const button = event.target.closest(".enlarge");
    if (!button) return;
    if (document.fullscreenElement) document.exitFullscreen();
    else button.closest("figure.panel").requestFullscreen();
  });
  document.addEventListener("fullscreenchange", () => window.dispatchEvent(new Event("resize")));

  // Keys, unless somebody writes: n and p walk through the findings, 0 shows the whole run, / searches, ? tells.
  function walk(by) {
    const cards = [...document.querySelectorAll(".finding")].filter((card) => card.offsetParent !== null);
    if (!cards.length) return;
    const at = cards.indexOf(document.activeElement.closest && document.activeElement.closest(".finding"));
    const next = cards[at < 0 ? (by > 0 ? 0 : cards.length - 1) : (at + by + cards.length) % cards.length];
    next.tabIndex = -1;
    next.focus({ preventScroll: true });
    next.scrollIntoView({ block: "center" });
  }

  const click = (id) => () => {
    const button = document.getElementById(id);
    if (button && !button.hidden) button.click();
  };
  const keys = {
    n: () => walk(1),
    p: () => walk(-1),
    0: click("whole"),
    "/": () => {
      const field = document.querySelector("input[type='search']");
      if (field) field.focus();
    },
    "?": () => {
      const keys = document.getElementById("keys");
      keys.popover = "auto"; // an attribute that Dash does not know
      keys.togglePopover();
    },
  };
  document.addEventListener("keydown", (event) => {
    const writes = event.target.closest && event.target.closest("input, textarea, select, [contenteditable]");
    if (event.ctrlKey || event.metaKey || event.altKey || (writes && event.target.type !== "radio")) return;
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });

  // Words that are looked for in the configuration.
  document.addEventListener("input", (event) => {
    if (!event.target.matches("input.search-lines")) return;
    const wanted = event.target.value.toLowerCase();
    for (const line of event.target.closest("details").querySelectorAll(".line")) {
      line.hidden = !line.textContent.toLowerCase().includes(wanted);
    }
  });
})();
