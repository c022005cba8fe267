/** Keyboard shortcuts. */

const KEYS = [
  ["j, ↓", "next incident"],
  ["k, ↑", "previous incident"],
  ["x", "select the incident; a verdict then applies to all selected incidents"],
  ["1 2 3 4", `verdict: ${VERDICTS.map(verdictLabel).join("; ")}`],
  ["u", "user page and back"],
  ["g", "group the queue by user, or show each incident"],
  ["/", "search"],
  ["Esc", "clear filters and selection"],
  ["e", "export verdicts"],
  ["?", "list of keys"],
];
const KEY_HANDLERS = {
  j: moveSelection.bind(null, 1),
  ArrowDown: moveSelection.bind(null, 1),
  k: moveSelection.bind(null, -1),
  ArrowUp: moveSelection.bind(null, -1),
  x: toggleSelection,
  u: toggleUserPage,
  g: () => groupQueue(!state.grouped),
  e: exportVerdicts,
  Escape: clearAll,
  "/": () => document.getElementById("search").focus(),
  "?": () => document.getElementById("help").showModal(),
};

function moveSelection(step) {
  const incidents = queuedIncidents();
  const position = incidents.findIndex((incident) => incident.id === state.incident);
  const next = Math.min(Math.max(position + step, 0), incidents.length - 1);
  if (next < 0) return;
  if (next >= state.maxRows) state.maxRows += 100;
  openIncident(incidents[next].id);
  announce(`${severityName(incidents[next])}: ${userLabel(incidents[next].user)}`);
}

function toggleSelection() {
  if (!state.incident) return;
  if (!state.selected.delete(state.incident)) state.selected.add(state.incident);
  announce(`${count(state.selected.size, "incident")} selected.`);
  renderQueue();
}

function toggleUserPage() {
  if (state.userPage !== undefined) closeUserPage();
  else if (selectedIncident()) openUserPage(selectedIncident().user);
}

function clearAll() {
  clearFilters();
  state.selected.clear();
  renderQueue();
  paintLanes();
}

function onKeyDown(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("dialog")) return;
  const typing = event.target.matches("input, textarea, select");
  if (typing && event.key !== "Escape") return;
  if (typing) event.target.blur();
  const verdict = VERDICTS[Number(event.key) - 1];
  const handler = verdict ? () => giveVerdict(verdict) : KEY_HANDLERS[event.key];
  if (!handler) return;
  event.preventDefault();
  handler();
}

function renderHelp() {
  const rows = KEYS.map(([key, text]) => [
    element("dt", {}, element("kbd", {}, key)),
    element("dd", {}, text),
  ]);
  replaceContent(
    "help",
    element("h2", { id: "help-title" }, "Keys"),
    element("dl", {}, rows.flat()),
    element("form", { method: "dialog" }, element("button", {}, "Close")),
  );
}
