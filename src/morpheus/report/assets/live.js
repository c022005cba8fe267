/** Live status of a run: updates from the server that serves the page. */

const MAX_LEADERS = 5;
const MIN_PAUSE = 2000;

const live = { health: null, version: null, newest: null, loading: false, lost: false };

function renderLive() {
  const { health } = live;
  if (!health || !data) return;
  replaceContent("live-facts", ingestGauge(health), rejectedRecords(health), budgetGauge(health));
}

function gauge(name, value, detail, attributes = {}) {
  return element(
    "div",
    attributes,
    element("dt", {}, name),
    element("dd", {}, value, detail ? element("span", {}, detail) : null),
  );
}

/** Show how far the latest event is behind the clock, when rows last arrived, and what waits. */
function ingestGauge({ now, latest, grown, told, running, rows, waiting }) {
  if (live.lost) {
    const status = element("b", {}, "connection lost, retrying");
    return gauge("Server", status, "", { class: "late" });
  }
  const ago = (time) => formatDuration(Math.max(now - time, 0));
  const lag = latest === null ? "no event yet" : `${ago(latest)} behind`;
  const parts = [
    count(rows, "row"),
    grown === null ? null : `last row ${ago(grown)} ago`,
    runStatus(now, told, running),
    waiting,
  ];
  const late = { class: waiting ? "late" : null };
  return gauge("Ingest", element("b", {}, lag), parts.filter(Boolean).join(", "), late);
}

function runStatus(now, told, running) {
  if (told === null) return null;
  return running ? `run active ${formatDuration(Math.max(now - told, 0))} ago` : "run ended";
}

/** Show what the run and this page could not read, and what was suppressed. */
function rejectedRecords({ read, refused, unread, timeless, held }) {
  const parts = [
    refused ? `${COUNTS.format(refused)} of ${COUNTS.format(read)} events` : null,
    unread ? count(unread, "row") : null,
    timeless ? `${count(timeless, "row")} without a time` : null,
  ].filter(Boolean);
  const detail = held ? `${count(held, "event")} suppressed` : "";
  const late = { class: parts.length ? "late" : null };
  return gauge("Rejected records", element("b", {}, parts.join(", ") || "none"), detail, late);
}

/** Compare the number of incidents of the latest day with the alert budget. */
function budgetGauge({ latest, allowed }) {
  const zone = isTimeZone(data.timezone) ? data.timezone : "UTC";
  const today = latest === null ? null : startOfDay(latest, zone);
  const spent = data.incidents.filter(({ until }) => today !== null && until >= today).length;
  const text = `${COUNTS.format(spent)} of ${formatNumber(allowed)}`;
  const meter = { min: 0, max: Math.max(allowed, 1e-9), value: Math.min(spent, allowed) };
  return gauge(
    today === null ? "Budget" : `Budget, ${formatDay(today)}`,
    [
      element("meter", { ...meter, "aria-label": `Incidents: ${text}` }),
      element("b", {}, ` ${text}`),
    ],
    "incidents",
    { class: spent > allowed ? "spent" : null, id: "budget" },
  );
}

/** List users by highest severity; a click shows only their incidents. */
function renderLeaders() {
  const people = data.people.filter((person) => data.incidentsOf.has(person.name)).slice(0, MAX_LEADERS);
  const lines = people.map((person) => {
    const label = `${userLabel(person.name)} ${severityNumber(incidentsOf(person.name)[0])}`;
    return element("li", {}, button(label, () => refilter({ user: person.name })));
  });
  replaceContent("leaders", element("li", {}, "By severity:"), lines);
}

/** Load newer data, at most once per pause. The reader's place is kept. */
async function refresh() {
  if (!data || live.loading || live.newest === live.version) return;
  live.loading = true;
  const [version, startTime] = [live.newest, performance.now()];
  try {
    renderUpdate(await load());
    live.version = version;
  } catch (error) {
    console.error(error);
    live.lost = true;
  }
  // Slow updates are requested less often.
  const pause = Math.max(MIN_PAUSE, 3 * (performance.now() - startTime));
  setTimeout(() => {
    live.loading = false;
    refresh();
  }, pause);
  renderLive();
}

/** Redraw what has changed. A note that is being written is left alone. */
function renderUpdate(contents) {
  const view = saveView();
  const before = JSON.stringify(shownDetails());
  setData(contents);
  renderHeader();
  renderLanes();
  renderQueue();
  renderLeaders();
  if (!view.typing && JSON.stringify(shownDetails()) !== before) renderDetail();
  restoreView(view);
}

function shownDetails() {
  return state.userPage === undefined ? selectedIncident() : data.byUser.get(state.userPage);
}

function saveView() {
  const { id, selectionStart, selectionEnd } = document.activeElement ?? {};
  const top = document.getElementById("rows")?.scrollTop ?? 0;
  const typing = document.querySelector("#detail input:focus") !== null;
  return { id, selectionStart, selectionEnd, top, typing, y: window.scrollY };
}

function restoreView({ id, selectionStart, selectionEnd, top, y }) {
  const rows = document.getElementById("rows");
  if (rows) rows.scrollTop = top;
  window.scrollTo(window.scrollX, y);
  const focused = id && document.getElementById(id);
  if (!focused) return;
  focused.focus({ preventScroll: true });
  if (selectionStart != null) focused.setSelectionRange(selectionStart, selectionEnd);
}

function connect() {
  const facts = element("dl", { id: "live-facts" });
  const people = element("ol", { id: "leaders", "aria-label": "Users by severity" });
  document.getElementById("strip").after(
    element("section", { id: "live", "aria-label": "Live" }, facts, people),
  );
  const updates = new EventSource("updates");
  updates.addEventListener("health", (event) => {
    live.health = JSON.parse(event.data);
    live.lost = false;
    live.newest = live.health.version;
    renderLive();
    refresh();
  });
  updates.addEventListener("error", () => {
    live.lost = true;
    renderLive();
  });
}

connect();
