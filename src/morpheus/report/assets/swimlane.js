/** Users by time: the highest level in each cell. A canvas, walked with the mouse or the arrows. */

const LANE = { rows: 15, height: 13, gap: 1, label: 190, foot: 34 };
const cursor = { row: 0, cell: 0 };

/** The users of the page of lanes that is shown. */
function lanesShown() {
  const { text, page } = state.lanes;
  const people = lanesFound(text);
  return people.slice(page * LANE.rows, (page + 1) * LANE.rows);
}

function lanesFound(text) {
  const wanted = text.toLowerCase();
  const passed = data.people.filter((person) => who(person.name).toLowerCase().includes(wanted));
  return state.lanes.alerts ? passed.filter((person) => data.alerts.has(person.name)) : passed;
}

function renderLanes() {
  if (!data.axis) {
    refill("lanes", element("h2", { id: "lanes-title" }, "No events"));
    return;
  }
  const canvas = element("canvas", {
    id: "swimlane",
    tabindex: 0,
    role: "application",
    "aria-label": "Users by time. Arrow keys move, Enter filters the inbox.",
    onclick: (event) => pick(cellAt(event)),
    onmousemove: (event) => hover(cellAt(event), event),
    onmouseleave: () => hover(null),
    onkeydown: walk,
    onfocus: paintLanes,
    onblur: paintLanes,
  });
  refill("lanes", lanesBar(), canvas, element("div", { id: "tip", hidden: true }));
  paintLanes();
}

