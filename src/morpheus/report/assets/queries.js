/** The incident as a query for other tools. Values are quoted by the rules of each language. */

const MARGIN_SECONDS = 60;
const MAX_IDS = 50;

const quoteWithBackslash = (value) => `"${String(value).replace(/[\\"]/g, "\\$&")}"`;
const isPlainName = (name) => /^[\w.]+$/.test(name);

/** How each language quotes a value, and a column with an unusual name. */
const LANGUAGES = {
  sql: {
    value: (text) => `'${String(text).replaceAll("'", "''")}'`,
    column: (name) => (isPlainName(name) ? name : `"${name.replaceAll('"', '""')}"`),
  },
  splunk: { value: quoteWithBackslash, column: quoteWithBackslash },
  kusto: {
    value: quoteWithBackslash,
    column: (name) => (isPlainName(name) ? name : `[${quoteWithBackslash(name)}]`),
  },
  logging: {
    value: quoteWithBackslash,
    column: (name) => (isPlainName(name) ? name : quoteWithBackslash(name)),
  },
};

const TIME_FORMATS = {
  iso: (time) => time,
  sql: (time) => time.slice(0, 19).replace("T", " "),
  epoch: (time) => Date.parse(time) / 1000,
};

/** Accept ids like those of AWS only: the row numbers of a file do not identify events elsewhere. */
const isId = (id) => /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(id);

function eventIds(incident) {
  const names = data.log.event_ids;
  return incident.events.flatMap(({ raw }) => names.map((name) => raw[name]).filter(isId));
}

/**
 * Return the columns and values that select the user. The actor is computed, so no tool has it; what
 * all events of the incident have in common is used instead.
 */
function userConditions(query, { user, events }) {
  if (query.user_column != null) return user == null ? [] : [[query.user_column, user]];
  return query.identities.flatMap(([column, name]) => {
    const [value, ...others] = new Set(events.map(({ raw }) => raw[column]));
    return value == null || others.length ? [] : [[name, value]];
  });
}

/** Return the values of a query's placeholders, quoted; null for those without a value. */
function queryValues(query, incident) {
  const { value, column } = LANGUAGES[query.language];
  const formatTime = TIME_FORMATS[query.time_format];
  const minute = (seconds) => formatTime(`${toIso(seconds).slice(0, 19)}Z`);
  const ids = eventIds(incident).slice(0, MAX_IDS);
  return {
    users: userConditions(query, incident).map(([name, user]) => ({
      user_column: column(name),
      user: value(user),
    })),
    from: minute(incident.since - MARGIN_SECONDS),
    to: minute(incident.until + MARGIN_SECONDS),
    ids: ids.length ? ids.map(value).join(", ") : null,
  };
}

const PLACEHOLDER = /\{(user_column|user|from|to|ids)\}/g;

/** Write a query. A line with a placeholder that has no value is left out. */
function writeQuery(query, incident) {
  const { users, ...values } = queryValues(query, incident);
  return query.template
    .split("\n")
    .flatMap((line) => {
      const conditions = /\{user(_column)?\}/.test(line) ? users : [{}];
      return conditions.map((condition) => fillLine(line, { ...values, ...condition }));
    })
    .filter((line) => line != null)
    .join("\n");
}

function fillLine(line, values) {
  const names = [...line.matchAll(PLACEHOLDER)].map(([, name]) => name);
  if (names.some((name) => values[name] == null)) return null;
  return line.replace(PLACEHOLDER, (_, name) => values[name]);
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
