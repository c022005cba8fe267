/** Incident details, the most important facts first. */

const MAX_ROWS = 6;
const FACT_HEADS = [
  "Column",
  "Observed",
  "Probability",
  "Surprisal (bits)",
  "Expected",
  "Share of risk",
];

function renderDetail() {
  destroyCharts();
  if (state.userPage !== undefined) {
    replaceContent("detail", userPage(data.byUser.get(state.userPage)));
    return;
  }
  const incident = selectedIncident();
  if (incident) replaceContent("detail", incidentDetails(incident));
  else replaceContent("detail", element("p", { class: "faint pad" }, "No incidents."));
}

function incidentDetails(incident) {
  const event = incident.events[state.event ?? incident.worst];
  const person = data.byUser.get(incident.user);
  return [
    detailsHead(incident, person),
    verdictButtons(incident),
    element("p", { class: "sentence" }, reasonText(incident)),
    eventStrip(incident, event),
    event.why ? observedAndExpected(event) : unexplainedEvent(event),
    event.why?.usual?.length ? normalValues(event) : null,
    panel(
      "Activity around the incident",
      timeline(incident, person?.rhythm),
      activityNote(incident, person),
    ),
    event.why
      ? element("div", { class: "pair" }, smallestChange(event), nearestNormalEvents(event))
      : null,
    evidence(incident, event),
  ];
}

function faint(text) {
  return element("p", { class: "faint" }, text);
}

function panel(title, ...children) {
  return element("section", { class: "panel" }, element("h3", {}, title), children);
}

function detailsHead(incident, person) {
  return element(
    "div",
    { class: "details-head" },
    severityChip(incident),
    element(
      "h2",
      {},
      button(userLabel(incident.user), () => openUserPage(incident.user), { class: "link" }),
    ),
    element("span", {}, `${formatTime(incident.since)}, ${count(incident.count, "event")}`),
    incident.count > 1
      ? element("span", { class: "faint" }, `in ${formatDuration(incident.until - incident.since)}`)
      : null,
    element("span", { class: "grow" }),
    severityFacts(incident, person),
  );
}

/** Give the severity on the scale of all users, and compared with this user's own. */
function severityFacts(incident, person) {
  const parts = [`severity ${incident.severity} of 100`];
  const own = person?.profile?.calibration;
  const score = incident.events[incident.worst].score;
  if (own && data.ranking === "risk" && score) {
    const times = formatNumber(score / own.risks.at(-1));
    parts.push(`${times} × the maximum of the user's ${count(own.days, "validation day")}`);
  }
  if (incident.pvalue != null) parts.push(`p-value ${formatNumber(incident.pvalue)}`);
  return element("span", { class: "faint" }, parts.join(" · "));
}

/** List the incident's events; one of them is open. */
function eventStrip(incident, open) {
  if (incident.events.length === 1) return null;
  const hidden = incident.count - incident.events.length;
  const items = incident.events.map((event, place) =>
    element("li", {}, eventButton(event, place, event === open)),
  );
  if (hidden > 0) {
    const text = `and ${count(hidden, "less severe event")}`;
    items.push(element("li", { class: "faint" }, text));
  }
  return element("ol", { class: "events", "aria-label": "Events of the incident" }, items);
}

function eventButton(event, place, open) {
  const show = () => {
    state.event = place;
    renderDetail();
  };
  return button(
    [
      element("i", { class: `swatch ${severityColour(event.severity)}` }),
      `${formatSecond(event.at)} ${displayText(action(event), 40)}`,
    ],
    show,
    { "aria-pressed": String(open), title: `severity ${Math.round(event.severity)}` },
  );
}

function action(event) {
  const name = data.log.actions.find((column) => event.raw[column] != null);
  return name ? event.raw[name] : `severity ${Math.round(event.severity)}`;
}

function unexplainedEvent(event) {
  const columns = Object.entries(event.raw).slice(0, 12);
  return panel(
    "The event",
    element("p", { class: "faint" }, "This run has no explanations. Add explain after add-scores."),
    element(
      "dl",
      { class: "columns" },
      columns.map(([name, value]) => pairOf(name, displayValue(value))),
    ),
  );
}

function pairOf(name, ...value) {
  const title = data.log.labels[name];
  return element(
    "div",
    {},
    element("dt", { title }, displayText(name, 60)),
    element("dd", {}, value),
  );
}

