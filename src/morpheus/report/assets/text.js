/** Show untrusted text: values, users, the names of columns, reasons. */

const MAX_LENGTH = 160;
const INVISIBLE = /[\p{Cc}\p{Cf}\p{Co}\p{Cs}\u2028\u2029\u115f\u1160\u3164\uffa0]/gu;
/** Ends of the parts of a name or an identifier, after which a line may break. */
const PART_ENDS = /(?<=[a-z0-9])(?=[A-Z])|(?<=[-_.:/@,;=&?])(?=[^-_.:/@,;=&?])/u;
const MAX_PARTS = 60;
/** Text that needs neither places to break nor a direction of its own. */
const SHORT_AND_PLAIN = /^[ -~]{0,16}$/;

/** Shorten a text, and escape invisible characters, including those that change its direction. */
function displayText(value, maxLength = MAX_LENGTH) {
  const text = String(value);
  const cut = text.length > maxLength ? `${text.slice(0, wholeCharacters(text, maxLength))}…` : text;
  return cut.replace(INVISIBLE, (character) => `\\u{${character.codePointAt(0).toString(16)}}`);
}

/** Return a length at which no character of two code units is divided. */
function wholeCharacters(text, length) {
  const code = text.charCodeAt(length - 1);
  return code >= 0xd800 && code <= 0xdbff ? length - 1 : length;
}

/** Return a text that prefers to break between its parts, and keeps its direction to itself. */
function isolate(text, attributes) {
  if (!attributes && SHORT_AND_PLAIN.test(text)) return text;
  const parts = text.split(PART_ENDS, MAX_PARTS);
  const rest = text.slice(parts.join("").length);
  const pieces = parts.flatMap((part, i) => (i ? [element("wbr"), part] : [part]));
  return element("bdi", attributes, pieces, rest);
}

/** Show a value, or say that it is missing. The rest of a long value is shown on request. */
function displayValue(value, maxLength = MAX_LENGTH) {
  if (value == null) return element("i", { class: "faint" }, "no value");
  const text = String(value);
  if (state.printing || text.length <= maxLength * 1.25) return isolate(displayText(text, text.length));
  const short = isolate(displayText(text, maxLength));
  const more = button(
    `all ${COUNTS.format(text.length)} characters`,
    () => {
      short.replaceWith(isolate(displayText(text, text.length)));
      more.remove();
    },
    { class: "more" },
  );
  return [short, " ", more];
}

function userLabel(name) {
  return name == null ? "(no user)" : displayText(name, 80);
}

/** Show a user's name. */
function userName(name, maxLength = 80) {
  if (name == null) return "(no user)";
  return isolate(displayText(name, maxLength), { title: displayText(name, 4200) });
}

/** Return the label of a column. */
function columnLabel(column) {
  return displayText(data.labels[column] ?? column, 80);
}

/** Show the label of a column, with its name in the log on hover. */
function columnName(column) {
  return isolate(columnLabel(column), { class: "column-name", title: displayText(column, 400) });
}

/** Show a list of columns. */
function columnList(columns) {
  return columns.flatMap((column, i) => (i ? [", ", columnName(column)] : [columnName(column)]));
}

/** Show a reason: what it quotes from the log stands between backticks. */
function reasonElement(text) {
  const parts = text.split("`");
  const quoted = parts.length % 2 === 1;
  return parts.map((part, i) =>
    quoted && i % 2 ? element("code", {}, isolate(part)) : quoted ? part : (i ? "`" : "") + part,
  );
}
