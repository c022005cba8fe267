/** A user's page: their incidents, their week, and their fingerprint's card. */

function openPerson(name) {
  state.profile = name;
  renderDetail();
  renderInbox();
  document.getElementById("detail").focus({ preventScroll: true });
}

function closePerson() {
  state.profile = undefined;
  renderDetail();
  renderInbox();
}

function personPage(person) {
  if (!person) return element("p", { class: "faint pad" }, "This user is not in the page.");
  return [
    element(
      "div",
      { class: "card-head" },
      element("h2", {}, who(person.name)),
      element("span", {}, count(person.events, "event")),
      element("span", { class: "grow" }),
      current() ? button("Back to the incident", closePerson) : null,
    ),
    person.unscored
      ? element("p", { class: "warning" }, `Not scored: ${legible(person.unscored)}`)
      : null,
    theirIncidents(person),
    panel("Usual week (UTC)", week(person.rhythm)),
    person.profile ? fingerprint(person.profile) : lackingCard(),
  ];
}

function theirIncidents(person) {
  const incidents = data.incidents.filter((incident) => incident.user === person.name);
  if (!incidents.length) return null;
  const items = incidents.slice(0, 20).map((incident) =>
    element(
      "li",
      {},
      severityChip(incident),
      " ",
      button(
        `${moment(incident.since)}, ${count(incident.count, "event")}`,
        () => openIncident(incident.id),
        {
          class: "link",
        },
      ),
    ),
  );
  return panel("Incidents", element("ul", { class: "plain" }, items));
}

function lackingCard() {
  const text = "No fingerprint's card came with this run: the header says what to add.";
  return panel("Fingerprint", element("p", { class: "faint" }, text));
}

/** Seven rows of 24 hours, the livelier the darker. */
function week(rhythm) {
  if (!rhythm) return element("p", { class: "faint" }, "Nothing is known of their hours.");
  const top = Math.max(...rhythm.hours, 1);
  const cells = rhythm.hours.map((events, hour) => {
    const place = {
      x: 34 + (hour % 24) * 22,
      y: Math.floor(hour / 24) * 15,
      width: 21,
      height: 14,
    };
    const shade = events ? 0.12 + 0.88 * Math.sqrt(events / top) : 0;
    const cell = drawing("rect", { ...place, class: "hour", "fill-opacity": shade.toFixed(2) });
    return [drawing("rect", { ...place, class: "hour-off" }), cell];
  });
  const names = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"].map((name, row) =>
    drawing("text", { x: 0, y: row * 15 + 11 }, name),
  );
  const clock = [0, 6, 12, 18].map((hour) =>
    drawing("text", { x: 34 + hour * 22, y: 118 }, `${hour}:00`),
  );
  const said = `Events by hour of the week, of ${span(rhythm.weeks * WEEK)}`;
  const size = { viewBox: "0 0 564 122", class: "week", role: "img", "aria-label": said };
  const source = rhythm.learnt ? "the history that was learnt from" : "this run";
  return [
    drawing("svg", size, cells.flat(), names, clock),
    element("p", { class: "faint" }, `${said}: ${source}.`),
  ];
}

function fingerprint(profile) {
  const days = profile.first
    ? `${profile.first.slice(0, 10)} to ${profile.last.slice(0, 10)}`
    : "unknown";
  const rows = [
    [
      "Learnt from",
      `${count(profile.events, "event")} of their own, ${COUNTS.format(profile.distinct)} distinct rows`,
    ],
    ["History", days],
    [
      "Whose",
      `${RUNGS[profile.rung] ?? profile.rung}; ${count(profile.borrowed, "borrowed event")}`,
    ],
    ["Training", `${count(profile.epochs, "epoch")}, of ${profile.curve.length || "?"} tried`],
  ];
  return [
    panel(
      "Fingerprint",
      element(
        "dl",
        { class: "columns" },
        rows.map(([name, text]) => pairOf(name, text)),
      ),
    ),
    element(
      "div",
      { class: "pair" },
      profile.curve.length > 1 ? panel("Loss on held-out events", lossCurve(profile)) : null,
      profile.calibration ? panel("Calibration", calibration(profile.calibration)) : null,
    ),
    panel("Weak spots", weak(profile.weak)),
  ];
}

function calibration({ risks, stated, realised, events, held_out: heldOut, days }) {
  const rows = stated
    .map((share, i) => [share, risks[i], realised[i]])
    .filter(([share]) => share === 0 || share * heldOut >= 1)
    .map(([share, risk, came]) =>
      element(
        "tr",
        {},
        element("th", { scope: "row" }, share === 0 ? "none" : percent(share)),
        element("td", { class: "number" }, short(risk)),
        element("td", { class: "number" }, percent(came)),
      ),
    );
  const head = ["Held out above", "Risk", "This run above"];
  return [
    table("facts narrow", head, rows),
    element(
      "p",
      { class: "faint" },
      `${count(heldOut, "held-out event")} of ${count(days, "day")}; ${count(events, "event")} of this run. `,
      "Equal shares mean that risks still say what they said.",
    ),
  ];
}

function weak(spots) {
  if (!spots.length) return element("p", { class: "faint" }, "None is known.");
  return element(
    "ul",
    {},
    spots.map((spot) => element("li", {}, legible(spot, 400))),
  );
}
