// Tags and a note in a form of their own: by thumb where the table has one column, and by the key e everywhere.
"use strict";

(function () {
  const FIELDS = ["tags", "note"];
  let row = null; // the run that the form is about, as it was when its words were taken
  let back = null; // what gets the focus when the form closes
  let form = null;
  let late = 0; // the timer of an answer that does not come
  const PATIENCE = 10000; // ms

  const make = (name, attributes, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };

  function build() {
    const title = make("h2", { id: "note-title" });
    const tags = make("input", { id: "note-tags", autocomplete: "off", enterkeyhint: "done" });
    const note = make("textarea", { id: "note-note", rows: "5", maxlength: "2000" });
    const said = make("p", { id: "note-said", role: "status", class: "trouble" });
    const close = make("button", { type: "button", class: "button" }, "Cancel");
    const keep = make("button", { type: "submit", class: "button", id: "note-keep" }, "Keep");
    const fields = [make("label", {}, "Tags, with commas between", tags), make("label", {}, "Note", note)];
    const inside = make("form", { method: "dialog" }, title, ...fields, said, make("div", { class: "note-buttons" }, close, keep));
    const dialog = make("dialog", { id: "note-form", class: "card", "aria-labelledby": "note-title" }, inside);
    close.addEventListener("click", () => dialog.close());
    inside.addEventListener("submit", (event) => {
      event.preventDefault();
      send();
    });
    note.addEventListener("keydown", (event) => (event.ctrlKey || event.metaKey) && event.key === "Enter" && send());
    dialog.addEventListener("close", () => {
      clearTimeout(late);
      row = null;
      if (back) back();
    });
    document.body.append(dialog);
    return { dialog, title, said, keep, tags, note };
  }

  function open(data, returns) {
    form = form || build();
    row = { ...data };
    back = returns;
    form.title.textContent = "Tags and note of " + data.run;
    for (const name of FIELDS) form[name].value = data[name] || "";
    tell("");
    form.dialog.showModal();
    form.tags.focus();
  }

  function tell(text) {
    clearTimeout(late);
    form.said.textContent = text;
    form.keep.disabled = false;
  }

  // The same words that a cell of the table sends; its answer comes to answered().
  function send() {
    const changed = FIELDS.filter((name) => form[name].value !== (row[name] || ""));
    if (!changed.length) return form.dialog.close();
    form.keep.disabled = true;
    const words = changed.map((name) => ({ rowId: row.key, colId: name, value: form[name].value, oldValue: row[name] || "" }));
    late = setTimeout(tell, PATIENCE, "The dashboard's server does not answer; these words are not kept yet.");
    window.dash_clientside.set_props("runs", { cellValueChanged: words });
  }

  // What was kept closes the form; what was not stays in it, with the reason.
  function answered(answer) {
    if (!row || !form.keep.disabled) return; // to a cell of the table, or to a form that was closed meanwhile
    const now = answer.rows.filter((one) => one.key === row.key).pop();
    if (!now && answer.rows.length) return;
    if (now) row = { ...now };
    if (answer.said.includes("Not kept")) tell(answer.said);
    else form.dialog.close();
  }

  window.trainwatchNotes = { open, answered };
})();
