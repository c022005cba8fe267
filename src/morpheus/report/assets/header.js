/** The strip on top: what was looked at, and what was not. */

const RUNGS = { own: "own history", peers: "filled up with peers'", everyone: "everyone's" };

function renderHeader() {
  const { account } = data;
  const facts = [period(), events(account), users(account), alerts(account)];
  refill(
    "strip",
    element("h1", {}, "Morpheus"),
    element("dl", {}, facts.map(fact)),
    element(
      "div",
      { class: "actions" },
      button("Export verdicts", exportVerdicts, { id: "export" }),
      button("Keys", () => document.getElementById("help").showModal(), { title: "Key ?" }),
    ),
    element("div", { class: "notes" }, notes()),
  );
}

function fact([name, value, detail]) {
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
  return ["Period", `${day(axis.start)} – ${day(end - 1)}`, `${span(end - axis.start)}, UTC`];
}

function events(account) {
  const unscored = Object.values(account.unscored ?? {}).reduce((sum, one) => sum + one, 0);
  const parts = [
    account.read ? `${COUNTS.format(account.read)} read` : null,
    unscored ? `${COUNTS.format(unscored)} not scored` : null,
    account.refused ? `${COUNTS.format(account.refused)} refused` : null,
    account.duplicates ? `${COUNTS.format(account.duplicates)} twice` : null,
  ];
  return ["Events scored", COUNTS.format(account.scored ?? 0), parts.filter(Boolean).join(", ")];
}

function users(account) {
  const rungs = Object.entries(account.rungs ?? {});
  const detail = rungs.map(([rung, number]) => `${COUNTS.format(number)} ${RUNGS[rung] ?? rung}`);
  return ["Users", COUNTS.format(data.people.length + data.others), detail.join(", ")];
}

function alerts(account) {
  const incidents = COUNTS.format(data.incidents.length);
  const [stated, low, high] = account.forecast ?? [];
  const expected = `${Math.round(stated)} expected (${Math.round(low)} to ${Math.round(high)})`;
  return ["Incidents", incidents, account.forecast ? expected : ""];
}

/** What a reader has to know before believing the rest. */
function notes() {
  const found = [element("p", {}, legible(data.rule, 400))];
  if (data.reach) {
    const one = `Level 1: risk ${short(data.reach)}, the highest of the median user's held-out days`;
    found.push(element("p", {}, `${one}; high from 2, critical from 4.`));
  }
  if (data.hidden) {
    const many = count(data.hidden, "more alert event");
    found.push(element("p", { class: "warning" }, `${many} not in this page: too many.`));
  }
  for (const [start, end] of data.gaps.slice(0, 5)) {
    const text = `No events at all from ${minute(start)} to ${minute(end)} (${span(end - start)}).`;
    found.push(element("p", { class: "warning" }, text));
  }
  for (const refusal of data.account.refusals ?? []) {
    found.push(element("p", { class: "warning" }, `Refused: ${legible(refusal, 300)}`));
  }
  return data.lacks.length ? [...found, lacking()] : found;
}

function lacking() {
  const lines = data.lacks.map(({ what, add }) =>
    element("li", {}, `${legible(what)}: `, element("code", {}, legible(add))),
  );
  return element(
    "details",
    {},
    element("summary", {}, `Not shown: ${count(lines.length, "thing")}. What to add`),
    element("ul", {}, lines),
  );
}
