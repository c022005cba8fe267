/**
 * What verdicts would hide: the suppressions that a verdict leads to, and the incidents of this page
 * that they match. Conditions mean what they mean for `filter --suppressions`.
 */

const BENIGN = ["expected", "benign-new"];
const DEFAULT_DAYS = 30;
const MAX_AGENT_LENGTH = 512;
const AGENT_FRAMES = new Set(
  ["mozilla", "apn", "hashicorp", "applewebkit", "gecko", "version", "mobile"],
);
const SPAN = /^(\S+) ([0-9]{1,2}):([0-9]{2})-([0-9]{1,2}):([0-9]{2})$/;
const DAYS_OF_WEEK = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const MINUTES_PER_DAY = 1440;
const ADDRESS_WITH_PORT = /^(?:(\d+(?:\.\d+){3}):\d+|\[([0-9a-fA-F:.]+)\](?::\d+)?)$/;

/** Return the name of the product in a user agent, without its version. */
function agentFamily(agent) {
  const text = agent.slice(0, MAX_AGENT_LENGTH).replace(/\([^()]*\)/g, " ").replace(/[[\],;]/g, " ");
  const products = [];
  let words = [];
  for (const token of text.split(/\s+/).filter(Boolean)) {
    const slash = token.indexOf("/");
    if (slash < 0) {
      words.push(token);
      continue;
    }
    if (slash > 0 && /^v?[0-9]/.test(token.slice(slash + 1))) {
      products.push([...words, token.slice(0, slash)].join(" "));
    }
    words = [];
  }
  const named = products.filter((name) => !AGENT_FRAMES.has(name.toLowerCase()));
  if (!named.length) return products.at(-1) ?? agent.trim();
  if (products[0] !== "Mozilla") return named[0];
  return named.findLast((name) => name !== "Safari") ?? named[0];
}

/** Return the network of an address: /24 for IPv4, /48 for IPv6. Other text stays. */
function networkOf(address) {
  const bare = address.trim().split("%")[0];
  const found = ADDRESS_WITH_PORT.exec(bare);
  const text = found ? (found[1] ?? found[2]) : bare;
  if (isIpv4(text)) return `${text.split(".").slice(0, 3).join(".")}.0/24`;
  const groups = ipv6Groups(text);
  if (!groups) return address;
  if (groups.slice(0, 5).every((group) => group === 0) && groups[5] === 0xffff) {
    return `${groups[6] >> 8}.${groups[6] & 255}.${groups[7] >> 8}.0/24`;
  }
  const start = groups.slice(0, 3).map((group) => group.toString(16)).join(":");
  return `${new URL(`http://[${start}::]`).hostname.slice(1, -1)}/48`;
}

function isIpv4(text) {
  const parts = text.split(".");
  return parts.length === 4 && parts.every((part) => /^(0|[1-9]\d{0,2})$/.test(part) && part < 256);
}

/** Return the eight numbers of an IPv6 address, or null. */
function ipv6Groups(text) {
  if (!/^[0-9a-fA-F:.]*:[0-9a-fA-F:.]*$/.test(text)) return null;
  try {
    const [head, tail] = new URL(`http://[${text}]`).hostname.slice(1, -1).split("::");
    const [start, end] = [head, tail ?? ""].map((part) => part.split(":").filter(Boolean));
    const zeros = Array(8 - start.length - end.length).fill("0");
    return [...start, ...zeros, ...end].map((group) => Number.parseInt(group, 16));
  } catch {
    return null;
  }
}

/** Return the days of a span, and its first minute and end in the day; null for other text. */
function parseSpan(span) {
  const found = SPAN.exec(span.trim());
  if (!found) return null;
  const [, days, ...clock] = found;
  const [fromHour, fromMinute, toHour, toMinute] = clock.map(Number);
  const [start, end] = [fromHour * 60 + fromMinute, toHour * 60 + toMinute];
  const list = days.split(",").flatMap((part) => {
    if (part === "daily") return [0, 1, 2, 3, 4, 5, 6];
    const [first, last = first] = part.split("-").map((day) => DAYS_OF_WEEK.indexOf(day));
    const length = ((last - first + 7) % 7) + 1;
    return Array.from({ length }, (_, i) => (first + i) % 7);
  });
  return { days: list, start, end: end > start ? end : end + MINUTES_PER_DAY };
}

