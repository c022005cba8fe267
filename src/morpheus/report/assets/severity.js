/** The severity of incidents: its names, from the lowest, and its number. */

const SEVERITIES = ["low", "medium", "high", "critical"];

function severityName(incident) {
  return incident.severity_name;
}

function severityNumber(incident) {
  return incident.severity;
}

/** Return the name of an event's severity. `data.severity_names` has lower bounds, highest first. */
function eventSeverity(event) {
  return data.severity_names.find(([lowest]) => event.severity >= lowest)[1];
}

/** Show the name and number of an incident's severity, and its verdict. */
function severityChip(incident) {
  const name = severityName(incident);
  const verdict = verdicts.get(incident);
  return element(
    "span",
    { class: `severity ${name}` },
    element("b", {}, name),
    element("span", { class: "severity-number" }, String(severityNumber(incident))),
    verdict ? verdictBadge(verdict) : null,
  );
}

/** List the names with their ranges, the most severe first. */
function severityLegend() {
  return data.severity_names.map(([lowest, name], i) => {
    const highest = i ? data.severity_names[i - 1][0] - 1 : 100;
    const swatch = element("i", { class: `swatch ${name}` });
    return element("span", {}, swatch, `${name} ${lowest}–${highest}`);
  });
}