/** Compare observed and expected values, one row per column, by share of the risk. */
function observedAndExpected(event) {
  const { why } = event;
  const facts = why.columns.filter((fact) => fact.strangeness > 0 || fact.risk > 0);
  const [first, rest] = [facts.slice(0, MAX_ROWS), facts.slice(MAX_ROWS)];
  const max = {
    bits: Math.max(...facts.map((fact) => fact.bits), 1),
    risk: why.preceding.risk || 1,
  };
  return panel(
    "Observed and expected",
    table(
      "facts wide",
      FACT_HEADS,
      first.map((fact) => factRow(fact, max)),
    ),
    rest.length
      ? moreColumns(
          FACT_HEADS,
          rest.map((fact) => factRow(fact, max)),
        )
      : null,
    riskBreakdown(why),
  );
}

function table(kind, head, rows) {
  const cells = head.map((name) => element("th", { scope: "col" }, name));
  return element(
    "table",
    { class: kind },
    element("thead", {}, element("tr", {}, cells)),
    element("tbody", {}, rows),
  );
}

function moreColumns(head, rows) {
  const summary = element("summary", {}, count(rows.length, "more column"));
  return element("details", {}, summary, table("facts wide", head, rows));
}

function factRow(fact, max) {
  const redundant = fact.twins.length
    ? `always changes with ${fact.twins.map((name) => displayText(name, 40)).join(", ")}`
    : "";
  return element(
    "tr",
    {},
    element(
      "th",
      { scope: "row", title: data.log.labels[fact.column] },
      displayText(fact.column, 60),
      redundant ? element("small", {}, redundant) : null,
    ),
    element(
      "td",
      { class: "value" },
      displayValue(fact.value),
      fact.new ? element("em", {}, "new") : null,
    ),
    element("td", { class: "number" }, probabilityCell(fact)),
    element(
      "td",
      {},
      meter(fact.bits / max.bits, fact.usual_bits / max.bits, formatNumber(fact.bits)),
    ),
    element("td", { class: "value" }, expectedValues(fact)),
    element("td", {}, meter(fact.risk / max.risk, null, formatPercent(fact.risk / max.risk))),
  );
}

function probabilityCell(fact) {
  if (fact.distance != null) return `${formatNumber(Math.abs(fact.distance))} SD off`;
  const times = 2 ** Math.min(fact.habit_bits, 40);
  const others =
    fact.habit && times >= 2 ? element("small", {}, `${formatNumber(times)}× for others`) : null;
  return [formatProbability(fact.probability), others];
}

/** List the columns with normal values; they help to judge the event, too. */
function normalValues({ why, raw }) {
  const usual = why.usual.filter((name) => raw[name] != null);
  const first = data.log.key_columns.filter((name) => usual.includes(name));
  const pairs = first.map((name) => pairOf(name, displayText(raw[name], 80)));
  const others = usual.filter((name) => !first.includes(name)).map((name) => displayText(name, 60));
  return panel(
    "Normal values",
    pairs.length ? element("dl", { class: "columns" }, pairs) : null,
    others.length ? element("p", { class: "faint" }, others.join(", ")) : null,
  );
}

function expectedValues(fact) {
  if (!fact.expected.length) return element("span", { class: "faint" }, "no likelier value");
  return fact.expected.map((expected) =>
    element(
      "span",
      { class: "expected", title: expected.value == null ? null : displayText(expected.value) },
      expected.value == null
        ? element("i", {}, expected.new ? "a new value" : "no value")
        : element("span", {}, displayText(expected.value, 80)),
      element(
        "small",
        {},
        fact.distance == null ? formatProbability(expected.probability) : "about",
      ),
    ),
  );
}

/** Draw a bar, with a tick at the typical value. */
function meter(share, typical, label) {
  const width = (part) => Math.max(Math.min(part, 1), 0) * 100;
  const marks = [svgElement("rect", { class: "bar", x: 0, y: 2, width: width(share), height: 8 })];
  if (typical != null) {
    const tick = { class: "typical", x: width(typical), y: 0, width: 1.5, height: 12 };
    marks.push(svgElement("rect", tick));
  }
  const size = { viewBox: "0 0 102 12", preserveAspectRatio: "none", "aria-hidden": "true" };
  const bar = svgElement("svg", size, marks);
  return element("span", { class: "meter" }, bar, element("b", {}, label));
}

