/** Verdicts, stored in this browser until they are exported. */

function verdictLabel(verdict) {
  return VERDICT_LABELS[verdict] ?? verdict;
}

/** Show a verdict: a mark and its word. */
function verdictBadge(verdict) {
  return element("span", { class: `verdict-badge ${verdict}` }, `✓ ${verdictLabel(verdict)}`);
}

const verdicts = {
  key: "morpheus-verdicts",
  stored: new Map(),

  /** Load stored verdicts. A browser without storage is not an error. */
  restore() {
    try {
      this.stored = new Map(JSON.parse(localStorage.getItem(this.key) ?? "[]"));
    } catch {
      this.stored = new Map();
    }
  },

  save() {
    try {
      localStorage.setItem(this.key, JSON.stringify([...this.stored]));
    } catch {
      announce("This browser cannot store verdicts. Export them before you close the page.");
    }
  },

  get(incident) {
    return this.stored.get(incident.id)?.verdict ?? null;
  },

  note(incident) {
    return this.stored.get(incident.id)?.note ?? "";
  },

  /** Return what else to do about the incident; see `Tuning` of the verdicts file. */
  tuning(incident) {
    return this.stored.get(incident.id)?.tuning ?? null;
  },

  /** Set a verdict, or remove it if it is set already. Only harmless incidents keep their wish. */
  toggle(incident, verdict) {
    const tuning = BENIGN.includes(verdict) ? this.tuning(incident) : null;
    if (this.get(incident) === verdict) this.stored.delete(incident.id);
    else this.stored.set(incident.id, { verdict, note: this.note(incident), tuning });
    this.save();
  },

  setNote(incident, note) {
    const verdict = this.get(incident);
    if (verdict) this.stored.set(incident.id, { verdict, note, tuning: this.tuning(incident) });
    this.save();
  },

  /** Set or remove a wish. An incident with a wish is harmless. */
  setTuning(incident, tuning) {
    const given = this.get(incident);
    const verdict = BENIGN.includes(given) ? given : "expected";
    this.stored.set(incident.id, { verdict, note: this.note(incident), tuning });
    this.save();
  },

  /** Return the verdicts of this page's incidents, as `morpheus tools suppress` reads them. */
  toExport() {
    return {
      format: "morpheus-verdicts",
      version: 2,
      made: new Date().toISOString(),
      verdicts: data.incidents
        .filter((incident) => this.get(incident))
        .map((incident) => this.entry(incident)),
    };
  },

  entry(incident) {
    return {
      incident: incident.id,
      user: incident.user,
      verdict: this.get(incident),
      note: this.note(incident),
      start: incident.start,
      end: incident.end,
      events: incident.count,
      columns: incident.columns,
      ...(this.tuning(incident) ? { tuning: this.tuning(incident) } : {}),
      rows: incident.events.map(verdictRow),
    };
  },
};

/** Return an event with the values that suppressions can have conditions on. */
function verdictRow(event) {
  const explained = topColumns(event.why);
  const names = [...Object.values(data.log.conditions).flat(), ...explained];
  const values = [...new Set(names)]
    .filter((name) => event.raw[name] != null)
    .map((name) => [name, String(event.raw[name])]);
  const known = data.ranking === "risk" && event.score != null;
  return {
    at: event.at,
    values: Object.fromEntries(values),
    explained,
    risk: known ? event.score : null,
    own: known ? (event.why?.preceding?.own ?? null) : null,
  };
}

/** Return the columns that contribute most to an event's risk, without redundant ones. */
function topColumns(why) {
  if (!why) return [];
  const redundant = new Set(why.columns.flatMap(({ twins }) => twins ?? []));
  const top = why.columns.filter(({ loudest, column }) => loudest > 0 && !redundant.has(column));
  const limit = Math.max(2, Math.min(10, Math.max(0, ...top.map(({ loudest }) => loudest)) / 2));
  const large = top.filter(({ loudest }) => loudest >= limit);
  return (large.length ? large : top.slice(0, 1)).slice(0, 3).map(({ column }) => column);
}

function exportVerdicts() {
  const text = `${JSON.stringify(verdicts.toExport(), null, 1)}\n`;
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  element("a", { href: url, download: "verdicts.json" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
  announce("Verdicts exported.");
}

/** Give a verdict to the selected incidents, or else to the open one. */
function giveVerdict(verdict) {
  const selected = data.incidents.filter((incident) => state.selected.has(incident.id));
  const incidents = selected.length ? selected : [selectedIncident()].filter(Boolean);
  for (const incident of incidents) verdicts.toggle(incident, verdict);
  state.selected.clear();
  announce(`${count(incidents.length, "incident")}: ${verdictLabel(verdict)}.`);
  renderQueue();
  renderDetail();
}

function verdictButtons(incident) {
  const given = verdicts.get(incident);
  const buttons = VERDICTS.map((verdict, place) =>
    button([given === verdict ? "✓ " : "", verdictLabel(verdict)], () => giveVerdict(verdict), {
      class: `verdict ${verdict}`,
      "aria-pressed": String(given === verdict),
      title: `Key ${place + 1}`,
    }),
  );
  const note = element("input", {
    type: "text",
    "aria-label": "Note on the verdict",
    placeholder: given ? "Note: the reason, and who confirmed it" : "Choose a verdict first",
    disabled: !given,
    maxlength: 500,
    onchange: (event) => verdicts.setNote(incident, event.target.value),
  });
  note.value = verdicts.note(incident);
  const label = { class: "verdicts", role: "group", "aria-label": "Verdict" };
  return [element("div", label, buttons, note), tuningPanel(incident)];
}
