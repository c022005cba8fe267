/** Format numbers, times and untrusted text. Times are UTC. */

const HOUR = 3600;
const DAY = 24 * HOUR;
const WEEK = 7 * DAY;
const MAX_LENGTH = 160;
const INVISIBLE = /[\p{Cc}\p{Cf}\p{Co}\p{Cs}\u2028\u2029\u115f\u1160\u3164\uffa0]/gu;
const WEEKDAYS = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];

/** Shorten a text, and escape invisible characters, including those that change its direction. */
function displayText(value, maxLength = MAX_LENGTH) {
  const text = String(value);
  const cut = text.length > maxLength ? `${text.slice(0, maxLength)}…` : text;
  return cut.replace(INVISIBLE, (character) => `\\u{${character.codePointAt(0).toString(16)}}`);
}

/** Show a value, or say that it is missing. */
function displayValue(value) {
  return value == null ? element("i", { class: "faint" }, "no value") : displayText(value);
}

function userLabel(name) {
  return name == null ? "(no user)" : displayText(name, 80);
}

const COUNTS = new Intl.NumberFormat("en-US");

function count(number, noun) {
  return `${COUNTS.format(number)} ${noun}${number === 1 ? "" : "s"}`;
}

function formatNumber(number) {
  if (number == null) return "–";
  if (Math.abs(number) >= 1000) return COUNTS.format(Math.round(number));
  return String(Number(number.toPrecision(3)));
}

function formatPercent(share) {
  if (share == null) return "–";
  if (share > 0 && share < 0.0001) return "<0.01 %";
  return `${Number((share * 100).toPrecision(2))} %`;
}

/** Format a probability: `p=.60`, `p<.0001`. */
function formatProbability(value) {
  if (value == null) return "–";
  if (value > 0.99) return "p>.99";
  if (value < 0.0001) return "p<.0001";
  const digits = value >= 0.0095 ? 2 : value >= 0.00095 ? 3 : 4;
  return `p=${value.toFixed(digits).replace("0.", ".")}`;
}

function toIso(seconds) {
  return new Date(seconds * 1000).toISOString();
}

function formatDay(seconds) {
  return toIso(seconds).slice(0, 10);
}

function formatMinute(seconds) {
  return toIso(seconds).slice(0, 16).replace("T", " ");
}

function formatSecond(seconds) {
  return toIso(seconds).slice(11, 19);
}

/** Format a time with its weekday. */
function formatTime(seconds) {
  const when = new Date(seconds * 1000);
  return `${WEEKDAYS[when.getUTCDay()]} ${formatMinute(seconds)}`;
}

function formatDuration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 90 * 60) return `${Math.round(seconds / 60)} min`;
  if (seconds < 36 * HOUR) return `${Math.round(seconds / HOUR)} h`;
  return `${Math.round(seconds / DAY)} days`;
}

/** Return the hour of the week, 0 to 167. 0 starts at midnight on Monday. */
function hourOfWeek(seconds) {
  return Math.floor(((((seconds - 4 * DAY) % WEEK) + WEEK) % WEEK) / HOUR);
}
