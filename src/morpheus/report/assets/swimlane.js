/** Swim lanes: each user's activity over time, and the user's incidents, which open on a click. */

const LANES_SHOWN = 15;
const LANES_PRINTED = 40;

/** Return the users on the current page of lanes. */
function visibleUsers() {
  const { text, page } = state.lanes;
  const people = matchingUsers(text);
  if (state.printing) return people.filter(hasIncidents).slice(0, LANES_PRINTED);
  return people.slice(page * LANES_SHOWN, (page + 1) * LANES_SHOWN);
}

function matchingUsers(text) {
  const needle = text.toLowerCase();
  const people = data.people.filter(({ name }) => userLabel(name).toLowerCase().includes(needle));
  return state.lanes.alerts ? people.filter(hasIncidents) : people;
}

function hasIncidents({ name }) {
  return data.incidentsOf.has(name);
}

function renderLanes() {
  if (!data.axis) {
    const title = element("h2", { id: "lanes-title" }, "Users by time");
    replaceContent("lanes", title, emptyNote(whyNothing()));
    return;
  }
  const people = visibleUsers();
  replaceContent(
    "lanes",
    lanesBar(),
    element(
      "div",
      {
        id: "swimlane",
        role: "group",
        "aria-label": "Incidents of each user by time. Arrow keys move, Enter opens.",
        onkeydown: onLaneKey,
      },
      people.map(lane),
      people.length ? lanesAxis() : emptyNote("No user matches."),
    ),
    state.printing ? printedLanesNote() : null,
  );
  axisObserver.disconnect();
  axisObserver.observe(document.getElementById("swimlane"));
  paintLanes();
}

function printedLanesNote() {
  const others = matchingUsers(state.lanes.text).filter(hasIncidents).length - LANES_PRINTED;
  return others > 0 ? faint(`${count(others, "more user")} with incidents.`) : null;
}

function lanesBar() {
  const users = matchingUsers(state.lanes.text).length;
  const pages = Math.max(Math.ceil(users / LANES_SHOWN), 1);
  const search = element("input", {
    type: "search",
    id: "lanes-search",
    placeholder: "Find a user",
    "aria-label": "Find a user",
    oninput: (event) => updateLanes({ text: event.target.value, page: 0 }),
  });
  search.value = state.lanes.text;
  const turnPage = (step) => updateLanes({ page: (state.lanes.page + step + pages) % pages });
  return element(
    "div",
    { class: "toolbar" },
    element("h2", { id: "lanes-title" }, "Users by time"),
    search,
    toggle("With incidents", state.lanes.alerts, (on) => updateLanes({ alerts: on, page: 0 })),
    element("span", { class: "grow" }),
    legend(),
    element(
      "span",
      { class: "pages" },
      button("‹", () => turnPage(-1), { "aria-label": "Previous users", disabled: pages === 1 }),
      element("span", { class: "faint" }, `${state.lanes.page + 1} of ${pages}`),
      button("›", () => turnPage(1), { "aria-label": "Next users", disabled: pages === 1 }),
    ),
  );
}

function toggle(label, on, changed) {
  const box = element("input", { type: "checkbox", onchange: () => changed(box.checked) });
  box.checked = on;
  return element("label", { class: "toggle" }, box, label);
}

function legend() {
  const more = [
    ["activity", "activity"],
    ["unscored", "not scored"],
    ["anomaly", "time-series anomaly"],
  ];
  const keys = more.map(([name, text]) =>
    element("span", {}, element("i", { class: `swatch ${name}` }), text),
  );
  return element("span", { class: "legend" }, severityLegend(), keys);
}

/** Show other lanes, and keep the focus in the search field. */
function updateLanes(changes) {
  Object.assign(state.lanes, changes);
  const { activeElement } = document;
  const { id, selectionStart } = activeElement ?? {};
  const label = activeElement?.getAttribute("aria-label");
  renderLanes();
  const again = id ? document.getElementById(id) : document.querySelector(`#lanes [aria-label="${label}"]`);
  again?.focus();
  if (id === "lanes-search") again.setSelectionRange(selectionStart, selectionStart);
}

function lane(person) {
  const open = () => selectUser(person.name);
  const name = button(userName(person.name), open, { class: "link lane-user" });
  const plot = element("div", { class: "lane-plot" }, activity(person));
  plot.addEventListener("mousemove", (event) => describeMoment(plot, person, event));
  // The most severe ones are drawn last, over the others.
  const marks = incidentsOf(person.name).toReversed().map(incidentMark);
  plot.append(...marks);
  return element("div", { class: "lane" }, name, plot);
}

/** Draw a user's events: higher bars for more events. */
function activity({ lane: { at, n, w, f } }) {
  const top = Math.sqrt(Math.max(...n, 1));
  const bars = (wanted) =>
    at
      .map((place, i) => {
        if (w[i] < 0 !== wanted) return "";
        const height = Math.max((Math.sqrt(n[i]) / top) * 70, 8);
        return `M${place} 100v${(-height).toFixed(1)}h1V100z`;
      })
      .join("");
  const anomalies = f.map((i) => `M${at[i]} 100v-12h1v12z`).join("");
  return stretched(
    data.axis.cells,
    svgElement("path", { class: "activity-bar", d: bars(false) }),
    svgElement("path", { class: "unscored-bar", d: bars(true) }),
    svgElement("path", { class: "anomaly-bar", d: anomalies }),
  );
}

