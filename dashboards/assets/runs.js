// The table of runs: what is searched, sorted, narrowed and chosen lives here and in the address; rows come from the server.
"use strict";

(function () {
  const none = () => window.dash_clientside.no_update;
  const at = (id) => document.getElementById(id);
  const make = (...parts) => window.React.createElement(...parts);
  const USUAL_SORT = "touched:desc";
  const CHIPS = 40;
  const MOST = 20; // runs that can be compared

  let api = null;
  let group = "none";
  let only = null; // the name of the one group that is shown
  let ahead = 0; // how many seconds the server's clock is ahead of this one

  // ---- groups: a run has one name in each, but for its tags
  const NO = { folder: "top folder", tags: "no tag" };
  const namesOf = (row, by) => {
    if (by === "tags" && row.tags) return row.tags.split(", ");
    return [row[by] || NO[by] || "unknown"];
  };
  const chipsBy = () => (group === "none" ? "state" : group);
  const order = {
    state: ["running", "stalled", "failed", "killed", "stopped", "never started", "unreadable", "reading", "finished"],
    health: ["Critical", "Warning", "Info", "No finding", "Not judged"],
  };
  function before(a, b) {
    const known = order[chipsBy()];
    if (known) return known.indexOf(a) - known.indexOf(b);
    return a.localeCompare(b, undefined, { numeric: true });
  }

  const grid = (window.dashAgGridFunctions = window.dashAgGridFunctions || {});
  grid.runsNarrowed = () => only !== null;
  grid.runsPass = (node) => only === null || namesOf(node.data, chipsBy()).includes(only);
  grid.runsGrouped = ({ nodes }) => {
    if (group === "none") return;
    const name = new Map(nodes.map((node) => [node, namesOf(node.data, group)[0]]));
    nodes.sort((a, b) => before(name.get(a), name.get(b))); // stable: inside a group the order stays
  };

  // ---- orders that are not those of the plain values
  const less = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
  const worth = ({ data }) => (data.loss !== null && data.loss !== undefined ? data.loss : data.loss_said === "n/a" ? Infinity : Number.MAX_VALUE);
  grid.byLoss = (_a, _b, one, other) => less(worth(one), worth(other));
  const now = () => Date.now() / 1000 + ahead;
  const fresh = (touched) => now() - touched < 60;
  // runs that write now would change places with every row, so they count as equal
  grid.byAge = (a, b) => (fresh(a) && fresh(b) ? 0 : less(a || 0, b || 0));

  // ---- cells: React makes text of whatever a log holds
  const cells = (window.dashAgGridComponentFunctions = window.dashAgGridComponentFunctions || {});
  const shapes = { nan: "M-3,-3L3,3M-3,3L3,-3", inf: "M-3.5,3L3.5,3L0,-3.5Z", "-inf": "M-3.5,-3L3.5,-3L0,3.5Z" };
  cells.Loss = ({ data }) => {
    if (!data.curve) return null;
    const bad = data.bad.map(([x, kind], index) =>
      make("path", { key: index, d: shapes[kind], transform: `translate(${x},${kind === "-inf" ? 25 : 5})`, className: kind === "nan" ? "nan" : "inf" }),
    );
    const lines = data.line.map((points, index) => make("polyline", { key: index, points: points }));
    const drawn = make("svg", { viewBox: "0 0 120 30", width: 84, height: 30, role: "img", "aria-label": data.curve }, make("title", null, data.curve), ...lines, ...bad);
    return make("span", { className: "spark" }, drawn, make("span", { className: data.bad.length && data.loss === null ? "broken" : "" }, data.loss_said));
  };
  cells.Steps = ({ data }) => {
    if (data.steps === null || data.steps === undefined) return null;
    const words = [make("span", { key: "at" }, data.steps.toLocaleString("en"))];
    if (data.of) words.push(make("span", { key: "of", className: "dim" }, " of " + data.of.toLocaleString("en")));
    const title = data.of ? `${data.steps.toLocaleString("en")} of ${data.of.toLocaleString("en")}` : undefined;
    if (data.progress === null) return make("span", { title: title }, words);
    const done = make("span", { className: "done", style: { width: 100 * data.progress + "%" } });
    return make("span", { className: "steps", title: title }, make("span", null, words), make("span", { className: "way", "aria-hidden": true }, done));
  };
  cells.Speed = ({ data }) => {
    const running = data.state === "running" && data.left;
    return make("span", { className: "two" }, make("span", null, data.speed_said), running ? make("span", { className: "dim" }, data.left) : null);
  };
  cells.Cause = ({ data, value }) => (value ? make("span", { className: "cause", title: value }, value) : make("span", { className: "dim" }, data.state === "reading" ? "is being read …" : data.level === "ok" ? "nothing found" : ""));
  cells.Age = ({ value }) => (value ? make("span", { title: "last row: " + new Date(1000 * value).toLocaleString() }, since(now() - value)) : null);
  cells.Tags = ({ value }) => (value ? make("span", { className: "tags", title: value }, value.split(", ").map((tag) => make("span", { key: tag, className: "chip" }, tag))) : make("span", { className: "add" }, "add tags"));
  cells.Note = ({ value }) => (value ? make("span", { className: "cause", title: value }, value) : make("span", { className: "add" }, "add a note"));
  cells.Group = ({ data, node, api: table }) => {
    const name = namesOf(data, chipsBy())[0];
    const above = node.rowIndex ? table.getDisplayedRowAtIndex(node.rowIndex - 1) : null;
    return above && namesOf(above.data, chipsBy())[0] === name ? null : make("strong", { className: "group-name", title: name }, name);
  };
  // The whole row in one cell, and all of it a link: what a thumb can hit.
  cells.Stack = (props) => {
    const { data } = props;
    const state = data.state && make(cells.State, { data: data, value: data.state });
    const head = group !== "none" && make("span", { className: "stack-group" }, make(cells.Group, props));
    const link = make(
      "a",
      { href: data.href, className: "stack run-link", title: data.file, tabIndex: -1 },
      head,
      make("span", { className: "stack-head" }, make("strong", null, data.run), make(cells.Age, { value: data.touched })),
      make("span", { className: "stack-line" }, make(cells.Health, { data: data, value: data.health }), state),
      make(cells.Cause, { data: data, value: data.cause }),
      make("span", { className: "stack-line" }, make(cells.Loss, props), make(cells.Steps, props)),
      make("span", { className: "dim stack-note" }, [data.tags, data.note].filter(Boolean).join(" · ") || "no tags, no note"),
    );
    const edit = { type: "button", className: "stack-edit", tabIndex: -1, "aria-label": "Edit tags and note of " + data.run, onClick: () => annotate(props.node) };
    return make("span", { className: "stack-cell" }, link, make("button", edit, "Edit"));
  };
  // The form of assets/notes.js; the focus goes back to the row.
  function annotate(node) {
    const column = slim.matches ? "stack" : "run";
    window.trainwatchNotes.open(node.data, () => alive() && node.rowIndex !== null && api.setFocusedCell(node.rowIndex, column));
  }

  // in one word, as a column has no room for two; the exact time is the cell's title
  function since(seconds) {
    const minutes = Math.floor(seconds / 60);
    if (minutes < 1) return "now";
    if (minutes < 60) return `${minutes} min`;
    if (minutes < 48 * 60) return `${Math.floor(minutes / 60)} h`;
    return `${Math.floor(minutes / 1440)} d`;
  }
  window.setInterval(() => {
    if (alive() && !document.hidden) api.refreshCells({ columns: ["touched", "stack"], force: true });
  }, 15000);

  // ---- a narrow screen has room for one column
  const slim = window.matchMedia("(max-width: 700px)");
  const TALL = { slim: { rowHeight: 182, headerHeight: 0 }, wide: { rowHeight: 52, headerHeight: undefined } };
  function fit() {
    if (!alive()) return;
    const columns = api.getColumns().map((column) => column.getColId()).filter((name) => !name.startsWith("ag-Grid"));
    const shown = columns.filter((name) => (slim.matches ? name === "stack" : name !== "stack" && (name !== "group" || group !== "none")));
    api.setColumnsVisible(columns.filter((name) => !shown.includes(name)), false);
    api.setColumnsVisible(shown, true);
    for (const [name, value] of Object.entries(TALL[slim.matches ? "slim" : "wide"])) api.setGridOption(name, value);
  }
  slim.addEventListener("change", fit);

  // ---- the page around the table
  const alive = () => api && !api.isDestroyed() && at("runs");
  const show = (id, there) => at(id) && at(id).style.setProperty("display", there ? "" : "none");

  function tell() {
    if (!alive()) return;
    const rows = [];
    api.forEachNode((node) => rows.push(node.data));
    const shown = api.getDisplayedRowCount();
    const running = rows.filter((row) => row.state === "running").length;
    const text = shown === rows.length ? `${rows.length.toLocaleString("en")} in all` : `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")} shown`;
    say("runs-count", text + (running ? `, ${running} running` : ""));
    for (const id of ["runs-table", "runs-tools"]) show(id, rows.length);
    show("runs-empty", !rows.length);
    at("runs-table").style.setProperty("--rows", rows.length);
    at("runs-sort").value = sorted(); // an order that it does not offer is no choice of it
    at("runs-whole").hidden = shown === rows.length && !narrowed();
    chips(rows);
    progress(rows);
  }
  function say(id, text) {
    if (at(id).textContent !== text) at(id).textContent = text; // a screen reader reads what changes
  }
  function progress(rows) {
    const read = rows.filter((row) => row.state !== "reading").length;
    const reading = read < rows.length;
    at("runs-reading").hidden = !reading;
    if (!reading) return;
    at("runs-read").max = rows.length;
    at("runs-read").value = read;
    at("runs-read-said").textContent = `Reading for the first time: ${read.toLocaleString("en")} of ${rows.length.toLocaleString("en")} files`;
  }

  function chips(rows) {
    const by = chipsBy();
    const counts = new Map();
    for (const row of rows) for (const name of namesOf(row, by)) counts.set(name, (counts.get(name) || 0) + 1);
    if (only !== null && !counts.has(only)) counts.set(only, 0);
    const names = [...counts.keys()].sort(before);
    const offered = names.length > CHIPS ? names.filter((name, index) => index < CHIPS || name === only) : names;
    const bar = at("runs-chips");
    const wanted = JSON.stringify([by, only, offered.map((name) => [name, counts.get(name)]), names.length]);
    if (bar.dataset.shown === wanted) return;
    bar.dataset.shown = wanted;
    const focused = bar.contains(document.activeElement) ? document.activeElement.dataset.name : null;
    bar.replaceChildren(...offered.map((name) => chip(name, counts.get(name), by)));
    if (offered.length < names.length) bar.append(`and ${names.length - offered.length} more: search for them`);
    if (focused !== null) [...bar.children].find((one) => one.dataset && one.dataset.name === focused)?.focus();
  }
  function chip(name, count, by) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "choice";
    button.dataset.name = name;
    button.setAttribute("aria-pressed", String(only === name));
    if (by === "state") {
      const dot = document.createElement("span");
      dot.className = "dot";
      dot.setAttribute("aria-hidden", "true");
      button.classList.add("state", name.replace(" ", "-"));
      button.append(dot);
    }
    const number = document.createElement("span");
    number.className = "dim";
    number.textContent = count.toLocaleString("en");
    button.append(name, " ", number);
    return button;
  }

  const narrowed = () => only !== null || Boolean(at("runs-search").value) || Object.keys(api.getFilterModel()).length > 0;
  function narrow(name) {
    only = name;
    api.onFilterChanged();
    remember();
    tell();
  }
  function groupBy(name) {
    group = name;
    only = null;
    fit();
    api.onFilterChanged();
    api.refreshClientSideRowModel("sort");
    remember();
    tell();
  }
  function sortBy(said) {
    const known = said.split(",").map((part) => part.split(":")).filter(([name, way]) => api.getColumn(name) && ["asc", "desc"].includes(way));
    const state = known.map(([name, way], index) => ({ colId: name, sort: way, sortIndex: index }));
    api.applyColumnState({ state: state, defaultState: { sort: null } });
  }
  let searching = null;
  function search(value) {
    window.clearTimeout(searching);
    searching = window.setTimeout(() => {
      if (!alive()) return;
      api.setGridOption("quickFilterText", value);
      remember();
    }, 80);
  }
  function typed(text) {
    at("runs-search").value = text;
    window.dash_clientside.set_props("runs-search", { value: text }); // Dash keeps it as well
  }
  function whole() {
    typed("");
    api.setGridOption("quickFilterText", "");
    api.setFilterModel(null);
    narrow(null);
    at("runs-search").focus();
  }

  document.addEventListener("input", (event) => event.target.id === "runs-search" && search(event.target.value));
  document.addEventListener("change", (event) => {
    if (event.target.id === "runs-group" && alive()) groupBy(event.target.value);
    if (event.target.id === "runs-sort" && alive()) sortBy(event.target.value);
  });
  document.addEventListener("click", (event) => {
    if (!alive() || !event.target.closest) return;
    const pressed = event.target.closest("#runs-chips .choice");
    if (pressed) narrow(only === pressed.dataset.name ? null : pressed.dataset.name);
    else if (event.target.closest("#runs-whole")) whole();
  });

  // ---- the address: a link shows a colleague the same
  const sorted = () =>
    api
      .getColumnState()
      .filter((column) => column.sort)
      .sort((a, b) => a.sortIndex - b.sortIndex)
      .map((column) => `${column.colId}:${column.sort}`)
      .join(",");

  function remember() {
    const address = new URL(window.location.href);
    if (!alive() || address.pathname !== "/") return;
    const filter = api.getFilterModel();
    const said = {
      q: at("runs-search").value,
      sort: sorted() === USUAL_SORT ? "" : sorted() || "none",
      group: group === "none" ? "" : group,
      only: only,
      filter: Object.keys(filter).length ? JSON.stringify(filter) : "",
    };
    for (const [name, value] of Object.entries(said)) {
      if (value) address.searchParams.set(name, value);
      else address.searchParams.delete(name);
    }
    if (address.href !== window.location.href) window.history.replaceState(window.history.state, "", address);
  }

  // An address is somebody else's word: what makes no sense in it is left out.
  function recall() {
    const said = new URL(window.location.href).searchParams;
    const groups = [...at("runs-group").options].map((option) => option.value);
    group = groups.includes(said.get("group")) ? said.get("group") : "none";
    only = said.get("only");
    at("runs-group").value = group;
    typed(said.get("q") || "");
    sortBy(said.get("sort") || USUAL_SORT);
    fit();
    api.setGridOption("quickFilterText", said.get("q") || "");
    filtered(said.get("filter"));
    api.onFilterChanged();
  }
  function filtered(text) {
    let model = null;
    try {
      model = JSON.parse(text || "{}");
    } catch {
      return;
    }
    const known = {};
    for (const [name, filter] of Object.entries(model || {})) {
      const column = api.getColumn(name);
      const kind = column && column.getColDef().filter === "agNumberColumnFilter" ? "number" : "text";
      const typed = ["string", "number"].includes(typeof (filter || {}).filter) || ["blank", "notBlank"].includes((filter || {}).type);
      if (column && column.getColDef().filter && filter && filter.filterType === kind && typed) known[name] = filter;
    }
    api.setFilterModel(known);
  }

  // ---- chosen runs
  function chosen() {
    const rows = api.getSelectedNodes().filter((node) => node.data.state !== "unreadable");
    return rows.sort((a, b) => (a.rowIndex ?? Infinity) - (b.rowIndex ?? Infinity)).map((node) => node.data.key);
  }
  function offer() {
    const count = chosen().length;
    const fits = count >= 2 && count <= MOST;
    const why = count > MOST ? `At most ${MOST} runs are compared at once.` : "Choose two runs or more with the boxes on the left.";
    const children = count ? `Compare ${count} run${count > 1 ? "s" : ""}` : "Compare";
    // by Dash: React keeps the clicks of a button that it knows as disabled to itself
    window.dash_clientside.set_props("runs-compare", { children: children, disabled: !fits, title: fits ? "" : why });
  }

  function upsert(rows, gone) {
    const changes = { add: [], update: [], remove: [] };
    for (const row of rows) changes[api.getRowNode(row.key) ? "update" : "add"].push(row);
    for (const key of gone || []) if (api.getRowNode(key)) changes.remove.push({ key: key });
    if (changes.add.length + changes.update.length + changes.remove.length) api.applyTransaction(changes);
  }

  let waiting = []; // what came before the table was there
  function take(news) {
    if (!alive()) return void waiting.push(news);
    if (news.now) ahead = Math.abs(news.now - Date.now() / 1000) < 2 ? 0 : news.now - Date.now() / 1000;
    if (news.all && news.rows.length) {
      const there = new Set(news.rows.map((row) => row.key));
      const gone = [];
      api.forEachNode((node) => there.has(node.data.key) || gone.push(node.data.key));
      upsert(news.rows, gone);
    } else upsert(news.rows, news.gone);
    if (news.trouble !== undefined) {
      at("runs-trouble").hidden = !news.trouble;
      say("runs-trouble", news.trouble);
    }
    tell();
  }

  let table = 0;
  async function mount() {
    const mine = ++table;
    api = null;
    waiting = [];
    const found = await window.dash_ag_grid.getApiAsync("runs");
    if (mine !== table || !at("runs")) return;
    api = found;
    recall();
    for (const event of ["filterChanged", "sortChanged"]) api.addEventListener(event, () => { remember(); tell(); });
    api.addEventListener("selectionChanged", offer);
    api.addEventListener("modelUpdated", () => group !== "none" && api.refreshCells({ columns: ["group", "stack"], force: true }));
    api.addEventListener("cellKeyDown", ({ event, column, data, node }) => {
      if (event.key === "Enter" && ["run", "stack"].includes(column.getColId())) window.location.assign(data.href);
      const typed = event.ctrlKey || event.metaKey || event.altKey || column.getColDef().editable; // there a key begins a word
      if (event.key === "e" && !typed) {
        event.preventDefault(); // not into the form
        annotate(node);
      }
    });
    offer();
    for (const news of waiting.splice(0)) take(news);
    tell();
  }

  window.dash_clientside = window.dash_clientside || {};
  window.dash_clientside.trainwatchRuns = {
    mount() {
      mount();
      return none();
    },
    apply(news) {
      if (news) take(news);
      return none();
    },
    edited(answer) {
      if (answer && alive()) {
        upsert(answer.rows);
        at("runs-said").hidden = !answer.said;
        say("runs-said", answer.said);
        at("runs-said").classList.toggle("trouble", answer.said.includes("Not kept"));
        window.trainwatchNotes.answered(answer);
        tell();
      }
      return none();
    },
    compare(clicks) {
      if (!clicks || !alive()) return none();
      return "/compare?" + chosen().map((key) => "run=" + encodeURIComponent(key)).join("&");
    },
  };
})();
