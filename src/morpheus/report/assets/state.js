/** The state of the page: filters, order, selection. `data` holds the report. */

const VERDICTS = ["expected", "benign-new", "suspicious", "malicious"];
const VERDICT_LABELS = { "benign-new": "benign, new behaviour" };

let data = null;

const state = {
  incident: null,
  event: null,
  user: undefined,
  userPage: undefined,
  searchText: "",
  severities: new Set(SEVERITIES),
  unreviewed: false,
  grouped: false,
  expanded: new Set(),
  wish: null,
  sort: "severity",
  descending: true,
  maxRows: 100,
  selected: new Set(),
  lanes: { text: "", page: 0, alerts: false },
  timeZone: "UTC",
  printing: false,
};

const SORT_KEYS = {
  severity: severityNumber,
  user: (incident) => userLabel(incident.user).toLowerCase(),
  since: (incident) => incident.since,
  count: (incident) => incident.count,
};

/** Return the incidents that match the filters, in the selected order. */
function filteredIncidents() {
  const key = SORT_KEYS[state.sort];
  const sign = state.descending ? -1 : 1;
  const matching = data.incidents.filter(matchesFilters);
  return matching.sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    return x === y ? severityNumber(b) - severityNumber(a) : sign * (x < y ? -1 : 1);
  });
}

/** Return the incidents in the order in which the queue shows them. */
function queuedIncidents() {
  const incidents = filteredIncidents();
  return isGrouped() ? [...groupByUser(incidents).values()].flat() : incidents;
}

/** Say whether the queue has one row per user. On paper, it has all incidents. */
function isGrouped() {
  return state.grouped && !state.printing;
}

/** Group incidents by user. A user comes where the first of the incidents does. */
function groupByUser(incidents) {
  return Map.groupBy(incidents, (incident) => incident.user);
}

function matchesFilters(incident) {
  if (!state.severities.has(severityName(incident))) return false;
  if (state.unreviewed && verdicts.get(incident)) return false;
  if (state.user !== undefined && incident.user !== state.user) return false;
  return !state.searchText || searchableText(incident).includes(state.searchText.toLowerCase());
}

function searchableText(incident) {
  const reasons = incident.events.map((event) => event.reason ?? "");
  const actions = incident.actions.map(([name]) => name);
  return [incident.user, incident.id, incident.start, severityName(incident), ...actions, ...reasons]
    .join("\n")
    .toLowerCase();
}

/** Return the open incident, or null. */
function selectedIncident() {
  return data.byId.get(state.incident) ?? null;
}

/** Say whether any filter is active. */
function hasFilters() {
  return (
    state.user !== undefined ||
    state.searchText !== "" ||
    state.unreviewed ||
    state.severities.size < SEVERITIES.length
  );
}

function clearFilters() {
  Object.assign(state, { user: undefined, searchText: "", unreviewed: false });
  state.severities = new Set(SEVERITIES);
}