/** Say whether a time is within some hours of the week. */
function isWithinHours(seconds, { hours, timezone }) {
  const local = Math.floor(seconds + zoneOffset(seconds, timezone));
  const day = (((Math.floor(local / DAY) + 3) % 7) + 7) % 7; // 1970-01-01 was a Thursday
  const minute = Math.floor((((local % DAY) + DAY) % DAY) / 60);
  return hours.map(parseSpan).some((span) =>
    span?.days.some((first) => {
      const passed = ((day - first + 7) % 7) * MINUTES_PER_DAY + minute;
      return passed >= span.start && passed < span.end;
    }),
  );
}

/** Return the value of a condition for an event; "" for no value. */
function conditionValue({ kind, column }, event) {
  const value = event.raw[column];
  if (value == null || value === "") return "";
  if (kind === "network") return networkOf(String(value));
  return kind === "family" ? agentFamily(String(value)) : String(value);
}

/** Say whether a rule hides an event. */
function hides(rule, event) {
  if (rule.until !== null && event.at >= rule.until) return false;
  if (rule.hours && !isWithinHours(event.at, rule)) return false;
  return rule.conditions.every((condition) =>
    condition.values.includes(conditionValue(condition, event)),
  );
}

/** Return the events that are not alerts only because of those before them; all if none is. */
function causesOf(incident) {
  const scores = incidentsOf(incident.user).flatMap(({ events }) => events.map(({ score }) => score));
  const lowest = Math.min(...scores.filter((score) => score != null));
  const own = incident.events.filter((event) => {
    const part = data.ranking === "risk" ? event.why?.preceding?.own : null;
    return part == null || event.score == null || part >= lowest;
  });
  return own.length ? own : incident.events;
}

/** Return the conditions on the events of an incident: one rule for each service. */
function similarRules(incident) {
  const columns = conditionColumns(incident);
  const service = columns.find(({ field }) => field === "service");
  const groups = Map.groupBy(causesOf(incident), (event) =>
    service ? conditionValue(service, event) : "",
  );
  return [...groups.values()].map((events) => ({
    user: incident.user,
    until: null,
    conditions: columns.map(({ kind, column }) => ({
      kind,
      column,
      values: [...new Set(events.map((event) => conditionValue({ kind, column }, event)))].sort(),
    })),
  }));
}

/** Return the columns of conditions: the first of each field that has a value on this page. */
function conditionColumns(incident) {
  const kinds = { source_address: "network", user_agent: "family" };
  const events = incidentsOf(incident.user).flatMap((each) => each.events);
  return Object.entries(data.log.conditions).flatMap(([field, names]) => {
    const column = names.find((name) => events.some((event) => event.raw[name] != null));
    return column ? [{ field, kind: kinds[field] ?? "where", column }] : [];
  });
}

/** Return what a person's verdict and wish would hide: rules, none if nothing is hidden. */
function rulesOf(incident, verdict, tuning) {
  if (!BENIGN.includes(verdict) || incident.user == null) return [];
  const rule = { user: incident.user, until: tuning?.until ? dayEnd(tuning.until) : null };
  if (tuning?.action === "accept") return [];
  if (tuning?.action === "mute") return [{ ...rule, conditions: [] }];
  if (tuning?.action === "hours") return [{ ...rule, ...tuning, until: rule.until, conditions: [] }];
  return similarRules(incident);
}

/** Return the time at which a suppression until a day ends. */
function dayEnd(day) {
  return Date.parse(`${day}T00:00:00Z`) / 1000;
}

/** Return the incidents of this page that rules hide together. */
function hiddenIncidents(rules) {
  if (!rules.length) return [];
  return incidentsOf(rules[0].user).filter((incident) =>
    causesOf(incident).every((event) => rules.some((rule) => hides(rule, event))),
  );
}

/** Say how many incidents of this page a verdict and a wish would hide. */
function previewText(incident, verdict, tuning) {
  if (tuning?.action === "accept") return "Its events are for the next training. Nothing is hidden.";
  const rules = rulesOf(incident, verdict, tuning);
  if (!rules.length) return "";
  const hidden = hiddenIncidents(rules).length;
  const what = tuning ? "This rule" : "A rule for this incident alone";
  const own = count(incidentsOf(incident.user).length, "incident");
  return `${what} would hide ${hidden} of the ${own} of this user on this page.`;
}

/** Return a wish in words; "" for none. */
function wishText(tuning) {
  if (tuning?.action === "mute") return `user muted until ${tuning.until}`;
  if (tuning?.action === "accept") return "accepted as normal";
  if (tuning?.action === "hours") return `expected ${tuning.hours.join(", ")} ${tuning.timezone}`;
  return "";
}

