/** The user page: the user's incidents, typical week and model card. */

function openUserPage(name) {
  state.userPage = name;
  renderDetail();
  renderQueue();
  document.getElementById("detail").focus({ preventScroll: true });
}

function closeUserPage() {
  state.userPage = undefined;
  renderDetail();
  renderQueue();
}

function userPage(person) {
  if (!person) return element("p", { class: "faint pad" }, "This report has no data on this user.");
  return [
    element(
      "div",
      { class: "details-head" },
      element("h2", {}, userLabel(person.name)),
      element("span", {}, count(person.events, "event")),
      element("span", { class: "grow" }),
      selectedIncident() ? button("Back to the incident", closeUserPage) : null,
    ),
    person.unscored
      ? element("p", { class: "warning" }, `Not scored: ${displayText(person.unscored)}`)
      : null,
    userIncidents(person),
    panel("Typical week (UTC)", weekHeatmap(person.rhythm)),
    person.profile ? modelCard(person.profile) : noModelCard(),
  ];
}

function userIncidents(person) {
  const incidents = data.incidents.filter((incident) => incident.user === person.name);
  if (!incidents.length) return null;
  const items = incidents.slice(0, 20).map((incident) =>
    element(
      "li",
      {},
      severityChip(incident),
      " ",
      button(
        `${formatTime(incident.since)}, ${count(incident.count, "event")}`,
        () => openIncident(incident.id),
        {
          class: "link",
        },
      ),
    ),
  );
  return panel("Incidents", element("ul", { class: "plain" }, items));
}

function noModelCard() {
  const text = "This report has no model card. The header says how to add it.";
  return panel("Model card", element("p", { class: "faint" }, text));
}

/** Draw seven rows of 24 hours. Darker cells have more events. */
function weekHeatmap(weekly) {
  if (!weekly) return element("p", { class: "faint" }, "No activity history for this user.");
  const top = Math.max(...weekly.hours, 1);
  const cells = weekly.hours.map((events, hour) => {
    const place = {
      x: 34 + (hour % 24) * 22,
      y: Math.floor(hour / 24) * 15,
      width: 21,
      height: 14,
    };
    const shade = events ? 0.12 + 0.88 * Math.sqrt(events / top) : 0;
    const cell = svgElement("rect", { ...place, class: "hour", "fill-opacity": shade.toFixed(2) });
    return [svgElement("rect", { ...place, class: "hour-off" }), cell];
  });
  const names = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"].map((name, row) =>
    svgElement("text", { x: 0, y: row * 15 + 11 }, name),
  );
  const clock = [0, 6, 12, 18].map((hour) =>
    svgElement("text", { x: 34 + hour * 22, y: 118 }, `${hour}:00`),
  );
  const label = `Events by hour of the week, over ${formatDuration(weekly.weeks * WEEK)}`;
  const size = { viewBox: "0 0 564 122", class: "week", role: "img", "aria-label": label };
  const source = weekly.learnt ? "the training data" : "this run";
  return [
    svgElement("svg", size, cells.flat(), names, clock),
    element("p", { class: "faint" }, `${label} of ${source}.`),
  ];
}

function modelCard(profile) {
  const days = profile.first
    ? `${profile.first.slice(0, 10)} to ${profile.last.slice(0, 10)}`
    : "unknown";
  const source = TRAINING_SOURCES[profile.rung] ?? profile.rung;
  const rows = [
    [
      "Training data",
      `${count(profile.events, "event")} of this user, ${count(profile.distinct, "distinct row")}`,
    ],
    ["Training period", days],
    [
      "Training source",
      profile.borrowed ? `${source}; ${count(profile.borrowed, "event")} of other users` : source,
    ],
    ["Epochs", `${profile.epochs} used, ${profile.curve.length || "?"} tried`],
  ];
  return [
    panel(
      "Model card",
      element(
        "dl",
        { class: "columns" },
        rows.map(([name, text]) => pairOf(name, text)),
      ),
    ),
    element(
      "div",
      { class: "pair" },
      profile.curve.length > 1 ? panel("Validation loss", lossCurve(profile)) : null,
      profile.calibration ? panel("Calibration", calibration(profile.calibration)) : null,
    ),
    panel("Detection gaps", detectionGaps(profile.weak)),
  ];
}

function calibration({ risks, stated, realised, events, held_out: validation, days }) {
  const rows = stated
    .map((share, i) => [share, risks[i], realised[i]])
    .filter(([share]) => share === 0 || share * validation >= 1)
    .map(([share, risk, observed]) =>
      element(
        "tr",
        {},
        element("th", { scope: "row" }, share === 0 ? "none" : formatPercent(share)),
        element("td", { class: "number" }, formatNumber(risk)),
        element("td", { class: "number" }, formatPercent(observed)),
      ),
    );
  const head = ["Validation events above", "Risk", "This run's events above"];
  return [
    table("facts narrow", head, rows),
    element(
      "p",
      { class: "faint" },
      `${count(validation, "validation event")} of ${count(days, "day")}; `,
      `${count(events, "event")} of this run. `,
      "If both shares are equal, the model is still calibrated.",
    ),
  ];
}

function detectionGaps(gaps) {
  if (!gaps.length) return element("p", { class: "faint" }, "None known.");
  return element(
    "ul",
    {},
    gaps.map((gap) => element("li", {}, displayText(gap, 400))),
  );
}