function lanesBar() {
  const found = lanesFound(state.lanes.text).length;
  const pages = Math.max(Math.ceil(found / LANE.rows), 1);
  const search = element("input", {
    type: "search",
    id: "lanes-search",
    placeholder: "Find a user",
    "aria-label": "Find a user",
    oninput: (event) => turn({ text: event.target.value, page: 0 }),
  });
  search.value = state.lanes.text;
  const turned = (step) => turn({ page: (state.lanes.page + step + pages) % pages });
  return element(
    "div",
    { class: "bar" },
    element("h2", { id: "lanes-title" }, "Users by time"),
    search,
    toggle("With incidents", state.lanes.alerts, (on) => turn({ alerts: on, page: 0 })),
    element("span", { class: "grow" }),
    legend(),
    button("‹", () => turned(-1), { "aria-label": "Users before", disabled: pages === 1 }),
    element("span", { class: "faint" }, `${state.lanes.page + 1} of ${pages}`),
    button("›", () => turned(1), { "aria-label": "Users after", disabled: pages === 1 }),
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
  const offBeat = element("span", {}, element("i", { class: "swatch rhythm" }), "rhythm broken");
  return element("span", { class: "legend" }, keys, offBeat);
}

/** Show other lanes; the search keeps the focus. */
function turn(changes) {
  Object.assign(state.lanes, changes);
  const typing = document.activeElement?.id === "lanes-search";
  renderLanes();
  if (typing) document.getElementById("lanes-search").focus();
}

function geometry() {
  const canvas = document.getElementById("swimlane");
  const people = lanesShown();
  const width = canvas.parentElement.clientWidth;
  const cell = (width - LANE.label) / data.axis.cells;
  return { canvas, people, width, cell, height: people.length * LANE.height + LANE.foot };
}

function paintLanes() {
  const { canvas, people, width, cell, height } = geometry();
  const scale = window.devicePixelRatio || 1;
  Object.assign(canvas, { width: width * scale, height: height * scale });
  Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
  Object.assign(canvas.dataset, { label: LANE.label, row: LANE.height, cell });
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  const inks = inksNow();
  for (const [row, person] of people.entries()) {
    paintLane(pen, person, row * LANE.height, cell, inks);
  }
  paintRhythm(pen, people, people.length * LANE.height, cell, inks);
  paintAxis(pen, height - 18, cell, inks);
  paintChoice(pen, people, cell, inks);
}

function inksNow() {
  const names = [...SEVERITIES, "quiet", "unscored", "rhythm", "ink", "faint", "accent", "lane"];
  return Object.fromEntries(names.map((name) => [name, colour(name)]));
}

function paintLane(pen, person, top, cell, inks) {
  pen.font = "11px system-ui, sans-serif";
  pen.textBaseline = "middle";
  pen.fillStyle = data.alerts.has(person.name) ? inks.ink : inks.faint;
  pen.fillText(fitted(pen, who(person.name), LANE.label - 8), 0, top + LANE.height / 2);
  pen.fillStyle = inks.lane;
  pen.fillRect(LANE.label, top, cell * data.axis.cells, LANE.height - LANE.gap);
  const { at, w } = person.lane;
  const wide = Math.max(cell, 1);
  at.forEach((place, i) => {
    pen.fillStyle = inks[tone(w[i])];
    pen.fillRect(LANE.label + place * cell, top, wide, LANE.height - LANE.gap);
  });
}

/** The name of a level's colour; levels come in hundredths. */
function tone(hundredths) {
  if (hundredths < 0) return "unscored";
  if (hundredths < 50) return "quiet";
  if (hundredths < 100) return "low";
  return hundredths < 200 ? "medium" : hundredths < 400 ? "high" : "critical";
}

function fitted(pen, text, most) {
  let kept = text;
  while (kept.length > 1 && pen.measureText(kept).width > most) kept = `${kept.slice(0, -2)}…`;
  return kept;
}

/** One lane under all the others: cells in which anybody shown breaks their rhythm. */
function paintRhythm(pen, people, top, cell, inks) {
  pen.fillStyle = inks.faint;
  pen.fillText("rhythm broken (ts_anomaly)", 0, top + 8);
  pen.fillStyle = inks.rhythm;
  for (const { lane } of people) {
    for (const place of lane.f) {
      pen.fillRect(LANE.label + lane.at[place] * cell, top + 3, Math.max(cell, 3), 9);
    }
  }
}

function paintAxis(pen, top, cell, inks) {
  const { start, step, cells } = data.axis;
  const every = [HOUR * 6, DAY, 2 * DAY, WEEK, 2 * WEEK, 4 * WEEK, 12 * WEEK].find(
    (width) => (width / step) * cell >= 70,
  );
  pen.fillStyle = inks.faint;
  for (let time = Math.ceil(start / every) * every; time < start + cells * step; time += every) {
    const x = LANE.label + ((time - start) / step) * cell;
    const text = every < DAY ? minute(time).slice(5) : day(time).slice(5);
    pen.fillRect(x, top, 1, 4);
    pen.fillText(`${WEEKDAYS[new Date(time * 1000).getUTCDay()]} ${text}`, x + 3, top + 9);
  }
}

function paintChoice(pen, people, cell, inks) {
  pen.strokeStyle = inks.accent;
  pen.lineWidth = 1.5;
  const outline = (row, place) =>
    pen.strokeRect(
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

/** Filter the inbox by a cell, or by a user where their name is picked. */
function pick(found) {
  if (!found) return;
  const { start, step } = data.axis;
  const from = start + found.place * step;
  const same = state.user === found.person.name && state.window?.start === from;
  if (same) clearFilters();
  else {
    state.user = found.person.name;
    state.window = found.place < 0 ? null : { start: from, end: from + step };
  }
  const first = chosen()[0];
  if (first) state.incident = first.id;
  state.profile = first || same ? undefined : found.person.name;
  announce(`${told(found)}. ${count(chosen().length, "incident")}.`);
  renderInbox();
  renderDetail();
  paintLanes();
}

function told({ person, place }) {
  if (place < 0) return `${who(person.name)}: ${count(person.events, "event")}`;
  const from = data.axis.start + place * data.axis.step;
  const i = person.lane.at.indexOf(place);
  const level = i < 0 || person.lane.w[i] < 0 ? "no score" : `level ${person.lane.w[i] / 100}`;
  const many = i < 0 ? "no events" : `${count(person.lane.n[i], "event")}, ${level}`;
  return `${who(person.name)}, ${moment(from)}, ${span(data.axis.step)}: ${many}`;
}

function hover(found, event) {
  const tip = document.getElementById("tip");
  tip.hidden = !found;
  if (!found) return;
  tip.textContent = told(found);
  const right = event.offsetX > tip.parentElement.clientWidth / 2;
  Object.assign(tip.style, {
    top: `${event.target.offsetTop + (found.row + 1) * LANE.height + 6}px`,
    left: right ? "auto" : `${event.offsetX + 12}px`,
    right: right ? `${tip.parentElement.clientWidth - event.offsetX + 12}px` : "auto",
  });
}

function walk(event) {
  const people = lanesShown();
  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  const step = steps[event.key];
  if (!step && event.key !== "Enter") return;
  event.preventDefault();
  event.stopPropagation();
  const within = (value, most) => Math.min(Math.max(value, 0), most - 1);
  if (step) {
    cursor.row = within(cursor.row + step[0], people.length);
    cursor.cell = within(cursor.cell + step[1], data.axis.cells);
  }
  const found = { person: people[cursor.row], row: cursor.row, place: cursor.cell };
  if (step) announce(told(found));
  else pick(found);
  paintLanes();
}
