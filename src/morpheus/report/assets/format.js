/** Format numbers and times. Times are shown in the selected time zone. */

const HOUR = 3600;
const DAY = 24 * HOUR;
const WEEK = 7 * DAY;
const WEEKDAYS = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];

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

/** Format a time in UTC, whatever time zone is selected: for other programs. */
function toIso(seconds) {
  return new Date(seconds * 1000).toISOString();
}

const clocks = new Map();

/** Return what computes the local time in a time zone. The browser has no faster way. */
function clockOf(zone) {
  if (!clocks.has(zone)) {
    const fields = ["year", "month", "day", "hour", "minute", "second"];
    const options = Object.fromEntries(fields.map((field) => [field, "numeric"]));
    clocks.set(
      zone,
      new Intl.DateTimeFormat("en-US", { ...options, timeZone: zone, hourCycle: "h23" }),
    );
  }
  return clocks.get(zone);
}

/** Return the seconds that a time zone is ahead of UTC at a time. */
function zoneOffset(seconds, zone = state.timeZone) {
  if (zone === "UTC") return 0;
  const whole = Math.floor(seconds);
  const parts = clockOf(zone).formatToParts(whole * 1000);
  const part = Object.fromEntries(parts.map(({ type, value }) => [type, Number(value)]));
  const { year, month, day, hour, minute, second } = part;
  return Date.UTC(year, month - 1, day, hour, minute, second) / 1000 - whole;
}

/** Return a date whose UTC fields are those of the local time. */
function localDate(seconds) {
  return new Date((seconds + zoneOffset(seconds)) * 1000);
}

function localIso(seconds) {
  return localDate(seconds).toISOString();
}

function formatDay(seconds) {
  return localIso(seconds).slice(0, 10);
}

function formatMinute(seconds) {
  return localIso(seconds).slice(0, 16).replace("T", " ");
}

function formatSecond(seconds) {
  return localIso(seconds).slice(11, 19);
}

function formatWeekday(seconds) {
  return WEEKDAYS[localDate(seconds).getUTCDay()];
}

/** Format a time with its weekday. */
function formatTime(seconds) {
  return `${formatWeekday(seconds)} ${formatMinute(seconds)}`;
}

/** Show a time in at most two lines: the day, and the time of day. */
function timeElement(seconds) {
  const [day, clock] = formatMinute(seconds).split(" ");
  return element(
    "time",
    { datetime: toIso(seconds), title: `${toIso(seconds).slice(0, 19)}Z` },
    element("span", {}, `${formatWeekday(seconds)} ${day}`),
    " ",
    element("span", {}, clock),
  );
}

function formatDuration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 90 * 60) return `${Math.round(seconds / 60)} min`;
  if (seconds < 36 * HOUR) return `${Math.round(seconds / HOUR)} h`;
  return `${Math.round(seconds / DAY)} days`;
}

/** Return the last midnight before a time, in a time zone. */
function startOfDay(seconds, zone = state.timeZone) {
  const local = seconds + zoneOffset(seconds, zone);
  const midnight = seconds - (((local % DAY) + DAY) % DAY);
  // The clocks may have changed since then.
  return midnight + zoneOffset(seconds, zone) - zoneOffset(midnight, zone);
}

/** Return the hour of the week in UTC, 0 to 167. 0 starts at midnight on Monday. */
function hourOfWeek(seconds) {
  return Math.floor(((((seconds - 4 * DAY) % WEEK) + WEEK) % WEEK) / HOUR);
}

/** Return the times of the ticks of a time axis, at most `most` of them, at whole local hours. */
function axisTicks(start, end, most) {
  const hours = [1, 2, 3, 6, 12, 24, 48, 72, 96, 168, 336, 672, 2016, 8736];
  const step = (hours.find((h) => (end - start) / (h * HOUR) <= most) ?? 43680) * HOUR;
  const ticks = [];
  let time = startOfDay(start);
  while (time < end) {
    if (time >= start) ticks.push(time);
    // From noon of the day that the tick is on, midnight is found though the clocks change.
    time = step < DAY ? time + step : startOfDay(time + step + DAY / 2);
  }
  return { ticks, step };
}
