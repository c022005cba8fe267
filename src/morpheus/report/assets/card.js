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
  if (state.userPage !== undefined) {
    replaceContent("detail", userPage(data.byUser.get(state.userPage)));
    return;
  }
  const incident = selectedIncident();
  // On paper, each incident has its details in a section of its own.
  if (state.printing && incident) replaceContent("detail");
  else if (incident) replaceContent("detail", incidentDetails(incident));
  else replaceContent("detail", emptyDetail());
}

function emptyDetail() {
  return emptyNote(data.incidents.length ? "No incident is open." : "No incidents.");
}

/** Return the details of an incident, and of one of its events: the most severe one by default. */
function incidentDetails(incident, place = state.event ?? incident.worst) {
  const event = incident.events[place];
  const person = data.byUser.get(incident.user);
  return [
    detailsHead(incident),
    state.printing ? verdictText(incident) : verdictButtons(incident),
    element("p", { class: "sentence" }, reasonOf(incident)),
    incidentFacts(incident, person),
    eventStrip(incident, event),
    event.why ? observedAndExpected(event) : unexplainedEvent(event),
    element(
      "div",
      { class: "pair" },
      event.why?.usual?.length ? normalValues(event) : null,
      panel(
        "Activity around the incident",
        timeline(incident, person?.rhythm),
        activityNote(incident, person),
      ),
      event.why ? [smallestChange(event), nearestNormalEvents(event)] : null,
    ),
    evidence(incident, event),
  ];
}

function faint(...text) {
  return element("p", { class: "faint" }, text);
}

function panel(title, ...children) {
  return element("section", { class: "panel" }, element("h3", {}, title), children);
}

function detailsHead(incident) {
  const open = () => openUserPage(incident.user);
  return element(
    "div",
    { class: "details-head" },
    severityChip(incident),
    element("h2", {}, button(userName(incident.user, 300), open, { class: "link" })),
    button("Alert queue", showQueue, { class: "to-queue" }),
  );
}

/** Say on paper what the verdict is, with its note. */
function verdictText(incident) {
  const verdict = verdicts.get(incident);
  if (!verdict) return null;
  const note = verdicts.note(incident);
  return element("p", {}, `Verdict: ${verdictLabel(verdict)}.`, note && ` ${displayText(note, 500)}`);
}

/** Return to the alert queue, which is above the details on a narrow screen. */
function showQueue() {
  document.getElementById("queue").scrollIntoView({ block: "start" });
  document.querySelector("#rows tr.open button.user")?.focus({ preventScroll: true });
}

/** List when the incident was, what was done, and how it compares. */
function incidentFacts(incident, person) {
  const { since, until, pvalue } = incident;
  const one = incident.count === 1;
  const facts = [
    ["Time", one ? timeElement(since) : [timeElement(since), " to ", endTime(since, until)]],
    ["Events", one ? "1" : `${COUNTS.format(incident.count)} in ${formatDuration(until - since)}`],
    ["Actions", actionList(incident) || null],
    ["Compared with this user", comparedWithUser(incident, person)],
    ["P-value", pvalue == null ? null : formatNumber(pvalue)],
    ["Incident", element("code", {}, incident.id)],
  ];
  return element(
    "dl",
    { class: "columns" },
    facts.filter(([, value]) => value != null).map(([name, value]) => definition(name, value)),
  );
}

/** Show the end of a period, without its day if that is the day of the start. */
function endTime(start, end) {
  const sameDay = formatDay(start) === formatDay(end);
  return sameDay ? formatMinute(end).slice(11) : timeElement(end);
}

/** Compare the risk with the highest one of the user's validation days. */
function comparedWithUser(incident, person) {
  const own = person?.profile?.calibration;
  const { score } = incident.events[incident.worst];
  if (!own || data.ranking !== "risk" || !score) return null;
  const times = formatNumber(score / own.risks.at(-1));
  return `${times} × the highest risk of ${count(own.days, "validation day")}`;
}

function definition(name, ...value) {
  return element("div", {}, element("dt", {}, name), element("dd", {}, value));
}

/** Show a column's label, and its value. */
function pairOf(column, ...value) {
  return definition(columnName(column), ...value);
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
    document.querySelector(".events [aria-pressed=true]")?.focus({ preventScroll: true });
  };
  const name = eventSeverity(event);
  return button(
    [
      element("i", { class: `swatch ${name}` }),
      element("span", { class: "unseen" }, `${name} `),
      `${formatSecond(event.at)} `,
      isolate(displayText(action(event), 60)),
    ],
    show,
    { "aria-pressed": String(open), title: name },
  );
}

function action(event) {
  const name = data.log.actions.find((column) => event.raw[column] != null);
  return name ? event.raw[name] : "event";
}

