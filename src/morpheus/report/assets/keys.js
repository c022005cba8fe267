/** Keys: everything that the mouse can do to the inbox. */

const KEYS = [
  ["j, ↓", "next incident", () => step(1)],
  ["k, ↑", "incident before", () => step(-1)],
  ["x", "mark the incident: verdicts then go to all marked", mark],
  ["1 2 3 4", `verdict: ${VERDICTS.join(", ")}`, null],
  ["u", "user's page, and back", flipPerson],
  ["/", "search", () => document.getElementById("search").focus()],
  ["Esc", "clear filters and marks", clearAll],
  ["e", "export verdicts", exportVerdicts],
  ["?", "this list", () => document.getElementById("help").showModal()],
];
const DOES = {
  j: step.bind(null, 1),
  ArrowDown: step.bind(null, 1),
  k: step.bind(null, -1),
  ArrowUp: step.bind(null, -1),
  x: mark,
  u: flipPerson,
  e: exportVerdicts,
  Escape: clearAll,
  "/": () => document.getElementById("search").focus(),
  "?": () => document.getElementById("help").showModal(),
};

function step(by) {
  const incidents = chosen();
  const at = incidents.findIndex((incident) => incident.id === state.incident);
  const next = Math.min(Math.max(at + by, 0), incidents.length - 1);
  if (next < 0) return;
  if (next >= state.rows) state.rows += 100;
  openIncident(incidents[next].id);
  announce(`${incidents[next].severity}: ${who(incidents[next].user)}`);
}

function mark() {
  if (!state.incident) return;
  if (!state.marked.delete(state.incident)) state.marked.add(state.incident);
  announce(`${count(state.marked.size, "incident")} marked.`);
  renderInbox();
}

function flipPerson() {
  if (state.profile !== undefined) closePerson();
  else if (current()) openPerson(current().user);
}

function clearAll() {
  clearFilters();
  state.marked.clear();
  renderInbox();
  paintLanes();
}

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("dialog")) return;
  const typing = event.target.matches("input, textarea, select");
  if (typing && event.key !== "Escape") return;
  if (typing) event.target.blur();
  const verdict = VERDICTS[Number(event.key) - 1];
  const does = verdict ? () => judge(verdict) : DOES[event.key];
  if (!does) return;
  event.preventDefault();
  does();
}

function renderHelp() {
  const rows = KEYS.map(([key, text]) => [
    element("dt", {}, element("kbd", {}, key)),
    element("dd", {}, text),
  ]);
  refill(
    "help",
    element("h2", { id: "help-title" }, "Keys"),
    element("dl", {}, rows.flat()),
    element("form", { method: "dialog" }, element("button", {}, "Close")),
  );
}