/** Divide the risk between the event itself and earlier events. */
function riskBreakdown({ preceding, background, others_risk: rest }) {
  const parts = [
    ["this event", preceding.own],
    [`earlier events${unusualBefore(preceding)}`, preceding.earlier],
  ];
  const shares = parts
    .filter(([, risk]) => risk > 0)
    .map(([name, risk]) => `${name} ${formatPercent(risk / preceding.risk)}`);
  const total = [`Risk ${formatNumber(preceding.risk)}`, shares.join(", ")];
  const unlisted = formatPercent(rest / (preceding.risk || 1));
  const others = rest > 0 ? ` Columns not listed: ${unlisted}.` : "";
  const own = background.days ? `${background.days} days` : "no days";
  const compared =
    background.rung === "own"
      ? `${count(background.own_events, "event")} of ${own}`
      : `${count(background.events, "event")}, ${background.own_events} of them of this user`;
  return element(
    "p",
    { class: "faint" },
    `${total.filter(Boolean).join(": ")}.${others} `,
    `Compared with ${compared}. `,
    "The tick marks the typical surprisal.",
  );
}

/** Count the unusual events before an event, in the shortest span that has one. */
function unusualBefore({ strange_in_hour: inHour, strange_in_day: inDay }) {
  if (inHour) return ` (${count(inHour, "unusual event")} in the hour before)`;
  return inDay ? ` (${count(inDay, "unusual event")} in the 24 hours before)` : "";
}

function activityNote(incident, person) {
  if (!person?.rhythm) return faint("No activity history for this user.");
  const { hours, weeks, learnt } = person.rhythm;
  const all = hours.reduce((sum, events) => sum + events, 0);
  const share = hours[hourOfWeek(incident.since)] / Math.max(all, 1);
  const source = learnt ? `${formatDuration(weeks * WEEK)} of training data` : "this run";
  const hour = formatTime(Math.floor(incident.since / HOUR) * HOUR).replace(/ .* /, " ");
  return element(
    "p",
    { class: "faint" },
    `Light bars: typical volume at these hours of the week, from ${source}. `,
    `${formatPercent(share)} of the user's events are in the hour from ${hour}. `,
    "Ticks at the top: alerts.",
  );
}

function smallestChange({ why }) {
  return panel("Smallest change that makes the event normal", changeText(why));
}

function changeText(why) {
  if (!why.change) return faint("This run's explanations do not include it.");
  const { columns, before, after, limit } = why.change;
  const drop = `from ${formatNumber(before)} to ${formatNumber(after)}`;
  const numbers = `Excess surprisal falls ${drop}. Up to ${formatNumber(limit)} is normal.`;
  if (!columns.length) {
    const text =
      "No change is needed. The event itself is normal; its risk comes from earlier events.";
    return element("p", {}, text);
  }
  const parts = columns.map(({ column, value }) => pairOf(column, displayValue(value)));
  const notEnough = element("p", {}, "Even this change does not make the event normal:");
  return [
    after <= limit ? null : notEnough,
    element("dl", { class: "columns" }, parts),
    element("p", { class: "faint" }, numbers),
  ];
}

function nearestNormalEvents({ why }) {
  const near = why.nearest ?? [];
  if (!near.length) {
    const text = "This run has no earlier normal event of this user.";
    return panel("Nearest normal events", element("p", { class: "faint" }, text));
  }
  const items = near.map((normal) =>
    element(
      "li",
      {},
      element("b", {}, formatTime(normal.at)),
      ` ${normal.same} of ${normal.columns} columns match; different: `,
      normal.differs.map(({ column, value, new: unseen }) =>
        element(
          "span",
          { class: "differs" },
          `${displayText(column, 40)}: `,
          unseen ? element("i", {}, "another new value") : displayValue(value),
        ),
      ),
    ),
  );
  return panel("Nearest normal events", element("ol", { class: "nearest" }, items));
}

function evidence(incident, event) {
  const raw = JSON.stringify(event.raw, null, 1);
  const copyRaw = button("Copy event", (event) => copy(raw, event.target));
  return panel(
    "Evidence",
    queryButtons(incident),
    element(
      "details",
      {},
      element("summary", {}, "Raw event"),
      copyRaw,
      element("dl", { class: "columns raw" }, Object.entries(event.raw).map(rawPair)),
    ),
  );
}

function rawPair([name, value]) {
  return pairOf(name, value == null ? displayValue(value) : displayText(value, 5000));
}
