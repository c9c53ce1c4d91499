// What the pages do in the browser alone: when to ask, which steps to show, and what the tab says.
"use strict";

(function () {
  const none = () => window.dash_clientside.no_update;
  const trigger = () => {
    const asked = window.dash_clientside.callback_context.triggered[0];
    return asked ? asked.prop_id : "";
  };

  // Which panels are on screen: only their figures are asked for.
  let observed = new Set();
  let onScreen = null;
  let telling = null;

  function tell() {
    window.clearTimeout(telling);
    telling = window.setTimeout(() => {
      if (document.getElementById("findings")) {
        window.dash_clientside.set_props("shown", { data: [...onScreen].sort() });
      }
    }, 120);
  }

  const watcher = new IntersectionObserver(
    (entries) => {
      onScreen = onScreen || new Set();
      for (const entry of entries) {
        if (entry.isIntersecting) onScreen.add(entry.target.dataset.name);
        else onScreen.delete(entry.target.dataset.name);
      }
      tell();
    },
    { rootMargin: "200px 0px" },
  );

  new MutationObserver(() => {
    const panels = new Set(document.querySelectorAll("figure.panel"));
    for (const panel of panels) if (!observed.has(panel)) watcher.observe(panel);
    for (const gone of observed) {
      if (!panels.has(gone)) {
        watcher.unobserve(gone);
        if (onScreen) onScreen.delete(gone.dataset.name);
      }
    }
    observed = panels;
    document.querySelectorAll("details.rule-page[open]").forEach(unfold); // another finding may have moved there
  }).observe(document.documentElement, { childList: true, subtree: true });

  // A rule's page is asked for when somebody unfolds it, and once; all of it is set as text.
  const rulePages = new Map();
  function rulePage(name) {
    if (!rulePages.has(name)) {
      const asked = fetch("/rule/" + encodeURIComponent(name)).then((answer) => (answer.ok ? answer.json() : Promise.reject(answer.status)));
      asked.catch(() => rulePages.delete(name)); // another try may find the server again
      rulePages.set(name, asked);
    }
    return rulePages.get(name);
  }
  const element = (name, ...children) => {
    const made = document.createElement(name);
    made.append(...children);
    return made;
  };
  const pieces = (texts) => texts.map((text, index) => (index % 2 ? element("code", text) : text));
  function unfold(details) {
    const place = details.querySelector(".page[data-rule]");
    const name = place && place.dataset.rule;
    if (!place || place.dataset.filled === name) return;
    place.dataset.filled = name;
    rulePage(name).then(
      (parts) => {
        if (place.dataset.rule !== name) return;
        const paragraphs = (part) => part.paragraphs.map((texts) => element("p", ...pieces(texts)));
        place.replaceChildren(...parts.map((part) => element("div", ...(part.head ? [element("h4", part.head)] : []), ...paragraphs(part))));
      },
      () => {
        if (place.dataset.rule === name) place.replaceChildren("The dashboard's server does not answer; fold this and unfold it again.");
        unanswered.add(place);
      },
    );
  }
  // What did not come is asked for once an unfolding: these very words are a change of the page, which unfolds again.
  const unanswered = new WeakSet();
  function toggled(details) {
    const place = details.querySelector(".page[data-rule]");
    if (details.open) unfold(details);
    else if (unanswered.delete(place)) delete place.dataset.filled;
  }
  document.addEventListener("toggle", (event) => event.target.matches("details.rule-page") && toggled(event.target), true);

  // A page whose server has ended still looks alive: say that it is not.
  new PerformanceObserver((list) => {
    const asked = list.getEntries().filter((entry) => entry.name.includes("/_dash-update-component"));
    if (asked.length) {
      document.documentElement.classList.toggle("lost", asked[asked.length - 1].responseStatus === 0);
    }
    if (performance.getEntriesByType("resource").length > 200) performance.clearResourceTimings();
  }).observe({ type: "resource" });

  const icon = (name) => {
    let link = document.querySelector("link[rel='icon']");
    if (!link) {
      link = document.createElement("link");
      link.rel = "icon";
      document.head.appendChild(link);
    }
    link.type = "image/svg+xml";
    link.href = "/assets/icon-" + name + ".svg";
  };

  // A run that turns worse while nobody looks says so, if the browser was allowed to.
  const grades = ["none", "ok", "info", "warning", "critical"];
  let known = {};
  function tellWorse(face) {
    const at = window.location.search;
    const before = known[at];
    known = { [at]: face.icon };
    const worse = before && grades.indexOf(face.icon) > Math.max(grades.indexOf(before), grades.indexOf("info"));
    if (worse && "Notification" in window && Notification.permission === "granted") {
      new Notification(face.title, { icon: "/assets/icon-" + face.icon + ".svg", tag: at });
    }
  }
  document.addEventListener("click", (event) => {
    if (event.target.id === "notify" && "Notification" in window) Notification.requestPermission().then(offer);
  });
  function offer() {
    const button = document.getElementById("notify");
    if (button) button.hidden = !("Notification" in window) || Notification.permission !== "default";
  }
  document.addEventListener("DOMContentLoaded", () => new MutationObserver(offer).observe(document.body, { childList: true, subtree: true }));

  // The range that a hand zoomed to, from plotly's own words for it; undefined for anything else.
  function zoomed(event, unit, name) {
    if (!event) return undefined;
    if (event["xaxis.autorange"]) return null;
    let pair = event["xaxis.range"] || [event["xaxis.range[0]"], event["xaxis.range[1]"]];
    if (typeof pair[0] !== "number" || typeof pair[1] !== "number") return undefined;
    const log = isLog(name);
    if (log) pair = pair.map((end) => +(10 ** end).toPrecision(9)); // of a log axis plotly tells the powers
    if (unit !== "step") return { unit: unit, ends: pair };
    const first = Math.max(Math.floor(pair[0]), log ? 1 : -Infinity); // a log axis has no place for 0
    return { unit: unit, ends: [first, Math.max(Math.ceil(pair[1]), first + 1)] };
  }

  function isLog(name) {
    const graph = document.querySelector(`figure.panel[data-name="${CSS.escape(name)}"] .js-plotly-plot`);
    return Boolean(graph && graph._fullLayout && graph._fullLayout.xaxis && graph._fullLayout.xaxis.type === "log");
  }

  function reveal(name) {
    const panel = document.querySelector(`figure.panel[data-name="${CSS.escape(name)}"]`);
    if (!panel) return;
    const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    panel.scrollIntoView({ block: "center", behavior: calm ? "auto" : "smooth" });
    panel.classList.remove("proof");
    void panel.offsetWidth; // a second click plays the mark again
    panel.classList.add("proof");
  }

  window.dash_clientside = window.dash_clientside || {};
  window.dash_clientside.trainwatch = {
    // A tab that nobody looks at, and one that still waits for an answer, asks for nothing.
    pulse(n, span, look, shown, busy) {
      const byClock = trigger().startsWith("tick");
      if (byClock && (busy || document.hidden)) return none();
      return { n: n || 0, span: span, look: look, shown: shown, at: Date.now() };
    },

    pulse_runs(n, busy) {
      return busy || document.hidden ? none() : n;
    },

    zoom(relayouts, clicks, whole, span, look) {
      const what = trigger();
      if (what === "whole.n_clicks") return null;
      const at = what.lastIndexOf(".");
      let id = {};
      try {
        id = JSON.parse(what.slice(0, at));
      } catch {
        return none();
      }
      const value = window.dash_clientside.callback_context.triggered[0].value;
      if (!value) return none();
      if (id.type === "zoom") {
        if (id.figure) reveal(id.figure);
        return { unit: "step", ends: [id.first, id.last] };
      }
      const range = zoomed(value, (look || {}).against || "step", String(id.name));
      return range === undefined || JSON.stringify(range) === JSON.stringify(span) ? none() : range;
    },

    look(against, x_scale, scale, smooth) {
      return { against: against, x_scale: x_scale, scale: scale, smooth: smooth };
    },

    // What the plots show, in words and in the address, so that a link leads back to it.
    range(span, look) {
      const address = new URL(window.location.href);
      if (["/run", "/compare"].includes(address.pathname)) {
        const said = { x: look.against, xscale: look.x_scale, y: look.scale, smooth: look.smooth };
        const usual = { x: "step", xscale: "linear", y: "auto", smooth: "0" };
        for (const unit of ["step", "epoch", "samples", "tokens", "time", "stage"]) address.searchParams.delete(unit);
        if (span) address.searchParams.set(span.unit, span.ends.map((end) => +end.toFixed(6)).join("-"));
        for (const [name, value] of Object.entries(said)) {
          if (value && value !== usual[name]) address.searchParams.set(name, value);
          else address.searchParams.delete(name);
        }
        if (address.href !== window.location.href) window.history.replaceState(window.history.state, "", address);
      }
      if (!span) return ["whole run", true];
      const ends = span.ends.map((end) => end.toLocaleString("en", { maximumSignificantDigits: 6 }));
      return [`${span.unit === "step" ? "steps" : span.unit} ${ends[0]} to ${ends[1]}`, false];
    },

    face(face) {
      if (face) {
        document.title = face.title;
        icon(face.icon);
        tellWorse(face);
      }
      return none();
    },
  };

  // Everything that Dash hands to React is text there; so a name in a log stays a name.
  const cells = (window.dashAgGridComponentFunctions = window.dashAgGridComponentFunctions || {});
  const make = (...parts) => window.React.createElement(...parts);
  cells.Health = (props) =>
    make(
      "span",
      { className: "severity " + props.data.level },
      make("span", { className: "symbol", "aria-hidden": true }, props.data.symbol),
      props.value,
    );
  cells.State = (props) =>
    make(
      "span",
      { className: "state " + String(props.value).replace(" ", "-") },
      make("span", { className: "dot", "aria-hidden": true }),
      props.value,
    );
  cells.RunLink = (props) =>
    make(
      "a",
      { href: props.data.href, className: "run-link", title: props.data.file },
      make("strong", null, props.value),
      props.data.file === props.value ? null : make("span", { className: "dim" }, props.data.file),
    );

  const ranks = { "No finding": 0, "Not judged": 1, Info: 2, Warning: 3, Critical: 4 };
  const grid = (window.dashAgGridFunctions = window.dashAgGridFunctions || {});
  grid.byRank = (a, b) => ranks[a] - ranks[b];
  grid.trainwatchTheme = (agGrid) =>
    agGrid.themeQuartz.withParams({
      backgroundColor: "var(--card)",
      foregroundColor: "var(--text)",
      headerBackgroundColor: "var(--card)",
      headerTextColor: "var(--dim)",
      headerFontWeight: 500,
      borderColor: "var(--line)",
      rowBorder: true,
      columnBorder: false,
      wrapperBorder: false,
      headerColumnResizeHandleColor: "transparent",
      rowHoverColor: "var(--hover)",
      accentColor: "var(--accent)",
      fontFamily: "inherit",
      fontSize: 14,
      spacing: 8,
    });
})();
