/**
 * The incident as a query for other tools. Values and fields are written by the rules of each
 * language, so that no value of a log can end its literal.
 */

const MARGIN_SECONDS = 60;
const MAX_IDS = 200;

const isPlainName = (name) => /^[\w.]+$/.test(name);
const isExpression = (name) => /^\w+\(.*\)$/s.test(name);
const isVisible = (text) => text.search(INVISIBLE) < 0;
const hex = (number, width) => number.toString(16).padStart(width, "0");
const toBytes = (text) => [...new TextEncoder().encode(text)];

function quoteSql(text) {
  const quoted = text.replaceAll("'", "''");
  if (isVisible(text)) return `'${quoted}'`;
  const escape = (character) => `\\+${hex(character.codePointAt(0), 6)}`;
  return `U&'${quoted.replaceAll("\\", "\\\\").replace(INVISIBLE, escape)}'`;
}

function escapeUtf16(character) {
  return [...Array(character.length).keys()]
    .map((at) => `\\u${hex(character.charCodeAt(at), 4)}`)
    .join("");
}

const quoteEscaped = (text) =>
  `"${text.replace(/[\\"]/g, "\\$&").replace(INVISIBLE, escapeUtf16)}"`;

/** ES|QL has no escapes for most invisible characters. */
const quoteEsql = (text) =>
  isVisible(text)
    ? quoteEscaped(text)
    : `FROM_BASE64("${btoa(String.fromCharCode(...toBytes(text)))}")`;

