/** The alert queue: one row per incident. */

const COLUMNS = [
  ["severity", "Severity"],
  ["count", "Events"],
  ["since", "Time"],
  ["user", "User and reason"],
];
const MAX_ACTIONS_SHOWN = 3;

function renderQueue() {
  const incidents = filteredIncidents();
  const rows = state.printing ? incidents : incidents.slice(0, state.maxRows);
  const more = incidents.length - rows.length;
  replaceContent(
    "queue",
    queueBar(incidents.length),
    element(
      "div",
      { class: "scroll", id: "rows", tabindex: 0, role: "region", "aria-label": "Incidents" },
      element(
        "table",
        { role: "table" },
        columnHeads(),
        element("tbody", { role: "rowgroup" }, rows.map(row)),
      ),
      rows.length ? null : emptyQueue(),
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
    { class: "toolbar" },
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

/** Name the user that was selected in the swim lanes. */
function scopeNote() {
  if (state.user === undefined) return null;
  return element("p", { class: "scope" }, "Only ", userName(state.user));
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
      { scope: "col", role: "columnheader", "aria-sort": sorted ? order : "none" },
      button(label + arrow, () => sortBy(key), { "data-sort": key }),
    );
  });
  return element("thead", { role: "rowgroup" }, element("tr", { role: "row" }, cells));
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
      role: "row",
      "data-id": incident.id,
      class: classes.filter(Boolean).join(" "),
      "aria-current": open ? "true" : null,
      onclick: () => openIncident(incident.id),
    },
    cell("row-severity", severityChip(incident), note),
    cell("row-count number", sparkline(incident), count(incident.count, "event")),
    cell("row-time when", timeElement(incident.since)),
    cell("row-reason", rowTitle(incident, verdict), element("p", {}, reasonOf(incident))),
  );
}

function cell(kind, ...children) {
  return element("td", { role: "cell", class: kind }, children);
}

function rowTitle(incident, verdict) {
  const name = severityName(incident);
  const parts = [userLabel(incident.user), name, verdict && verdictLabel(verdict)];
  const label = `Open: ${parts.filter(Boolean).join(", ")}`;
  const open = () => openIncident(incident.id);
  const user = button(userName(incident.user), open, { class: "user", "aria-label": label });
  const actions = element("span", {}, actionList(incident, MAX_ACTIONS_SHOWN));
  return element("div", { class: "title" }, user, actions);
}

/** List the actions, the most frequent first. */
function actionList({ actions }, max = actions.length) {
  const label = ([name, n]) => (n > 1 ? `${displayText(name, 60)} ×${n}` : displayText(name, 60));
  const more = actions.length > max ? [`${actions.length - max} more`] : [];
  return [...actions.slice(0, max).map(label), ...more].join(", ");
}

/** Return the reason of the incident, or else the anomalies and actions, as text. */
function reasonText(incident) {
  if (incident.reason) return displayText(incident.reason, 1000);
  const events = count(incident.flagged, "event");
  const anomalies = incident.flagged ? `${events} with a time-series anomaly` : "";
  return [anomalies, actionList(incident)].filter(Boolean).join(": ") || "No reason available.";
}

/** Show the whole reason, with what it quotes from the log set apart. */
function reasonOf(incident) {
  return reasonElement(reasonText(incident));
}

/** Draw the activity around an incident; the incident has the colour of its severity. */
function sparkline(incident) {
  const { around, since, until } = incident;
  const { n, start, step } = around;
  const top = Math.max(...n, 1);
  const inside = n.map((_, i) => start + (i + 1) * step > since && start + i * step <= until);
  const bars = (wanted) => barPath(n.map((events, i) => (inside[i] === wanted ? events : 0)), top, 0, 0.8);
  const drawing = stretched(
    n.length,
    svgElement("path", { class: "observed-bar", d: bars(false) }),
    svgElement("path", { class: `incident-bar ${severityName(incident)}`, d: bars(true) }),
  );
  drawing.classList.add("sparkline");
  return drawing;
}

function openIncident(id) {
  Object.assign(state, { incident: id, event: null, userPage: undefined });
  location.replace(`#${id}`);
  renderQueue();
  renderDetail();
  paintLanes();
  showSelected();
}

/** Scroll to what was opened: to its row, and on a narrow screen to the details below. */
function showSelected() {
  document.querySelector("#rows tr.open")?.scrollIntoView({ block: "nearest" });
  const details = document.getElementById("detail");
  const below = details.offsetTop > document.getElementById("queue").offsetTop;
  if (below) details.scrollIntoView({ block: "start" });
}
