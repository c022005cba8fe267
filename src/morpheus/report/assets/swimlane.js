/** Swim lanes: the highest severity in each cell. A canvas for mouse and arrow keys. */

const LANE = { rows: 15, height: 13, gap: 1, label: 190, footer: 34 };
const cursor = { row: 0, cell: 0 };

/** Return the users on the current page of lanes. */
function visibleUsers() {
  const { text, page } = state.lanes;
  const people = matchingUsers(text);
  return people.slice(page * LANE.rows, (page + 1) * LANE.rows);
}

function matchingUsers(text) {
  const needle = text.toLowerCase();
  const matches = (person) => userLabel(person.name).toLowerCase().includes(needle);
  const people = data.people.filter(matches);
  return state.lanes.alerts ? people.filter((person) => data.alerts.has(person.name)) : people;
}

function renderLanes() {
  if (!data.axis) {
    replaceContent("lanes", element("h2", { id: "lanes-title" }, "No events"));
    return;
  }
  const canvas = element("canvas", {
    id: "swimlane",
    tabindex: 0,
    role: "application",
    "aria-label": "Users by time. Arrow keys move. Enter filters the alert queue.",
    onclick: (event) => selectCell(cellAt(event)),
    onmousemove: (event) => hover(cellAt(event), event),
    onmouseleave: () => hover(null),
    onkeydown: onLaneKey,
    onfocus: paintLanes,
    onblur: paintLanes,
  });
  replaceContent("lanes", lanesBar(), canvas, element("div", { id: "tip", hidden: true }));
  paintLanes();
}

function lanesBar() {
  const users = matchingUsers(state.lanes.text).length;
  const pages = Math.max(Math.ceil(users / LANE.rows), 1);
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
    { class: "bar" },
    element("h2", { id: "lanes-title" }, "Users by time"),
    search,
    toggle("With incidents", state.lanes.alerts, (on) => updateLanes({ alerts: on, page: 0 })),
    element("span", { class: "grow" }),
    legend(),
    button("‹", () => turnPage(-1), { "aria-label": "Previous users", disabled: pages === 1 }),
    element("span", { class: "faint" }, `${state.lanes.page + 1} of ${pages}`),
    button("›", () => turnPage(1), { "aria-label": "Next users", disabled: pages === 1 }),
  );
}

function toggle(label, on, changed) {
  const box = element("input", { type: "checkbox", onchange: () => changed(box.checked) });
  box.checked = on;
  return element("label", { class: "toggle" }, box, label);
}

function legend() {
  const keys = SEVERITIES.map((name) =>
    element("span", {}, element("i", { class: `swatch ${name}` }), name),
  );
  const swatch = element("i", { class: "swatch anomaly" });
  const anomaly = element("span", {}, swatch, "time-series anomaly");
  return element("span", { class: "legend" }, keys, anomaly);
}

/** Show other lanes, and keep the focus in the search field. */
function updateLanes(changes) {
  Object.assign(state.lanes, changes);
  const typing = document.activeElement?.id === "lanes-search";
  renderLanes();
  if (typing) document.getElementById("lanes-search").focus();
}

function geometry() {
  const canvas = document.getElementById("swimlane");
  const people = visibleUsers();
  const width = canvas.parentElement.clientWidth;
  const cell = (width - LANE.label) / data.axis.cells;
  return { canvas, people, width, cell, height: people.length * LANE.height + LANE.footer };
}

function paintLanes() {
  const { canvas, people, width, cell, height } = geometry();
  const scale = window.devicePixelRatio || 1;
  Object.assign(canvas, { width: width * scale, height: height * scale });
  Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
  Object.assign(canvas.dataset, { label: LANE.label, row: LANE.height, cell });
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  const colours = readColours();
  for (const [row, person] of people.entries()) {
    paintLane(context, person, row * LANE.height, cell, colours);
  }
  paintAnomalies(context, people, people.length * LANE.height, cell, colours);
  paintAxis(context, height - 18, cell, colours);
  paintSelection(context, people, cell, colours);
}

function readColours() {
  const names = [...SEVERITIES, "quiet", "unscored", "anomaly", "ink", "faint", "accent", "lane"];
  return Object.fromEntries(names.map((name) => [name, colour(name)]));
}

/** Draw a user's lane. */
function paintLane(context, person, top, cell, colours) {
  context.font = "11px system-ui, sans-serif";
  context.textBaseline = "middle";
  context.fillStyle = data.alerts.has(person.name) ? colours.ink : colours.faint;
  const name = truncateToWidth(context, userLabel(person.name), LANE.label - 8);
  context.fillText(name, 0, top + LANE.height / 2);
  context.fillStyle = colours.lane;
  context.fillRect(LANE.label, top, cell * data.axis.cells, LANE.height - LANE.gap);
  const { at, w } = person.lane;
  const wide = Math.max(cell, 1);
  at.forEach((place, i) => {
    context.fillStyle = colours[severityColour(w[i])];
    context.fillRect(LANE.label + place * cell, top, wide, LANE.height - LANE.gap);
  });
}

