/** What the reader has chosen; `data` is what there is to choose from. */

const SEVERITIES = ["low", "medium", "high", "critical"];
const VERDICTS = ["expected", "benign-new", "suspicious", "malicious"];

let data = null;

const state = {
  incident: null,
  event: null,
  user: undefined,
  profile: undefined,
  window: null,
  text: "",
  severities: new Set(SEVERITIES),
  open: false,
  sort: "level",
  down: true,
  rows: 100,
  marked: new Set(),
  lanes: { text: "", page: 0, alerts: false },
};

const ORDERS = {
  level: (incident) => incident.level,
  user: (incident) => who(incident.user).toLowerCase(),
  since: (incident) => incident.since,
  count: (incident) => incident.count,
};

/** The incidents that pass the filters, in the order asked for. */
function chosen() {
  const key = ORDERS[state.sort];
  const sign = state.down ? -1 : 1;
  const passed = data.incidents.filter(passes);
  return passed.sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    return x === y ? b.level - a.level : sign * (x < y ? -1 : 1);
  });
}

function passes(incident) {
  if (!state.severities.has(incident.severity)) return false;
  if (state.open && verdicts.of(incident)) return false;
  if (state.user !== undefined && incident.user !== state.user) return false;
  const { window } = state;
  if (window && (incident.until < window.start || incident.since >= window.end)) return false;
  return !state.text || searched(incident).includes(state.text.toLowerCase());
}

function searched(incident) {
  const reasons = incident.events.map((event) => event.reason ?? "");
  const actions = incident.actions.map(([name]) => name);
  return [incident.user, incident.start, incident.severity, ...actions, ...reasons]
    .join("\n")
    .toLowerCase();
}

/** The incident that is open: the one asked for, or the first in the inbox. */
function current() {
  return data.byId.get(state.incident) ?? null;
}

function filters() {
  return (
    state.user !== undefined ||
    state.window !== null ||
    state.text !== "" ||
    state.open ||
    state.severities.size < SEVERITIES.length
  );
}

function clearFilters() {
  Object.assign(state, { user: undefined, window: null, text: "", open: false });
  state.severities = new Set(SEVERITIES);
}
