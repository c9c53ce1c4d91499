// The compare page in the browser alone: what is chosen, in the page and in its address, and when to ask.
"use strict";

(function () {
  const none = () => window.dash_clientside.no_update;

  window.dash_clientside = window.dash_clientside || {};
  window.dash_clientside.compare = {
    options(baseline, difference, seeds, settings, more) {
      const address = new URL(window.location.href);
      if (address.pathname === "/compare") {
        const said = { difference: difference ? "1" : "", seeds: seeds ? "1" : "", settings: settings ? "1" : "" };
        said.baseline = baseline && baseline !== address.searchParams.get("run") ? baseline : "";
        for (const [name, value] of Object.entries(said)) {
          if (value) address.searchParams.set(name, value);
          else address.searchParams.delete(name);
        }
        address.searchParams.delete("channel");
        for (const name of more || []) address.searchParams.append("channel", name);
        if (address.href !== window.location.href) window.history.replaceState(window.history.state, "", address);
      }
      return {
        baseline: baseline || "",
        difference: Boolean(difference),
        seeds: Boolean(seeds),
        settings: Boolean(settings),
        more: more || [],
      };
    },

    // A tab that nobody looks at, and one that still waits for an answer, asks for nothing by the clock.
    pulse(n, span, look, shown, options, busy) {
      const asked = window.dash_clientside.callback_context.triggered[0];
      if (asked && asked.prop_id.startsWith("compare-tick") && (busy || document.hidden)) return none();
      return { n: n || 0, span: span, look: look, shown: shown, options: options, at: Date.now() };
    },

    // Other runs are another page; how they are looked at stays.
    go(clicks, keys) {
      if (!clicks || !keys) return none();
      const said = new URLSearchParams(window.location.search);
      said.delete("run");
      const rest = [...said.entries()];
      const asked = new URLSearchParams([...keys.map((key) => ["run", key]), ...rest]);
      return "?" + asked.toString();
    },
  };
})();
