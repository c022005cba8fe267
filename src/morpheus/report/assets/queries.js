/** The incident as a query for other tools. Values are quoted by the rules of each language. */

const NESTED_NAMES = {
  userIdentitysessionContextsessionIssueruserName:
    "userIdentity.sessionContext.sessionIssuer.userName",
  userIdentityarn: "userIdentity.arn",
  userIdentityuserName: "userIdentity.userName",
  userIdentityaccountId: "userIdentity.accountId",
  userIdentityprincipalId: "userIdentity.principalId",
  userIdentityaccessKeyId: "userIdentity.accessKeyId",
};

const MARGIN_SECONDS = 60;
const MAX_IDS = 50;

const sql = (value) => `'${String(value).replaceAll("'", "''")}'`;
const quoteWithBackslash = (value) => `"${String(value).replace(/[\\"]/g, "\\$&")}"`;

/** Return what a query needs: the user, the period and the event ids. */
function queryParameters(incident) {
  const ids = incident.events.map((event) => event.raw.eventID).filter(isId);
  return {
    column: NESTED_NAMES[data.user_column] ?? data.user_column,
    user: incident.user,
    from: `${toIso(incident.since - MARGIN_SECONDS).slice(0, 19)}Z`,
    to: `${toIso(incident.until + MARGIN_SECONDS).slice(0, 19)}Z`,
    ids: ids.slice(0, MAX_IDS),
  };
}

/** Accept ids from AWS only: the row numbers of a file do not identify events elsewhere. */
const isId = (id) => /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(id);

function athena({ column, user, from, to }) {
  return [
    "SELECT eventtime, eventname, eventsource, sourceipaddress, useragent, errorcode,",
    "       requestparameters, eventid",
    "FROM cloudtrail_logs",
    `WHERE eventtime BETWEEN ${sql(from)} AND ${sql(to)}`,
    user == null ? null : `  AND ${column.toLowerCase()} = ${sql(user)}`,
    "ORDER BY eventtime;",
  ];
}

function cloudTrailLake({ column, user, from, to }) {
  return [
    "SELECT eventTime, eventName, eventSource, sourceIPAddress, userAgent, errorCode,",
    "       requestParameters, eventID",
    "FROM <event data store id>",
    `WHERE eventTime BETWEEN ${sql(from.slice(0, 19).replace("T", " "))}`,
    `  AND ${sql(to.slice(0, 19).replace("T", " "))}`,
    user == null ? null : `  AND ${column} = ${sql(user)}`,
    "ORDER BY eventTime",
  ];
}

function splunk({ column, user, from, to, ids }) {
  const epoch = (time) => Date.parse(time) / 1000;
  return [
    `search index=* earliest=${epoch(from)} latest=${epoch(to)}`,
    user == null ? null : `  ${quoteWithBackslash(column)}=${quoteWithBackslash(user)}`,
    ids.length ? `  eventID IN (${ids.map(quoteWithBackslash).join(", ")})` : null,
    "| sort 0 _time",
    "| table _time eventName eventSource sourceIPAddress userAgent errorCode eventID",
  ];
}

const TABLES = {
  "from-azure": ["SigninLogs", { userPrincipalName: "UserPrincipalName" }],
  "from-duo": ["Duo_CL", { username: "user_name_s" }],
};
const SENTINEL = {
  "userIdentity.sessionContext.sessionIssuer.userName": "SessionIssuerUserName",
  "userIdentity.arn": "UserIdentityArn",
  "userIdentity.userName": "UserIdentityUserName",
  "userIdentity.accountId": "UserIdentityAccountId",
  "userIdentity.principalId": "UserIdentityPrincipalid",
  "userIdentity.accessKeyId": "UserIdentityAccessKeyId",
};

function kusto({ column, user, from, to, ids }) {
  const [table, names] = TABLES[data.source] ?? ["AWSCloudTrail", SENTINEL];
  const field = names[column] ?? column;
  return [
    table,
    `| where TimeGenerated between (datetime(${from}) .. datetime(${to}))`,
    user == null ? null : `| where ${field} == ${quoteWithBackslash(user)}`,
    ids.length && table === "AWSCloudTrail"
      ? `| where AwsEventId in (${ids.map(quoteWithBackslash).join(", ")})`
      : null,
    "| order by TimeGenerated asc",
  ];
}

const QUERIES = { Athena: athena, "CloudTrail Lake": cloudTrailLake, Splunk: splunk, KQL: kusto };

function queryButtons(incident) {
  const parameters = queryParameters(incident);
  const buttons = Object.entries(QUERIES).map(([name, write]) =>
    button(`Copy ${name}`, (event) => copy(joinLines(write(parameters)), event.target), {
      title: joinLines(write(parameters)),
    }),
  );
  const attributes = { class: "queries", role: "group", "aria-label": "Copy as a query" };
  return element("div", attributes, buttons);
}

const joinLines = (parts) => parts.filter((part) => part != null).join("\n");

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
