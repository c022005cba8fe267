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
  const items = isGrouped() ? [...groupByUser(incidents)] : incidents;
  const shown = state.printing ? items : items.slice(0, state.maxRows);
  const more = items.length - shown.length;
  const rows = isGrouped() ? shown.flatMap(groupRows) : shown.map((incident) => row(incident));
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
        element("tbody", { role: "rowgroup" }, rows),
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
    toggle("Group by user", state.grouped, (on) => {
      groupQueue(on);
      document.querySelector("#queue .toggle:nth-of-type(2) input").focus();
    }),
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

/** Show one row per user, or one per incident. */
function groupQueue(grouped) {
  refilter({ grouped, expanded: new Set() });
  announce(grouped ? "One row per user." : "One row per incident.");
}

/** Return the row of a user, and the rows of the user's incidents if they are expanded. */
function groupRows([user, incidents]) {
  const expanded = state.expanded.has(user);
  const members = expanded ? incidents.map((incident) => row(incident, "member")) : [];
  return [groupRow(user, incidents, expanded), ...members];
}

function groupRow(user, incidents, expanded) {
  const highest = incidents.reduce((a, b) => (severityNumber(b) > severityNumber(a) ? b : a));
  const reviewed = incidents.filter((incident) => verdicts.get(incident)).length;
  const text = count(incidents.length, "incident");
  const more = reviewed ? `, ${reviewed} reviewed` : "";
  const toggleGroup = () => expandGroup(user, !expanded);
  const attributes = { class: "user group-user", "aria-expanded": String(expanded) };
  return element(
    "tr",
    { role: "row", class: "group", onclick: toggleGroup },
    cell("row-severity", groupChip(highest)),
    cell("row-count number", text, more),
    cell("row-time when", timeElement(Math.max(...incidents.map(({ since }) => since)))),
    cell(
      "row-reason",
      element(
        "div",
        { class: "title" },
        button([expanded ? "▾\u00a0" : "▸\u00a0", userName(user)], toggleGroup, attributes),
      ),
      expanded ? null : element("p", {}, reasonOf(highest)),
    ),
  );
}

/** Show the highest severity of a user's incidents. */
function groupChip(incident) {
  const name = severityName(incident);
  const number = element("span", { class: "severity-number" }, String(severityNumber(incident)));
  return element("span", { class: `severity ${name}` }, element("b", {}, name), number);
}

function expandGroup(user, expanded) {
  if (expanded) state.expanded.add(user);
  else state.expanded.delete(user);
  const place = [...groupByUser(filteredIncidents()).keys()].indexOf(user);
  renderQueue();
  document.querySelectorAll("#rows .group-user")[place]?.focus({ preventScroll: true });
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

function row(incident, kind = "") {
  const open = incident.id === state.incident && state.userPage === undefined;
  const verdict = verdicts.get(incident);
  const selected = state.selected.has(incident.id);
  const classes = [kind, open && "open", verdict && "reviewed", selected && "selected"];
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
    cell("row-severity", severityChip(incident), wishNote(incident), note),
    cell("row-count number", sparkline(incident), count(incident.count, "event")),
    cell("row-time when", timeElement(incident.since)),
    cell("row-reason", rowTitle(incident, verdict), element("p", {}, reasonOf(incident))),
  );
}

/** Show the wish about an incident, if there is one. */
function wishNote(incident) {
  const text = wishText(verdicts.tuning(incident));
  return text ? element("span", { class: "faint" }, ` ${text}`) : null;
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
  Object.assign(state, { incident: id, event: null, userPage: undefined, wish: null });
  if (state.grouped) state.expanded.add(selectedIncident()?.user);
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
