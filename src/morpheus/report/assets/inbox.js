/** The alert queue: one row per incident. */

const COLUMNS = [
  ["severity", "Severity"],
  ["user", "User and reason"],
  ["count", "Events"],
  ["since", "Time (UTC)"],
];

function renderQueue() {
  const incidents = filteredIncidents();
  const rows = incidents.slice(0, state.maxRows);
  const more = incidents.length - rows.length;
  replaceContent(
    "queue",
    queueBar(incidents.length),
    element(
      "div",
      { class: "scroll", id: "rows", tabindex: 0, role: "region", "aria-label": "Incidents" },
      element("table", {}, columnHeads(), element("tbody", {}, rows.map(row))),
      rows.length ? null : element("p", { class: "faint pad" }, "No incident matches the filters."),
      more > 0 ? button(`Show ${Math.min(more, 100)} of ${more} more`, showMore) : null,
    ),
  );
}

function showMore() {
  state.maxRows += 100;
  renderQueue();
}

function queueBar(matching) {
  const search = element("input", {
    type: "search",
    id: "search",
    placeholder: "Search (key /)",
    "aria-label": "Search incidents",
    oninput: (event) => searchFor(event.target.value),
  });
  search.value = state.searchText;
  return element(
    "div",
    { class: "bar" },
    element("h2", { id: "queue-title" }, `Alert queue: ${matching} of ${data.incidents.length}`),
    search,
    SEVERITIES.toReversed().map(severityToggle),
    toggle("Unreviewed", state.unreviewed, (on) => refilter({ unreviewed: on })),
    hasFilters() ? button("Clear filters", () => refilter(clearFilters()), { id: "clear" }) : null,
    scopeNote(),
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

/** Name the user and the time that were selected in the swim lanes. */
function scopeNote() {
  if (state.user === undefined) return null;
  const when = state.window ? `, ${formatTime(state.window.start)}` : "";
  return element("p", { class: "scope" }, `Only ${userLabel(state.user)}${when}`);
}

function searchFor(searchText) {
  refilter({ searchText });
  const search = document.getElementById("search");
  search.focus();
  search.setSelectionRange(searchText.length, searchText.length);
}

function refilter(changes = {}) {
  Object.assign(state, changes, { maxRows: 100 });
  renderQueue();
  paintLanes();
}

function columnHeads() {
  const cells = COLUMNS.map(([key, label]) => {
    const sorted = state.sort === key;
    const order = state.descending ? "descending" : "ascending";
    const arrow = sorted ? (state.descending ? " ▾" : " ▴") : "";
    return element(
      "th",
      { scope: "col", "aria-sort": sorted ? order : "none", class: `head-${key}` },
      button(label + arrow, () => sortBy(key), { "data-sort": key }),
    );
  });
  return element("thead", {}, element("tr", {}, cells));
}

function sortBy(key) {
  const descending = state.sort === key ? !state.descending : key !== "user";
  refilter({ sort: key, descending });
  document.querySelector(`[data-sort=${key}]`).focus();
}

function row(incident) {
  const open = incident.id === state.incident && state.userPage === undefined;
  const verdict = verdicts.get(incident);
  const selected = state.selected.has(incident.id);
  const classes = [open && "open", verdict && "reviewed", selected && "selected"];
  const note = selected ? element("span", {}, " ✓ selected") : null;
  return element(
    "tr",
    {
      "data-id": incident.id,
      class: classes.filter(Boolean).join(" "),
      "aria-current": open ? "true" : null,
      onclick: () => openIncident(incident.id),
    },
    element("td", {}, severityChip(incident), note),
    element("td", {}, rowTitle(incident, verdict), element("p", {}, reasonText(incident))),
    element("td", { class: "number" }, COUNTS.format(incident.count), sparkline(incident)),
    element("td", { class: "when" }, formatTime(incident.since)),
  );
}

function rowTitle(incident, verdict) {
  const parts = [userLabel(incident.user), incident.severity_name, verdict && verdictLabel(verdict)];
  const label = `Open: ${parts.filter(Boolean).join(", ")}`;
  const open = () => openIncident(incident.id);
  const name = button(userLabel(incident.user), open, { class: "user", "aria-label": label });
  return element("div", { class: "title" }, name, element("span", {}, actionList(incident)));
}

/** List the actions, the most frequent first. */
function actionList(incident) {
  const label = ([name, n]) => (n > 1 ? `${displayText(name, 40)} ×${n}` : displayText(name, 40));
  return incident.actions.map(label).join(", ");
}

function severityChip(incident) {
  const verdict = verdicts.get(incident);
  return element(
    "span",
    { class: `severity ${incident.severity_name}` },
    element("b", {}, incident.severity_name),
    element("span", { class: "faint" }, String(incident.severity)),
    verdict ? element("em", {}, verdictLabel(verdict)) : null,
  );
}

/** Return the reason of the incident, or else the anomalies and actions. */
function reasonText(incident) {
  if (incident.reason) return displayText(incident.reason, 400);
  const events = count(incident.flagged, "event");
  const anomalies = incident.flagged ? `${events} with a time-series anomaly` : "";
  return [anomalies, actionList(incident)].filter(Boolean).join(": ") || "No reason available.";
}

/** Draw the activity around an incident; the incident has the colour of its severity. */
function sparkline({ around, since, until, severity_name: severity }) {
  const { n, start, step } = around;
  const top = Math.max(...n, 1);
  const bars = n.map((events, i) => {
    const from = start + i * step;
    const inside = from + step > since && from <= until;
    const height = Math.max((events / top) * 16, events ? 1.5 : 0);
    const place = { x: i * 2, y: 16 - height, width: 1.6, height };
    return svgElement("rect", { ...place, class: inside ? `bar ${severity}` : "bar" });
  });
  const size = { viewBox: `0 0 ${n.length * 2} 16`, preserveAspectRatio: "none" };
  return svgElement("svg", { ...size, class: "sparkline", "aria-hidden": "true" }, bars);
}

function openIncident(id) {
  Object.assign(state, { incident: id, event: null, userPage: undefined });
  location.replace(`#${id}`);
  renderQueue();
  renderDetail();
  document.querySelector("#rows tr.open")?.scrollIntoView({ block: "nearest" });
}
