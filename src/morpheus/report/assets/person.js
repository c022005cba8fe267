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
  if (!person) return userWithoutData(state.userPage);
  return [
    element(
      "div",
      { class: "details-head" },
      element("h2", {}, userName(person.name, 300)),
      element("span", {}, count(person.events, "event")),
      element("span", { class: "grow" }),
      selectedIncident() ? button("Back to the incident", closeUserPage) : null,
    ),
    person.unscored
      ? element("p", { class: "warning" }, `Not scored: ${displayText(person.unscored)}`)
      : null,
    userIncidents(person.name, person.events),
    panel(`Typical week (${state.timeZone})`, weekHeatmap(person.rhythm)),
    person.profile ? modelCard(person.profile) : noModelCard(),
  ];
}

/** Show a user who is not among those that a large report describes. */
function userWithoutData(name) {
  return [
    element("div", { class: "details-head" }, element("h2", {}, userName(name, 300))),
    userIncidents(name, null),
    faint("This report has no other data on this user."),
  ];
}

/** List all incidents of a user, the latest first. */
function userIncidents(name, events) {
  const incidents = incidentsOf(name).toSorted((a, b) => b.since - a.since);
  const title = `Incidents: ${COUNTS.format(incidents.length)}`;
  if (!incidents.length) {
    const { wanted } = data.account.alerts ?? {};
    const why = wanted == null ? "none is an alert" : "none is above the alert budget";
    return panel(title, events && faint(`Of ${count(events, "event")} of this user, ${why}.`));
  }
  const items = incidents.map((incident) => {
    const when = `${formatTime(incident.since)}, ${count(incident.count, "event")}`;
    return element(
      "li",
      {},
      severityChip(incident),
      button(when, () => openIncident(incident.id), { class: "link" }),
      element("p", {}, reasonOf(incident)),
    );
  });
  return panel(title, element("ul", { class: "plain user-incidents" }, items));
}

function noModelCard() {
  const text = "This report has no model card. The header says how to add it.";
  return panel("Model card", faint(text));
}

/** Draw seven rows of 24 hours in the selected time zone. Darker cells have more events. */
function weekHeatmap(weekly) {
  if (!weekly) return faint("No activity history for this user.");
  const top = Math.max(...weekly.hours, 1);
  const shift = Math.round(zoneOffset(data.axis?.start ?? 0) / HOUR);
  const cells = weekly.hours.map((_, place) => {
    const hour = (place - shift + 168) % 168;
    const events = weekly.hours[hour];
    const shade = events ? 0.12 + 0.88 * Math.sqrt(events / top) : 0;
    const cell = element("i", { class: "hour" });
    cell.style.opacity = shade.toFixed(2);
    return element("span", { class: "hour-off" }, cell);
  });
  const days = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"].map((name, row) => [
    element("span", { class: "week-day" }, name),
    cells.slice(row * 24, row * 24 + 24),
  ]);
  const clock = [0, 6, 12, 18].map((hour) =>
    element("span", { class: "week-hour" }, `${String(hour).padStart(2, "0")}:00`),
  );
  const label = `Events by hour of the week, over ${formatDuration(weekly.weeks * WEEK)}`;
  const source = weekly.learnt ? "the training data" : "this run";
  const map = { class: "week", role: "img", "aria-label": label };
  return [
    element("div", map, days, element("span", {}), clock),
    faint(`${label} of ${source}.`),
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
        rows.map(([name, text]) => definition(name, text)),
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
    .map(([share, risk, observed]) => [
      element("th", { scope: "row" }, share === 0 ? "none" : formatPercent(share)),
      element("td", { class: "number" }, formatNumber(risk)),
      element("td", { class: "number" }, formatPercent(observed)),
    ]);
  const head = ["Validation events above", "Risk", "This run's events above"];
  return [
    table("facts narrow", head, rows),
    faint(
      `${count(validation, "validation event")} of ${count(days, "day")}; `,
      `${count(events, "event")} of this run. `,
      "If both shares are equal, the model is still calibrated.",
    ),
  ];
}

function detectionGaps(gaps) {
  if (!gaps.length) return faint("None known.");
  return element(
    "ul",
    {},
    gaps.map((gap) => element("li", {}, displayText(gap, 400))),
  );
}
