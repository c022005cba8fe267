/** The incident's card: what decides, from top to bottom. */

const MAIN = 6;

function renderDetail() {
  forgetCharts();
  if (state.profile !== undefined) {
    refill("detail", personPage(data.byUser.get(state.profile)));
    return;
  }
  const incident = current();
  if (incident) refill("detail", incidentCard(incident));
  else refill("detail", element("p", { class: "faint pad" }, "Nothing stands out."));
}

function incidentCard(incident) {
  const event = incident.events[state.event ?? incident.worst];
  const person = data.byUser.get(incident.user);
  return [
    cardHead(incident, person),
    verdictButtons(incident),
    element("p", { class: "sentence" }, sentence(incident)),
    eventStrip(incident, event),
    event.why ? comparison(event) : unexplained(event),
    event.why?.usual?.length ? asUsual(event) : null,
    panel("Around it", timeline(incident, person?.rhythm), usualNote(incident, person)),
    event.why ? element("div", { class: "pair" }, change(event), nearest(event)) : null,
    evidence(incident, event),
  ];
}

function panel(title, ...children) {
  return element("section", { class: "panel" }, element("h3", {}, title), children);
}

function cardHead(incident, person) {
  return element(
    "div",
    { class: "card-head" },
    severityChip(incident),
    element(
      "h2",
      {},
      button(who(incident.user), () => openPerson(incident.user), { class: "link" }),
    ),
    element("span", {}, `${moment(incident.since)}, ${count(incident.count, "event")}`),
    incident.count > 1
      ? element("span", { class: "faint" }, `in ${span(incident.until - incident.since)}`)
      : null,
    element("span", { class: "grow" }),
    standing(incident, person),
  );
}

/** How high this is, for everybody and for this user. */
function standing(incident, person) {
  const parts = [`level ${short(incident.level)}`];
  const own = person?.profile?.calibration;
  const score = incident.events[incident.worst].score;
  if (own && data.reach && score) {
    const times = short(score / own.risks.at(-1));
    parts.push(`${times} × the highest of their ${count(own.days, "held-out day")}`);
  }
  if (incident.pvalue != null) parts.push(`p-value ${short(incident.pvalue)}`);
  return element("span", { class: "faint" }, parts.join(" · "));
}

/** The incident's events, of which one is looked at. */
function eventStrip(incident, open) {
  if (incident.events.length === 1) return null;
  const hidden = incident.count - incident.events.length;
  const items = incident.events.map((event, place) =>
    element("li", {}, eventButton(event, place, event === open)),
  );
  if (hidden > 0) items.push(element("li", { class: "faint" }, `and ${hidden} lower ones`));
  return element("ol", { class: "events", "aria-label": "Events of the incident" }, items);
}

function eventButton(event, place, open) {
  const show = () => {
    state.event = place;
    renderDetail();
  };
  return button(
    [
      element("i", { class: `swatch ${tone(event.level * 100)}` }),
      `${second(event.at)} ${legible(action(event), 40)}`,
    ],
    show,
    { "aria-pressed": String(open), title: `level ${short(event.level)}` },
  );
}

const ACTIONS = ["eventName", "operationName", "appDisplayName", "application", "integration"];

function action(event) {
  const name = ACTIONS.find((column) => event.raw[column] != null);
  return name ? event.raw[name] : `level ${short(event.level)}`;
}

function unexplained(event) {
  const columns = Object.entries(event.raw).slice(0, 12);
  return panel(
    "The event",
    element("p", { class: "faint" }, "No explanation in this run: add explain behind add-scores."),
    element(
      "dl",
      { class: "columns" },
      columns.map(([name, value]) => pairOf(name, shown(value))),
    ),
  );
}

function pairOf(name, ...value) {
  return element("div", {}, element("dt", {}, legible(name, 60)), element("dd", {}, value));
}

