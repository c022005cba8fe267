/** Numbers, times and hostile text, made fit to be read. Times are UTC. */

const HOUR = 3600;
const DAY = 24 * HOUR;
const WEEK = 7 * DAY;
const LONGEST = 160;
const HIDDEN = /[\p{Cc}\p{Cf}\p{Co}\p{Cs}\u2028\u2029\u115f\u1160\u3164\uffa0]/gu;
const WEEKDAYS = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];

/** Show what cannot be seen, marks that turn text around among it, as escapes. */
function legible(value, most = LONGEST) {
  const text = String(value);
  const cut = text.length > most ? `${text.slice(0, most)}…` : text;
  return cut.replace(HIDDEN, (sign) => `\\u{${sign.codePointAt(0).toString(16)}}`);
}

/** A value that may be missing. */
function shown(value) {
  return value == null ? element("i", { class: "faint" }, "no value") : legible(value);
}

function who(name) {
  return name == null ? "(no user)" : legible(name, 80);
}

const COUNTS = new Intl.NumberFormat("en-US");

function count(number, noun) {
  return `${COUNTS.format(number)} ${noun}${number === 1 ? "" : "s"}`;
}

function short(number) {
  if (number == null) return "–";
  if (Math.abs(number) >= 1000) return COUNTS.format(Math.round(number));
  return String(Number(number.toPrecision(3)));
}

function percent(share) {
  if (share == null) return "–";
  if (share > 0 && share < 0.0001) return "<0.01 %";
  return `${Number((share * 100).toPrecision(2))} %`;
}

/** A probability, as short as it can be told. */
function chance(value) {
  if (value == null) return "–";
  if (value > 0.99) return "p>.99";
  if (value < 0.0001) return "p<.0001";
  const digits = value >= 0.0095 ? 2 : value >= 0.00095 ? 3 : 4;
  return `p=${value.toFixed(digits).replace("0.", ".")}`;
}

function iso(seconds) {
  return new Date(seconds * 1000).toISOString();
}

function day(seconds) {
  return iso(seconds).slice(0, 10);
}

function minute(seconds) {
  return iso(seconds).slice(0, 16).replace("T", " ");
}

function second(seconds) {
  return iso(seconds).slice(11, 19);
}

/** Weekday and time: what an analyst asks first. */
function moment(seconds) {
  const when = new Date(seconds * 1000);
  return `${WEEKDAYS[when.getUTCDay()]} ${minute(seconds)}`;
}

function span(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 90 * 60) return `${Math.round(seconds / 60)} min`;
  if (seconds < 36 * HOUR) return `${Math.round(seconds / HOUR)} h`;
  return `${Math.round(seconds / DAY)} days`;
}

/** Hours since Monday, midnight. */
function hourOfWeek(seconds) {
  return Math.floor(((((seconds - 4 * DAY) % WEEK) + WEEK) % WEEK) / HOUR);
}