/** Return the name of the colour of a severity. */
function severityColour(severity) {
  if (severity < 0) return "unscored";
  if (severity < 12) return "quiet";
  if (severity < 25) return "low";
  return severity < 50 ? "medium" : severity < 75 ? "high" : "critical";
}

function truncateToWidth(context, text, maxWidth) {
  let short = text;
  while (short.length > 1 && context.measureText(short).width > maxWidth) {
    short = `${short.slice(0, -2)}…`;
  }
  return short;
}

/** Draw the last lane: cells with a time-series anomaly of any user shown. */
function paintAnomalies(context, people, top, cell, colours) {
  context.fillStyle = colours.faint;
  context.fillText("time-series anomaly (ts_anomaly)", 0, top + 8);
  context.fillStyle = colours.anomaly;
  for (const { lane } of people) {
    for (const place of lane.f) {
      context.fillRect(LANE.label + lane.at[place] * cell, top + 3, Math.max(cell, 3), 9);
    }
  }
}

function paintAxis(context, top, cell, colours) {
  const { start, step, cells } = data.axis;
  const every = [HOUR * 6, DAY, 2 * DAY, WEEK, 2 * WEEK, 4 * WEEK, 12 * WEEK].find(
    (width) => (width / step) * cell >= 70,
  );
  context.fillStyle = colours.faint;
  for (let time = Math.ceil(start / every) * every; time < start + cells * step; time += every) {
    const x = LANE.label + ((time - start) / step) * cell;
    const text = every < DAY ? formatMinute(time).slice(5) : formatDay(time).slice(5);
    context.fillRect(x, top, 1, 4);
    context.fillText(`${WEEKDAYS[new Date(time * 1000).getUTCDay()]} ${text}`, x + 3, top + 9);
  }
}

function paintSelection(context, people, cell, colours) {
  context.strokeStyle = colours.accent;
  context.lineWidth = 1.5;
  const outline = (row, place) =>
    context.strokeRect(
      LANE.label + place * cell - 1,
      row * LANE.height - 1,
      Math.max(cell, 4) + 2,
      LANE.height + 1,
    );
  const row = people.findIndex((person) => person.name === state.user);
  if (row >= 0 && state.window) {
    outline(row, (state.window.start - data.axis.start) / data.axis.step);
  }
  if (document.activeElement?.id === "swimlane") outline(cursor.row, cursor.cell);
}

function cellAt(event) {
  const { people, cell } = geometry();
  const row = Math.floor(event.offsetY / LANE.height);
  const place = Math.floor((event.offsetX - LANE.label) / cell);
  if (row < 0 || row >= people.length || place >= data.axis.cells) return null;
  return { person: people[row], row, place: Math.max(place, -1) };
}

/** Filter the alert queue by a cell, or by a user if the name is clicked. */
function selectCell(target) {
  if (!target) return;
  const { start, step } = data.axis;
  const from = start + target.place * step;
  const same = state.user === target.person.name && state.window?.start === from;
  if (same) clearFilters();
  else {
    state.user = target.person.name;
    state.window = target.place < 0 ? null : { start: from, end: from + step };
  }
  const first = filteredIncidents()[0];
  if (first) state.incident = first.id;
  state.userPage = first || same ? undefined : target.person.name;
  announce(`${describeCell(target)}. ${count(filteredIncidents().length, "incident")}.`);
  renderQueue();
  renderDetail();
  paintLanes();
}

function describeCell({ person, place }) {
  if (place < 0) return `${userLabel(person.name)}: ${count(person.events, "event")}`;
  const from = data.axis.start + place * data.axis.step;
  const i = person.lane.at.indexOf(place);
  const scored = i >= 0 && person.lane.w[i] >= 0;
  const severity = scored ? `severity ${person.lane.w[i]}` : "no score";
  const activity = i < 0 ? "no events" : `${count(person.lane.n[i], "event")}, ${severity}`;
  const cell = `${formatTime(from)}, ${formatDuration(data.axis.step)}`;
  return `${userLabel(person.name)}, ${cell}: ${activity}`;
}

function hover(target, event) {
  const tip = document.getElementById("tip");
  tip.hidden = !found;
  if (!target) return;
  tip.textContent = describeCell(target);
  const right = event.offsetX > tip.parentElement.clientWidth / 2;
  Object.assign(tip.style, {
    top: `${event.target.offsetTop + (target.row + 1) * LANE.height + 6}px`,
    left: right ? "auto" : `${event.offsetX + 12}px`,
    right: right ? `${tip.parentElement.clientWidth - event.offsetX + 12}px` : "auto",
  });
}

function onLaneKey(event) {
  const people = visibleUsers();
  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  const step = steps[event.key];
  if (!step && event.key !== "Enter") return;
  event.preventDefault();
  event.stopPropagation();
  const clamp = (value, count) => Math.min(Math.max(value, 0), count - 1);
  if (step) {
    cursor.row = clamp(cursor.row + step[0], people.length);
    cursor.cell = clamp(cursor.cell + step[1], data.axis.cells);
  }
  const target = { person: people[cursor.row], row: cursor.row, place: cursor.cell };
  if (step) announce(describeCell(target));
  else selectCell(target);
  paintLanes();
}