/** Return the button of an incident, from its first event to its last. */
function incidentMark(incident) {
  const { start, step, cells } = data.axis;
  const part = (seconds) => Math.min(Math.max((seconds - start) / (cells * step), 0), 1) * 100;
  const [from, to] = [part(incident.since), part(incident.until)];
  const label = describeIncident(incident);
  const mark = button("", () => openIncident(incident.id), {
    class: `mark ${severityName(incident)}`,
    "data-id": incident.id,
    "aria-label": label,
    title: label,
    tabindex: -1,
  });
  mark.style.left = `min(${from.toFixed(2)}%, 100% - 11px)`;
  mark.style.width = `max(${(to - from).toFixed(2)}%, 11px)`;
  return mark;
}

function describeIncident(incident) {
  const severity = `${severityName(incident)} ${severityNumber(incident)}`;
  const when = `${formatTime(incident.since)}, ${count(incident.count, "event")}`;
  return `${severity}: ${userLabel(incident.user)}, ${when}. ${reasonText(incident)}`;
}

/** Label the time axis with as many labels as have room in its width. */
function lanesAxis(width = 600) {
  const { start, step, cells } = data.axis;
  const end = start + cells * step;
  const { ticks, step: between } = axisTicks(start, end, Math.max(Math.floor(width / 110), 2));
  const labels = ticks.map((time) => {
    const clock = between < DAY ? ` ${formatMinute(time).slice(11)}` : "";
    const text = `${formatWeekday(time)} ${formatDay(time).slice(5)}${clock}`;
    return tickLabel([(time - start) / (end - start), text], 105 / width);
  });
  return element("div", { class: "lanes-axis", "aria-hidden": "true" }, labels);
}

/** Draw the time axis again when its width changes: on another screen, and on paper. */
const axisObserver = new ResizeObserver(([{ target }]) => {
  const axis = target.querySelector(".lanes-axis");
  if (!axis || Math.abs(axis.dataset.width - axis.clientWidth) < 1) return;
  const { clientWidth } = axis;
  const next = lanesAxis(clientWidth);
  next.dataset.width = clientWidth;
  axis.replaceWith(next);
});

/** Mark the open incident, and those that the filters exclude. One mark is in the tab order. */
function paintLanes() {
  const marks = [...document.querySelectorAll("#swimlane .mark")];
  const shown = new Set(filteredIncidents().map((incident) => incident.id));
  const open = marks.find((mark) => mark.dataset.id === state.incident) ?? marks.at(-1);
  for (const mark of marks) {
    mark.classList.toggle("excluded", !shown.has(mark.dataset.id));
    if (mark.dataset.id === state.incident) mark.setAttribute("aria-current", "true");
    else mark.removeAttribute("aria-current");
    mark.tabIndex = mark === open ? 0 : -1;
  }
}

/** Show a user's page, and only the user's incidents in the alert queue. */
function selectUser(name) {
  const same = state.user === name && state.userPage === name;
  state.user = same ? undefined : name;
  state.userPage = same ? undefined : name;
  const incidents = count(incidentsOf(name).length, "incident");
  announce(same ? "All users." : `${userLabel(name)}: ${incidents}.`);
  refilter();
  renderDetail();
}

/** Say on hover what a user did at a moment. */
function describeMoment(plot, person, event) {
  const { start, step, cells } = data.axis;
  const box = plot.getBoundingClientRect();
  const place = Math.floor(((event.clientX - box.left) / box.width) * cells);
  const i = person.lane.at.indexOf(place);
  const events = i < 0 ? "no events" : count(person.lane.n[i], "event");
  plot.title = `${formatTime(start + place * step)}, ${formatDuration(step)}: ${events}`;
}

/** Move between the marks: left and right in time, up and down to the nearest one of a user. */
function onLaneKey(event) {
  const mark = event.target.closest(".mark");
  const target = mark && nextMark(mark, event.key);
  if (!target) return;
  event.preventDefault();
  event.stopPropagation();
  mark.tabIndex = -1;
  target.tabIndex = 0;
  target.focus();
}

function nextMark(mark, key) {
  const lanes = [...document.querySelectorAll("#swimlane .lane")].map((row) =>
    [...row.querySelectorAll(".mark")].toSorted((a, b) => startOf(a) - startOf(b)),
  );
  const row = lanes.findIndex((marks) => marks.includes(mark));
  const step = { ArrowLeft: -1, ArrowRight: 1 }[key];
  if (step) {
    const all = lanes.flat();
    return all[Math.min(Math.max(all.indexOf(mark) + step, 0), all.length - 1)];
  }
  const others = { ArrowUp: lanes.slice(0, row).reverse(), ArrowDown: lanes.slice(row + 1) }[key];
  const nearest = others?.find((marks) => marks.length);
  const distance = (other) => Math.abs(startOf(other) - startOf(mark));
  if (nearest) return nearest.toSorted((a, b) => distance(a) - distance(b))[0];
  return others ? mark : null;
}

function startOf(mark) {
  return data.byId.get(mark.dataset.id).since;
}