function unexplainedEvent(event) {
  const columns = Object.entries(event.raw).slice(0, 12);
  return panel(
    "The event",
    faint("This run has no explanations. Add explain after add-scores."),
    element(
      "dl",
      { class: "columns" },
      columns.map(([name, value]) => pairOf(name, displayValue(value))),
    ),
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
  const rows = (some) => table("facts wide", FACT_HEADS, some.map((fact) => factRow(fact, max)));
  const summary = element("summary", {}, count(rest.length, "more column"));
  return panel(
    "Observed and expected",
    rows(first),
    rest.length ? element("details", {}, summary, rows(rest)) : null,
    riskBreakdown(why),
  );
}

/** Return a table. Its roles are stated, since a narrow one is not laid out as a table. */
function table(kind, head, rows) {
  const heads = head.map((name) => element("th", { scope: "col", role: "columnheader" }, name));
  const body = rows.map((cells) => {
    const named = cells.map((cell, i) => {
      cell.dataset.label = head[i];
      cell.setAttribute("role", i ? "cell" : "rowheader");
      return cell;
    });
    return element("tr", { role: "row" }, named);
  });
  return element(
    "table",
    { class: kind, role: "table" },
    element("thead", { role: "rowgroup" }, element("tr", { role: "row" }, heads)),
    element("tbody", { role: "rowgroup" }, body),
  );
}

function factRow(fact, max) {
  const redundant = fact.twins.length
    ? element("small", {}, "always changes with ", columnList(fact.twins))
    : null;
  const share = fact.risk / max.risk;
  return [
    element("th", { scope: "row" }, columnName(fact.column), redundant),
    element(
      "td",
      { class: "value" },
      element("div", {}, displayValue(fact.value), fact.new ? element("em", {}, "new") : null),
    ),
    element("td", { class: "number" }, element("div", {}, probabilityCell(fact))),
    element(
      "td",
      {},
      meter(fact.bits / max.bits, fact.usual_bits / max.bits, formatNumber(fact.bits)),
    ),
    element("td", { class: "value" }, element("div", {}, expectedValues(fact))),
    element("td", {}, meter(share, null, formatPercent(share))),
  ];
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
  const pairs = first.map((name) => pairOf(name, displayValue(raw[name])));
  const others = usual.filter((name) => !first.includes(name));
  return panel(
    "Normal values",
    pairs.length ? element("dl", { class: "columns one" }, pairs) : null,
    others.length ? faint("Also normal: ", columnList(others), ".") : null,
  );
}

function expectedValues(fact) {
  if (!fact.expected.length) return element("span", { class: "faint" }, "no likelier value");
  return fact.expected.map((expected) => {
    const share = fact.distance == null ? formatProbability(expected.probability) : "about";
    const missing = element("i", {}, expected.new ? "a new value" : "no value");
    return element(
      "span",
      { class: "expected" },
      expected.value == null ? missing : element("span", {}, displayValue(expected.value)),
      element("small", {}, share),
    );
  });
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
  return faint(
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
  const marks = "Ticks at the top: alerts.";
  if (!person?.rhythm) return faint("No activity history for this user. ", marks);
  const { hours, weeks, learnt } = person.rhythm;
  const all = hours.reduce((sum, events) => sum + events, 0);
  const share = hours[hourOfWeek(incident.since)] / Math.max(all, 1);
  const source = learnt ? `${formatDuration(weeks * WEEK)} of training data` : "this run";
  const time = Math.floor(incident.since / HOUR) * HOUR;
  const hour = `${formatWeekday(time)} ${formatMinute(time).slice(11)}`;
  return faint(
    `Light bars: typical volume at these hours of the week, from ${source}. `,
    `${formatPercent(share)} of the user's events are in the hour from ${hour}. `,
    marks,
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
    element("dl", { class: "columns one" }, parts),
    faint(numbers),
  ];
}

function nearestNormalEvents({ why }) {
  const near = why.nearest ?? [];
  if (!near.length) {
    const text = "This run has no earlier normal event of this user.";
    return panel("Nearest normal events", faint(text));
  }
  const items = near.map((normal) =>
    element(
      "li",
      {},
      element("b", {}, formatTime(normal.at)),
      ` ${normal.same} of ${normal.columns} columns match; different:`,
      element(
        "dl",
        { class: "columns one" },
        normal.differs.map(({ column, value, new: unseen }) =>
          pairOf(column, unseen ? element("i", {}, "another new value") : displayValue(value)),
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

/** Show a field as the log has it: the name in the log, with its label on hover. */
function rawPair([name, value]) {
  const title = data.labels[name] ? columnLabel(name) : null;
  const shown = value == null ? displayValue(value) : isolate(displayText(value, 5000));
  return definition(isolate(displayText(name, 400), { title }), shown);
}
