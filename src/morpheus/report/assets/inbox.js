/** The inbox: one row an incident. */

const HEADS = [
  ["level", "Severity"],
  ["user", "User and reason"],
  ["count", "Events"],
  ["since", "When, UTC"],
];

function renderInbox() {
  const incidents = chosen();
  const rows = incidents.slice(0, state.rows);
  const more = incidents.length - rows.length;
  refill(
    "inbox",
    inboxBar(incidents.length),
    element(
      "div",
      { class: "scroll", id: "rows", tabindex: 0, role: "region", "aria-label": "Incidents" },
      element("table", {}, heads(), element("tbody", {}, rows.map(row))),
      rows.length ? null : element("p", { class: "faint pad" }, "No incident passes the filters."),
      more > 0 ? button(`Show ${Math.min(more, 100)} of ${more} more`, showMore) : null,
    ),
  );
}

function showMore() {
  state.rows += 100;
  renderInbox();
}

function inboxBar(passed) {
  const search = element("input", {
    type: "search",
    id: "search",
    placeholder: "Search (key /)",
    "aria-label": "Search incidents",
    oninput: (event) => searchFor(event.target.value),
  });
  search.value = state.text;
  return element(
    "div",
    { class: "bar" },
    element("h2", { id: "inbox-title" }, `Inbox: ${passed} of ${data.incidents.length}`),
    search,
    SEVERITIES.toReversed().map(severityToggle),
    toggle("Without verdict", state.open, (on) => refilter({ open: on })),
    filters() ? button("Clear", () => refilter(clearFilters()), { id: "clear" }) : null,
    scope(),
  );
}

function severityToggle(name) {
  const on = state.severities.has(name);
  const flip = () => {
    if (on) state.severities.delete(name);
    else state.severities.add(name);
    refilter();
  };
  return button(name, flip, { class: `chip ${name}`, "aria-pressed": String(on) });
}

/** Whose incidents, and when, where the swimlane says so. */
function scope() {
  if (state.user === undefined) return null;
  const when = state.window ? `, ${moment(state.window.start)}` : "";
  return element("p", { class: "scope" }, `Only ${who(state.user)}${when}`);
}

function searchFor(text) {
  refilter({ text });
  const search = document.getElementById("search");
  search.focus();
  search.setSelectionRange(text.length, text.length);
}

function refilter(changes = {}) {
  Object.assign(state, changes, { rows: 100 });
  renderInbox();
  paintLanes();
}

function heads() {
  const cells = HEADS.map(([key, label]) => {
    const sorted = state.sort === key;
    const order = state.down ? "descending" : "ascending";
    const arrow = sorted ? (state.down ? " ▾" : " ▴") : "";
    return element(
      "th",
      { scope: "col", "aria-sort": sorted ? order : "none", class: `head-${key}` },
      button(label + arrow, () => sortBy(key), { "data-sort": key }),
    );
  });
  return element("thead", {}, element("tr", {}, cells));
}

function sortBy(key) {
  refilter({ sort: key, down: state.sort === key ? !state.down : key !== "user" });
  document.querySelector(`[data-sort=${key}]`).focus();
}

function row(incident) {
  const open = incident.id === state.incident && state.profile === undefined;
  const verdict = verdicts.of(incident);
  const marked = state.marked.has(incident.id);
  return element(
    "tr",
    {
      "data-id": incident.id,
      class: [open && "open", verdict && "judged", marked && "marked"].filter(Boolean).join(" "),
      "aria-current": open ? "true" : null,
      onclick: () => openIncident(incident.id),
    },
    element("td", {}, severityChip(incident), marked ? element("span", {}, " ✓ marked") : null),
    element("td", {}, rowTitle(incident, verdict), element("p", {}, sentence(incident))),
    element("td", { class: "number" }, COUNTS.format(incident.count), sparkline(incident)),
    element("td", { class: "when" }, moment(incident.since)),
  );
}

function rowTitle(incident, verdict) {
  const label = `Open: ${who(incident.user)}, ${incident.severity}${verdict ? `, ${verdict}` : ""}`;
  const open = () => openIncident(incident.id);
  const name = button(who(incident.user), open, { class: "user", "aria-label": label });
  return element("div", { class: "title" }, name, element("span", {}, actions(incident)));
}

/** What was done, the most frequent first. */
function actions(incident) {
  const told = ([name, n]) => (n > 1 ? `${legible(name, 40)} ×${n}` : legible(name, 40));
  return incident.actions.map(told).join(", ");
}

function severityChip(incident) {
  return element(
    "span",
    { class: `severity ${incident.severity}` },
    element("b", {}, incident.severity),
    element("span", { class: "faint" }, short(incident.level)),
    verdicts.of(incident) ? element("em", {}, verdicts.of(incident)) : null,
  );
}

/** The reason of the highest event, or what else is known. */
function sentence(incident) {
  const reason = incident.events[incident.worst]?.reason;
  if (reason) return legible(reason, 400);
  const rhythm = incident.flagged ? `${count(incident.flagged, "event")} out of rhythm` : "";
  return [rhythm, actions(incident)].filter(Boolean).join(": ") || "No reason is known.";
}

/** Events in the hours around, those of the incident in its colour. */
function sparkline({ around, since, until, severity }) {
  const { n, start, step } = around;
  const top = Math.max(...n, 1);
  const bars = n.map((events, i) => {
    const from = start + i * step;
    const inside = from + step > since && from <= until;
    const tall = Math.max((events / top) * 16, events ? 1.5 : 0);
    const place = { x: i * 2, y: 16 - tall, width: 1.6, height: tall };
    return drawing("rect", { ...place, class: inside ? `bar ${severity}` : "bar" });
  });
  const size = { viewBox: `0 0 ${n.length * 2} 16`, preserveAspectRatio: "none" };
  return drawing("svg", { ...size, class: "sparkline", "aria-hidden": "true" }, bars);
}

function openIncident(id) {
  Object.assign(state, { incident: id, event: null, profile: undefined });
  location.replace(`#${id}`);
  renderInbox();
  renderDetail();
  document.querySelector("#rows tr.open")?.scrollIntoView({ block: "nearest" });
}