/** Splunk treats backslashes, asterisks and backticks in quotes in several ways. */
function quoteSplunk(text) {
  if (/^[\w .,:;/@=+()#-]*$/.test(text)) return `"${text}"`;
  const encoded = toBytes(text).map((byte) => {
    const character = String.fromCharCode(byte);
    return /[\w.-]/.test(character) ? character : `%${hex(byte, 2)}`;
  });
  return `urldecode("${encoded.join("")}")`;
}

const escapeRegex = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
const list = (values) => `(${values.join(values.length > 3 ? ",\n    " : ", ")})`;
const listOrOne = (field, equals, isIn, values) =>
  values.length === 1 ? `${field} ${equals} ${values[0]}` : `${field} ${isIn} ${list(values)}`;

/**
 * How each language writes a comment, a value, a field, a field in lower case, and conditions.
 * `field` returns null for a name that the language cannot quote.
 */
const LANGUAGES = {
  sql: {
    comment: (text) => `-- ${text}`,
    value: quoteSql,
    field: (name) =>
      isPlainName(name) ? name : isVisible(name) ? `"${name.replaceAll('"', '""')}"` : null,
    fold: (field) => `lower(${field})`,
    isIn: (field, values) => listOrOne(field, "=", "IN", values),
    startsWith: (field, prefix) => `starts_with(${field}, ${quoteSql(prefix)})`,
    and: "AND",
    or: "OR",
  },
  splunk: {
    comment: (text) => `\`\`\` ${text.replaceAll("`", "'")} \`\`\``,
    value: quoteSplunk,
    field: (name) =>
      /^\w+$/.test(name) ? name : /['\\]/.test(name) || !isVisible(name) ? null : `'${name}'`,
    fold: (field) => `lower(${field})`,
    isIn: (field, values) => values.map((value) => `${field}=${value}`).join(" OR "),
    startsWith: (field, prefix) =>
      `substr(${field}, 1, len(${quoteSplunk(prefix)}))=${quoteSplunk(prefix)}`,
    and: "AND",
    or: "OR",
  },
  kusto: {
    comment: (text) => `// ${text}`,
    value: quoteEscaped,
    field: (name) => (isPlainName(name) ? name : `[${quoteEscaped(name)}]`),
    fold: (field) => `tolower(${field})`,
    isIn: (field, values) => listOrOne(field, "==", "in", values),
    startsWith: (field, prefix) => `${field} startswith_cs ${quoteEscaped(prefix)}`,
    and: "and",
    or: "or",
  },
  esql: {
    comment: (text) => `// ${text}`,
    value: quoteEsql,
    field: (name) =>
      /^@?[\w.]+$/.test(name)
        ? name
        : isVisible(name)
          ? `\`${name.replaceAll("`", "``")}\``
          : null,
    fold: (field) => `TO_LOWER(${field})`,
    isIn: (field, values) => listOrOne(field, "==", "IN", values),
    startsWith: (field, prefix) => `STARTS_WITH(${field}, ${quoteEsql(prefix)})`,
    and: "AND",
    or: "OR",
  },
  logging: {
    comment: (text) => `-- ${text}`,
    value: quoteEscaped,
    field: (name) => (isPlainName(name) ? name : quoteEscaped(name)),
    fold: (field) => field, // comparisons ignore case
    isIn: (field, values) =>
      values.length === 1 ? `${field}=${values[0]}` : `${field}=(${values.join(" OR ")})`,
    startsWith: (field, prefix) => `${field}=~${quoteEscaped(`^${escapeRegex(prefix)}`)}`,
    and: "AND",
    or: "OR",
  },
};

const TIME_FORMATS = {
  iso: (time) => time,
  sql: (time) => time.slice(0, 19).replace("T", " "),
  epoch: (time) => String(Date.parse(time) / 1000),
};

/** Return the fields of a column in the tool of a query, as its language writes them. */
function fieldsOf(query, column) {
  const { field } = LANGUAGES[query.language];
  const names = query.fields[column] ?? [];
  return names.map((name) => (isExpression(name) ? name : field(name))).filter((name) => name);
}

function joinWith(word, conditions, separator = " ") {
  return conditions.length > 1 ? `(${conditions.join(`${separator}${word} `)})` : conditions[0];
}

/** Write the condition on one column; undefined if the tool cannot express it. */
function writeCondition(query, [column, values, prefixes]) {
  const language = LANGUAGES[query.language];
  const parts = fieldsOf(query, column).flatMap((name) => {
    const field = data.log.caseless.includes(column) ? language.fold(name) : name;
    return [
      ...(values.length ? [language.isIn(field, values.map(language.value))] : []),
      ...prefixes.map((prefix) => language.startsWith(field, prefix)),
    ];
  });
  const needsParentheses = query.language === "splunk" && values.length > 1;
  return needsParentheses && parts.length === 1
    ? `(${parts[0]})`
    : joinWith(language.or, parts);
}

/**
 * Write what identifies the user: alternatives, each of conditions that all apply. An alternative
 * without a condition would select all users, so that there is no condition at all then.
 */
function writeIdentity(query, { identity }, indent) {
  const { and, or } = LANGUAGES[query.language];
  const alternatives = identity.map((conditions) =>
    conditions.map((condition) => writeCondition(query, condition)).filter((text) => text),
  );
  if (!alternatives.length || alternatives.some((conditions) => !conditions.length)) return null;
  if (alternatives.length === 1) return alternatives[0].join(`\n${indent}${and} `);
  return joinWith(
    or,
    alternatives.map((conditions) => joinWith(and, conditions)),
    `\n${indent}`,
  );
}

/** Write the condition on the ids of events. Ids have safe characters only. */
function writeEventIds(query, ids) {
  const { value, isIn, or } = LANGUAGES[query.language];
  const fields = data.log.event_ids.flatMap((column) => fieldsOf(query, column));
  if (!ids.length || !fields.length) return null;
  const values = ids.map(value);
  if (query.language !== "splunk") return joinWith(or, fields.map((name) => isIn(name, values)));
  // The search command finds events by index; it wants field names in double quotes.
  const names = fields.map((name) => name.replace(/^'(.*)'$/, '"$1"'));
  return joinWith(or, names.map((name) => `${name} IN ${list(values)}`));
}

/** Return the fields and values of single values that identify the user, for older templates. */
function singleValues(query, { identity }) {
  const { value } = LANGUAGES[query.language];
  if (identity.length !== 1) return [];
  return identity[0]
    .filter(([, values, prefixes]) => values.length === 1 && !prefixes.length)
    .flatMap(([column, [user]]) =>
      fieldsOf(query, column)
        .slice(0, 1)
        .map((field) => ({ user_column: field, user: value(user) })),
    );
}

/** Say what the query does not select by. */
function listNotes(query, incident, numIds, withIdentity) {
  const { evidence, count: total } = incident;
  const notes = [];
  if (numIds && numIds < total) {
    notes.push(
      `This query has ${count(numIds, "event id")} of the incident's ${COUNTS.format(total)} events. ` +
        "Without the condition on ids, it finds all events of the user in this time.",
    );
  }
  if (evidence.ids.length && !numIds) notes.push("No condition on ids: the query was too long.");
  if (!query.template.includes("{identity}")) return notes;
  const missing = withIdentity
    ? evidence.identity.flat().filter((condition) => !writeCondition(query, condition))
    : [];
  const names = [...new Set(missing.map(([column]) => displayText(column, 60)))];
  if (names.length) notes.push(`No condition on ${names.join(", ")}: not a field here, or too long.`);
  if (!withIdentity || !evidence.identity.length) {
    notes.push("No condition on the user: the fields of the events do not tell it, or are too long.");
  }
  return notes;
}

const PLACEHOLDER = /\{(event_ids|identity|from_day|to_day|from|to|ids|user_column|user)\}/g;

/** Fill the template. A line with a placeholder that has no value is left out. */
function fillTemplate(query, incident, numIds, withIdentity) {
  const language = LANGUAGES[query.language];
  const evidence = { ...incident.evidence, ...(withIdentity ? {} : { identity: [] }) };
  const ids = evidence.ids.slice(0, numIds);
  const at = (seconds) => TIME_FORMATS[query.time_format](`${toIso(seconds).slice(0, 19)}Z`);
  const day = (seconds) => formatDay(seconds).replaceAll("-", "/");
  const values = {
    event_ids: writeEventIds(query, ids),
    ids: ids.length ? ids.map(language.value).join(", ") : null,
    from: at(incident.since - MARGIN_SECONDS),
    to: at(incident.until + MARGIN_SECONDS),
    from_day: day(incident.since - MARGIN_SECONDS),
    to_day: day(incident.until + DAY), // events may be delivered on the next day
  };
  const users = singleValues(query, evidence);
  const lines = query.template.split("\n").flatMap((line) => {
    const identity = writeIdentity(query, evidence, `${/^\s*/.exec(line)[0]}    `);
    const rows = /\{user(_column)?\}/.test(line) ? users : [{}];
    return rows.map((row) => fillLine(line, { ...values, identity, ...row }));
  });
  const notes = listNotes(query, incident, numIds, withIdentity).map(language.comment);
  return [...notes, ...lines.filter((line) => line != null)].join("\n");
}

function fillLine(line, values) {
  const names = [...line.matchAll(PLACEHOLDER)].map(([, name]) => name);
  if (names.some((name) => values[name] == null)) return null;
  return line.replace(PLACEHOLDER, (_, name) => values[name]);
}

/** Write a query. If it is too long for the tool, it gets fewer ids, and then no user. */
function writeQuery(query, incident) {
  const most = Math.min(incident.evidence.ids.length, MAX_IDS);
  let text = "";
  for (const withIdentity of [true, false]) {
    for (let numIds = most; ; numIds >>= 1) {
      text = fillTemplate(query, incident, numIds, withIdentity);
      if (text.length <= query.max_length) return text;
      if (numIds <= 1) break;
    }
  }
  return text;
}

const PSEUDONYM = /^ps-([0-9a-f]{4})-[a-z2-7]{16}$/;

function queryButtons(incident) {
  const pseudonym = PSEUDONYM.exec(incident.user ?? "");
  if (pseudonym) {
    const text =
      "No queries: the user is a pseudonym, and other tools know the user by name. " +
      `To find the name, use "morpheus tools pseudonym" with key ${pseudonym[1]}.`;
    return element("p", { class: "queries" }, text);
  }
  const buttons = data.log.queries.map((query) => {
    const text = writeQuery(query, incident);
    const onclick = (event) => copy(text, event.target);
    return button(`Copy ${query.name}`, onclick, { title: text });
  });
  const attributes = { class: "queries", role: "group", "aria-label": "Copy as a query" };
  return element("div", attributes, buttons);
}

async function copy(text, target) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copyBySelection(text);
  }
  const label = target.textContent;
  target.textContent = "Copied";
  announce("Copied.");
  setTimeout(() => {
    target.textContent = label;
  }, 1200);
}

/** Copy without the clipboard API, which some browsers deny to pages opened from disk. */
function copyBySelection(text) {
  const area = element("textarea", { class: "unseen" });
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