/** Show what else can be done about an incident: mute its user, expect its hours, accept it. */
function tuningPanel(incident) {
  if (incident.user == null) return null;
  const tuning = verdicts.tuning(incident);
  const open = state.wish?.incident === incident.id ? state.wish.action : null;
  const actions = [
    ["mute", "Mute this user until …"],
    ["hours", "Expected at these hours …"],
    ["accept", "Accept as normal"],
  ];
  const buttons = actions.map(([action, label]) => {
    const given = tuning?.action === action;
    const expands = action === "accept" ? {} : { "aria-expanded": String(open === action) };
    const attributes = { class: "wish", "data-wish": action, "aria-pressed": String(given), ...expands };
    return button([given ? "✓ " : "", label], () => chooseWish(incident, action), attributes);
  });
  const preview = previewText(incident, verdicts.get(incident), tuning);
  return [
    element("div", { class: "verdicts", role: "group", "aria-label": "Tuning" }, buttons),
    open === "mute" ? muteForm(incident, tuning) : null,
    open === "hours" ? hoursForm(incident, tuning) : null,
    preview && !open ? element("p", { class: "faint preview" }, wishLine(tuning), preview) : null,
  ];
}

function wishLine(tuning) {
  const text = wishText(tuning);
  return text ? `${text[0].toUpperCase()}${text.slice(1)}. ` : "";
}

/** Open the form of a wish, or take the wish back; accepting needs no form. */
function chooseWish(incident, action) {
  const given = verdicts.tuning(incident)?.action === action;
  if (given || action === "accept") {
    setWish(incident, given ? null : { action });
  } else {
    const open = state.wish?.incident === incident.id && state.wish.action === action;
    state.wish = open ? null : { incident: incident.id, action };
    renderDetail();
  }
  const selector = state.wish ? ".wish-form input, .wish-form select" : `[data-wish=${action}]`;
  document.querySelector(selector)?.focus();
}

function setWish(incident, tuning) {
  state.wish = null;
  verdicts.setTuning(incident, tuning);
  announce(tuning ? `${wishLine(tuning)}` : "Wish taken back.");
  renderQueue();
  renderDetail();
}

/** Show the fields of a wish, its preview, and the button that sets it. */
function wishForm(incident, label, fields, read) {
  const preview = element("output", { class: "faint" });
  const set = button(label, () => setWish(incident, read()));
  const update = () => {
    const tuning = read();
    set.disabled = tuning === null;
    preview.textContent = tuning ? previewText(incident, "expected", tuning) : "";
  };
  const form = element("div", { class: "wish-form", oninput: update }, fields, set, preview);
  update();
  return form;
}

function muteForm(incident, tuning) {
  const later = new Date((incident.until + DEFAULT_DAYS * DAY) * 1000).toISOString().slice(0, 10);
  const until = element("input", { type: "date", value: tuning?.until ?? later, required: true });
  const fields = element("label", {}, "Hide everything of this user until (UTC) ", until);
  const read = () => (until.value ? { action: "mute", until: until.value } : null);
  return wishForm(incident, "Mute", fields, read);
}

function hoursForm(incident) {
  const start = Math.floor(localDate(incident.since).getTime() / (HOUR * 1000));
  const end = Math.ceil((localDate(incident.until).getTime() + 1) / (HOUR * 1000));
  const clock = (hour) => `${String(((hour % 24) + 24) % 24).padStart(2, "0")}:00`;
  const weekday = formatWeekday(incident.since);
  const days = element(
    "select",
    { "aria-label": "Days" },
    ["daily", "Mon-Fri", "Sat,Sun", weekday].map((name) => element("option", { value: name }, name)),
  );
  const from = element("input", { type: "time", "aria-label": "From", value: clock(start) });
  const to = element("input", { type: "time", "aria-label": "To", value: clock(end) });
  const timezone = state.timeZone;
  const read = () => {
    const last = to.value === "00:00" ? "24:00" : to.value;
    const hours = [`${days.value} ${from.value}-${last}`];
    return from.value && to.value ? { action: "hours", hours, timezone } : null;
  };
  const fields = [
    element("label", {}, "Hide everything of this user ", days),
    element("span", {}, from, " to ", to, ` ${timezone}`),
  ];
  return wishForm(incident, "Expect", fields, read);
}
