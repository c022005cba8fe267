/** How a run is doing that has not ended: news from whoever serves the page. */

const LEADERS = 5;
const PATIENCE = 2000;

const live = { health: null, version: null, wanted: null, loading: false, lost: false };

function renderLive() {
  const { health } = live;
  if (!health || !data) return;
  refill("live-facts", ingest(health), left(health), budget(health));
}

function gauge(name, value, detail, attributes = {}) {
  return element(
    "div",
    attributes,
    element("dt", {}, name),
    element("dd", {}, value, detail ? element("span", {}, detail) : null),
  );
}

/** How far behind the clock the latest event is, and when rows last came. */
function ingest({ now, latest, grown, told, running, rows }) {
  if (live.lost) return gauge("Server", element("b", {}, "lost: trying again"), "", { class: "late" });
  const lag = latest === null ? "no event yet" : `${span(Math.max(now - latest, 0))} behind`;
  const parts = [
    count(rows, "row"),
    grown === null ? null : `last ${span(Math.max(now - grown, 0))} ago`,
    told === null ? null : running ? `run heard ${span(Math.max(now - told, 0))} ago` : "run ended",
  ];
  return gauge("Ingest", element("b", {}, lag), parts.filter(Boolean).join(", "));
}

/** What could not be read, by the run and by this page, and what was held back. */
function left({ read, refused, unread, timeless, held }) {
  const parts = [
    refused ? `${COUNTS.format(refused)} of ${COUNTS.format(read)} events` : null,
    unread ? `${COUNTS.format(unread)} rows` : null,
    timeless ? `${COUNTS.format(timeless)} rows without time` : null,
  ].filter(Boolean);
  const detail = held ? `${count(held, "event")} held back by suppressions` : "";
  const late = { class: parts.length ? "late" : null };
  return gauge("Refused", element("b", {}, parts.join(", ") || "none"), detail, late);
}

/** Incidents of the latest day against those that one is ready to look at. */
function budget({ latest, allowed }) {
  const today = latest === null ? null : Math.floor(latest / DAY) * DAY;
  const spent = data.incidents.filter((one) => today !== null && one.until >= today).length;
  const text = `${COUNTS.format(spent)} of ${short(allowed)}`;
  const meter = { min: 0, max: Math.max(allowed, 1e-9), value: Math.min(spent, allowed) };
  return gauge(
    today === null ? "Budget" : `Budget, ${day(today)}`,
    [element("meter", { ...meter, "aria-label": `Incidents: ${text}` }), element("b", {}, ` ${text}`)],
    "incidents",
    { class: spent > allowed ? "spent" : null, id: "budget" },
  );
}

/** Users by their highest level; a click shows their incidents alone. */
function renderLeaders() {
  const people = data.people.filter((person) => data.alerts.has(person.name)).slice(0, LEADERS);
  const lines = people.map((person) => {
    const label = `${who(person.name)} ${short(person.worst)}`;
    return element("li", {}, button(label, () => refilter({ user: person.name })));
  });
  refill("leaders", element("li", {}, "By risk:"), lines);
}

/** Take newer data, a while after the last; the reader stays where they are. */
async function refresh() {
  if (!data || live.loading || live.wanted === live.version) return;
  live.loading = true;
  const [version, began] = [live.wanted, performance.now()];
  try {
    renderNews(await load());
    live.version = version;
  } catch (error) {
    console.error(error);
    live.lost = true;
  }
  // What takes long is asked for seldom.
  const pause = Math.max(PATIENCE, 3 * (performance.now() - began));
  setTimeout(() => {
    live.loading = false;
    refresh();
  }, pause);
  renderLive();
}

/** Draw what has changed; what the reader is in the middle of stays as it is. */
function renderNews(contents) {
  const place = placeOfReader();
  const before = JSON.stringify(inDetail());
  data = indexed(contents);
  if (!current()) state.incident = chosen()[0]?.id ?? null;
  renderHeader();
  renderLanes();
  renderInbox();
  renderLeaders();
  if (!place.typing && JSON.stringify(inDetail()) !== before) renderDetail();
  returnReader(place);
}

function inDetail() {
  return state.profile === undefined ? current() : data.byUser.get(state.profile);
}

function placeOfReader() {
  const { id, selectionStart, selectionEnd } = document.activeElement ?? {};
  const top = document.getElementById("rows")?.scrollTop ?? 0;
  const typing = document.querySelector("#detail input:focus") !== null;
  return { id, selectionStart, selectionEnd, top, typing, y: window.scrollY };
}

function returnReader({ id, selectionStart, selectionEnd, top, y }) {
  const rows = document.getElementById("rows");
  if (rows) rows.scrollTop = top;
  window.scrollTo(window.scrollX, y);
  const focused = id && document.getElementById(id);
  if (!focused) return;
  focused.focus({ preventScroll: true });
  if (selectionStart != null) focused.setSelectionRange(selectionStart, selectionEnd);
}

function follow() {
  const facts = element("dl", { id: "live-facts" });
  const people = element("ol", { id: "leaders", "aria-label": "Users by risk" });
  document.getElementById("strip").after(
    element("section", { id: "live", "aria-label": "Live" }, facts, people),
  );
  const news = new EventSource("updates");
  news.addEventListener("health", (event) => {
    live.health = JSON.parse(event.data);
    live.lost = false;
    live.wanted = live.health.version;
    renderLive();
    refresh();
  });
  news.addEventListener("error", () => {
    live.lost = true;
    renderLive();
  });
}

follow();
