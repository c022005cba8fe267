/** Verdicts stay in this browser until they are exported. */

const verdicts = {
  key: "morpheus-verdicts",
  known: new Map(),

  /** Read what was kept; a browser that keeps nothing is no error. */
  restore() {
    try {
      this.known = new Map(JSON.parse(localStorage.getItem(this.key) ?? "[]"));
    } catch {
      this.known = new Map();
    }
  },

  keep() {
    try {
      localStorage.setItem(this.key, JSON.stringify([...this.known]));
    } catch {
      announce("This browser keeps no verdicts: export them before you close the page.");
    }
  },

  of(incident) {
    return this.known.get(incident.id)?.verdict ?? null;
  },

  note(incident) {
    return this.known.get(incident.id)?.note ?? "";
  },

  /** Give a verdict; the same one again takes it back. */
  give(incident, verdict) {
    if (this.of(incident) === verdict) this.known.delete(incident.id);
    else this.known.set(incident.id, { verdict, note: this.note(incident) });
    this.keep();
  },

  write(incident, note) {
    const verdict = this.of(incident);
    if (verdict) this.known.set(incident.id, { verdict, note });
    this.keep();
  },

  /** Those on the incidents of this page, in the form that `morpheus tools suppress` reads. */
  exported() {
    return {
      format: "morpheus-verdicts",
      version: 1,
      made: new Date().toISOString(),
      verdicts: data.incidents.filter((one) => this.of(one)).map((one) => this.line(one)),
    };
  },

  line(incident) {
    return {
      incident: incident.id,
      user: incident.user,
      verdict: this.of(incident),
      note: this.note(incident),
      start: incident.start,
      end: incident.end,
      events: incident.count,
      columns: incident.columns,
    };
  },
};

function exportVerdicts() {
  const text = `${JSON.stringify(verdicts.exported(), null, 1)}\n`;
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  element("a", { href: url, download: "verdicts.json" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
  announce("Verdicts exported.");
}

/** Judge what is marked, or else what is open. */
function judge(verdict) {
  const open = current();
  const marked = data.incidents.filter((incident) => state.marked.has(incident.id));
  const judged = marked.length ? marked : [open].filter(Boolean);
  for (const incident of judged) verdicts.give(incident, verdict);
  state.marked.clear();
  announce(`${count(judged.length, "incident")}: ${verdict}.`);
  renderInbox();
  renderDetail();
}

function verdictButtons(incident) {
  const given = verdicts.of(incident);
  const buttons = VERDICTS.map((verdict, place) =>
    button(verdict, () => judge(verdict), {
      class: `verdict ${verdict}`,
      "aria-pressed": String(given === verdict),
      title: `Key ${place + 1}`,
    }),
  );
  const note = element("input", {
    type: "text",
    "aria-label": "Note on the verdict",
    placeholder: given ? "Note: why, and who says so" : "Note: first a verdict",
    disabled: !given,
    maxlength: 500,
    onchange: (event) => verdicts.write(incident, event.target.value),
  });
  note.value = verdicts.note(incident);
  const label = { class: "verdicts", role: "group", "aria-label": "Verdict" };
  return element("div", label, buttons, note);
}