/** Actual against expected, a row a column, the largest part of the risk first. */
function comparison(event) {
  const { why } = event;
  const facts = why.columns.filter((fact) => fact.strangeness > 0 || fact.risk > 0);
  const [first, rest] = [facts.slice(0, MAIN), facts.slice(MAIN)];
  const most = {
    bits: Math.max(...facts.map((fact) => fact.bits), 1),
    risk: why.preceding.risk || 1,
  };
  const head = ["Column", "Seen", "Probability", "Bits", "Expected instead", "Part of the risk"];
  return panel(
    "Seen, and expected",
    table(
      "facts wide",
      head,
      first.map((fact) => factRow(fact, most)),
    ),
    rest.length
      ? moreColumns(
          head,
          rest.map((fact) => factRow(fact, most)),
        )
      : null,
    madeOf(why),
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
  const summary = element("summary", {}, `${count(rows.length, "column")} more`);
  return element("details", {}, summary, table("facts wide", head, rows));
}

function factRow(fact, most) {
  const twins = fact.twins.length
    ? `with it ${fact.twins.map((name) => legible(name, 40)).join(", ")}`
    : "";
  return element(
    "tr",
    {},
    element(
      "th",
      { scope: "row" },
      legible(fact.column, 60),
      twins ? element("small", {}, twins) : null,
    ),
    element(
      "td",
      { class: "value" },
      shown(fact.value),
      fact.new ? element("em", {}, "new") : null,
    ),
    element("td", { class: "number" }, likeliness(fact)),
    element("td", {}, meter(fact.bits / most.bits, fact.usual_bits / most.bits, short(fact.bits))),
    element("td", { class: "value" }, instead(fact)),
    element("td", {}, meter(fact.risk / most.risk, null, percent(fact.risk / most.risk))),
  );
}

function likeliness(fact) {
  if (fact.distance != null) return `${short(Math.abs(fact.distance))} sd off`;
  const times = 2 ** Math.min(fact.habit_bits, 40);
  const others =
    fact.habit && times >= 2 ? element("small", {}, `${short(times)}× with others`) : null;
  return [chance(fact.probability), others];
}

const TELLING = [
  "userAgent",
  "sourceIPAddress",
  "userIdentityaccessKeyId",
  "eventSource",
  "eventName",
  "errorCode",
  "awsRegion",
];

/** What is nothing strange: as telling as what is. */
function asUsual({ why, raw }) {
  const usual = why.usual.filter((name) => raw[name] != null);
  const first = TELLING.filter((name) => usual.includes(name));
  const pairs = first.map((name) => pairOf(name, legible(raw[name], 80)));
  const others = usual.filter((name) => !first.includes(name)).map((name) => legible(name, 60));
  return panel(
    "As usual",
    pairs.length ? element("dl", { class: "columns" }, pairs) : null,
    others.length ? element("p", { class: "faint" }, others.join(", ")) : null,
  );
}

function instead(fact) {
  if (!fact.expected.length) return element("span", { class: "faint" }, "nothing likelier");
  return fact.expected.map((one) =>
    element(
      "span",
      { class: "likelier", title: one.value == null ? null : legible(one.value) },
      one.value == null
        ? element("i", {}, one.new ? "a new value" : "no value")
        : element("span", {}, legible(one.value, 80)),
      element("small", {}, fact.distance == null ? chance(one.probability) : "about"),
    ),
  );
}

/** A bar, with a mark where it usually ends. */
function meter(share, usual, label) {
  const width = (part) => Math.max(Math.min(part, 1), 0) * 100;
  const marks = [drawing("rect", { class: "bar", x: 0, y: 2, width: width(share), height: 8 })];
  if (usual != null) {
    marks.push(drawing("rect", { class: "usual", x: width(usual), y: 0, width: 1.5, height: 12 }));
  }
  const size = { viewBox: "0 0 102 12", preserveAspectRatio: "none", "aria-hidden": "true" };
  return element("span", { class: "meter" }, drawing("svg", size, marks), element("b", {}, label));
}

/** What the risk is made of: the event itself, and what came before it. */
function madeOf({ preceding, background, others_risk: rest }) {
  const spans = ["hour", "day", "week", "month"].filter((name) => preceding[name] !== undefined);
  const parts = [
    ["this event", preceding.own, null],
    ...spans.map((name) => [
      `the ${name} before`,
      preceding[name],
      preceding[`strange_in_${name}`],
    ]),
  ];
  const told = parts
    .filter(([, risk]) => risk > 0)
    .map(([name, risk, strange]) => {
      const events = strange ? ` (${count(strange, "strange event")})` : "";
      return `${name}${events} ${percent(risk / (preceding.risk || 1))}`;
    });
  const others = rest > 0 ? ` Columns not listed: ${percent(rest / (preceding.risk || 1))}.` : "";
  const own = background.days ? `${background.days} days` : "no days";
  const compared =
    background.rung === "own"
      ? `${count(background.own_events, "event")} of ${own}`
      : `${count(background.events, "event")}, ${background.own_events} of them their own (${background.rung})`;
  return element(
    "p",
    { class: "faint" },
    `Risk ${short(preceding.risk)}: ${told.join(", ")}.${others} Compared with ${compared}. `,
    "The mark on a bar of bits is what is usual in that column.",
  );
}

function usualNote(incident, person) {
  if (!person?.rhythm) return element("p", { class: "faint" }, "No history of this user's hours.");
  const { hours, weeks, learnt } = person.rhythm;
  const all = hours.reduce((sum, events) => sum + events, 0);
  const share = hours[hourOfWeek(incident.since)] / Math.max(all, 1);
  const since = learnt ? `${span(weeks * WEEK)} of history` : "this run";
  const hour = moment(Math.floor(incident.since / HOUR) * HOUR).replace(/ .* /, " ");
  return element(
    "p",
    { class: "faint" },
    `Pale: usual at these hours of the week, by ${since}. ${percent(share)} of their events fall `,
    `into the hour from ${hour}. Ticks above are the alerts.`,
  );
}

function change({ why }) {
  return panel("Smallest change that would have made it normal", changeText(why));
}

function changeText(why) {
  if (!why.change) return element("p", { class: "faint" }, "Not in this run's explanations.");
  const { columns, before, after, limit } = why.change;
  const numbers = `Surprise ${short(before)} would be ${short(after)}; up to ${short(limit)} is ordinary.`;
  if (!columns.length) {
    const text =
      "None is needed: the event itself is ordinary, its risk comes from events before it.";
    return element("p", {}, text);
  }
  const parts = columns.map(({ column, value }) => pairOf(column, shown(value)));
  const verdict = after <= limit ? null : element("p", {}, "Even so it would not be ordinary:");
  return [
    verdict,
    element("dl", { class: "columns" }, parts),
    element("p", { class: "faint" }, numbers),
  ];
}

function nearest({ why }) {
  const near = why.nearest ?? [];
  if (!near.length) {
    const text = "No earlier normal event of this user in this run.";
    return panel("Nearest normal events", element("p", { class: "faint" }, text));
  }
  const items = near.map((one) =>
    element(
      "li",
      {},
      element("b", {}, moment(one.at)),
      ` agrees in ${one.same} of ${one.columns} columns, not in `,
      one.differs.map(({ column, value, new: unseen }) =>
        element(
          "span",
          { class: "differs" },
          `${legible(column, 40)}: `,
          unseen ? element("i", {}, "another new value") : shown(value),
        ),
      ),
    ),
  );
  return panel("Nearest normal events", element("ol", { class: "nearest" }, items));
}

function evidence(incident, event) {
  const raw = JSON.stringify(event.raw, null, 1);
  const copyRaw = button("Copy event", (pressed) => copy(raw, pressed.target));
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
  return pairOf(name, value == null ? shown(value) : legible(value, 5000));
}
