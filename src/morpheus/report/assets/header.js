/** The header: what the run read and scored, and what is missing. */

const TRAINING_SOURCES = {
  own: "trained with own data",
  peers: "trained with peer data",
  everyone: "global model",
};

function renderHeader() {
  const { account } = data;
  const facts = [period(), events(account), users(account), alerts(account)];
  replaceContent(
    "strip",
    element("h1", {}, "Morpheus"),
    element("dl", {}, facts.map(factItem)),
    element(
      "div",
      { class: "actions" },
      timeZoneChoice(),
      button("Export verdicts", exportVerdicts, { id: "export" }),
      button("Print", () => window.print(), { title: "Print the details of all incidents" }),
      button("Keys", () => document.getElementById("help").showModal(), { title: "Key ?" }),
    ),
    element("div", { class: "notes" }, notes()),
  );
}

/** Choose the time zone that times are shown in. The choice is not stored. */
function timeZoneChoice() {
  const choice = element(
    "select",
    { id: "time-zone", onchange: () => selectTimeZone(choice.value) },
    timeZones().map(([zone, note]) =>
      element("option", { value: zone, selected: zone === state.timeZone }, zone + note),
    ),
  );
  return element("label", { class: "toggle" }, "Times in ", choice);
}

/** Return UTC, the time zone of the run's days, and the browser's, with notes. */
function timeZones() {
  const own = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const notes = new Map([["UTC", ""]]);
  if (isTimeZone(data.timezone)) notes.set(data.timezone, " (days of this run)");
  if (isTimeZone(own) && !notes.has(own)) notes.set(own, " (this browser)");
  return [...notes];
}

/** Say whether the browser knows a time zone: it may be older than the run. */
function isTimeZone(zone) {
  try {
    return Boolean(zone && clockOf(zone));
  } catch {
    return false;
  }
}

function selectTimeZone(zone) {
  state.timeZone = zone;
  renderAll();
  document.getElementById("time-zone").focus();
  announce(`Times are in ${zone}.`);
}

function factItem([name, value, detail]) {
  return element(
    "div",
    {},
    element("dt", {}, name),
    element("dd", {}, element("b", {}, value), detail ? element("span", {}, detail) : null),
  );
}

function period() {
  const { axis } = data;
  if (!axis) return ["Period", "no events", ""];
  const end = axis.start + axis.cells * axis.step;
  const days = `${formatDay(axis.start)} – ${formatDay(end - 1)}`;
  return ["Period", days, formatDuration(end - axis.start)];
}

function events(account) {
  const unscored = Object.values(account.unscored ?? {}).reduce((sum, events) => sum + events, 0);
  const parts = [
    account.read ? `${COUNTS.format(account.read)} read` : null,
    unscored ? `${COUNTS.format(unscored)} not scored` : null,
    account.refused ? `${count(account.refused, "record")} rejected` : null,
    account.duplicates ? `${count(account.duplicates, "duplicate")}` : null,
  ];
  return ["Events scored", COUNTS.format(account.scored ?? 0), parts.filter(Boolean).join(", ")];
}

function users(account) {
  const detail = Object.entries(account.rungs ?? {}).map(
    ([source, users]) => `${COUNTS.format(users)} ${TRAINING_SOURCES[source] ?? source}`,
  );
  const column = data.user_column.replace(/^@/, "");
  if (column) detail.unshift(`by ${columnLabel(column)}`);
  return ["Users", COUNTS.format(data.people.length + data.others), detail.join(", ")];
}

function alerts(account) {
  const incidents = COUNTS.format(data.incidents.length);
  if (!account.forecast) return ["Incidents", incidents, ""];
  const [expected, low, high] = account.forecast.map(formatAmount);
  const { wanted, suppressed, capped } = account.alerts ?? {};
  const parts = [
    wanted == null ? null : `${formatAmount(wanted)} alerts wanted`,
    `${expected} expected (${low} to ${high})`,
    suppressed ? `${COUNTS.format(suppressed)} suppressed` : null,
    capped ? `${COUNTS.format(capped)} capped` : null,
  ];
  return ["Incidents", incidents, parts.filter(Boolean).join(", ")];
}

/** Return a number with two digits below ten, and as a whole number from there on. */
function formatAmount(amount) {
  return amount < 9.95 ? String(Number(amount.toPrecision(2))) : COUNTS.format(Math.round(amount));
}

/** Return why the expected number is uncertain, and the most unusual day below the threshold. */
function alertNotes({ reason, next_pvalue: next } = {}) {
  const days = next ? `one in ${formatAmount(1 / next)} days` : "";
  return [
    reason ? `The expected number of alerts is uncertain. ${reason}.` : null,
    next ? `Below the threshold, the most unusual user-day is like ${days}.` : null,
  ].filter(Boolean);
}

/** Return the notes below the header: how alerts were chosen, and what is missing. */
function notes() {
  const found = [element("p", {}, displayText(data.rule, 400))];
  if (data.hidden) {
    const more = count(data.hidden, "more incident");
    found.push(element("p", { class: "warning" }, `${more} not shown, to limit the page's size.`));
  }
  for (const note of alertNotes(data.account.alerts)) {
    found.push(element("p", {}, displayText(note, 400)));
  }
  for (const [start, end] of data.gaps.slice(0, 5)) {
    const length = formatDuration(end - start);
    const period = `${formatMinute(start)} to ${formatMinute(end)} (${length})`;
    found.push(element("p", { class: "warning" }, `No events from ${period}.`));
  }
  for (const refusal of data.account.refusals ?? []) {
    found.push(element("p", { class: "warning" }, `Record rejected: ${displayText(refusal, 300)}`));
  }
  return data.lacks.length ? [...found, missingFeatures()] : found;
}

function missingFeatures() {
  const lines = data.lacks.map(({ what, add }) =>
    element("li", {}, `${displayText(what)}: `, element("code", {}, displayText(add))),
  );
  return element(
    "details",
    {},
    element("summary", {}, `Not shown: ${count(lines.length, "item")}. How to add them`),
    element("ul", {}, lines),
  );
}
