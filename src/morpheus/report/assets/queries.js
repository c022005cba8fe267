/** The incident as a query, for those who keep the logs elsewhere. Values are quoted for each. */

const NESTED = {
  userIdentitysessionContextsessionIssueruserName:
    "userIdentity.sessionContext.sessionIssuer.userName",
  userIdentityarn: "userIdentity.arn",
  userIdentityuserName: "userIdentity.userName",
  userIdentityaccountId: "userIdentity.accountId",
  userIdentityprincipalId: "userIdentity.principalId",
  userIdentityaccessKeyId: "userIdentity.accessKeyId",
};

const MARGIN = 60;
const MOST_IDS = 50;

const sql = (value) => `'${String(value).replaceAll("'", "''")}'`;
const backslashed = (value) => `"${String(value).replace(/[\\"]/g, "\\$&")}"`;

/** What a query needs: who, from when to when, and which events. */
function wanted(incident) {
  const ids = incident.events.map((event) => event.raw.eventID).filter(isId);
  return {
    column: NESTED[data.user_column] ?? data.user_column,
    user: incident.user,
    from: `${iso(incident.since - MARGIN).slice(0, 19)}Z`,
    to: `${iso(incident.until + MARGIN).slice(0, 19)}Z`,
    ids: ids.slice(0, MOST_IDS),
  };
}

/** AWS's own ids tell events apart everywhere; the running numbers of a file do not. */
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

function lake({ column, user, from, to }) {
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
    user == null ? null : `  ${backslashed(column)}=${backslashed(user)}`,
    ids.length ? `  eventID IN (${ids.map(backslashed).join(", ")})` : null,
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
    user == null ? null : `| where ${field} == ${backslashed(user)}`,
    ids.length && table === "AWSCloudTrail"
      ? `| where AwsEventId in (${ids.map(backslashed).join(", ")})`
      : null,
    "| order by TimeGenerated asc",
  ];
}

const QUERIES = { Athena: athena, "CloudTrail Lake": lake, Splunk: splunk, KQL: kusto };

function queryButtons(incident) {
  const asked = wanted(incident);
  const buttons = Object.entries(QUERIES).map(([name, write]) =>
    button(`Copy ${name}`, (event) => copy(lines(write(asked)), event.target), {
      title: lines(write(asked)),
    }),
  );
  return element("div", { class: "queries", role: "group", "aria-label": "Queries" }, buttons);
}

const lines = (parts) => parts.filter((part) => part != null).join("\n");

async function copy(text, pressed) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copyBySelection(text);
  }
  const label = pressed.textContent;
  pressed.textContent = "Copied";
  announce("Copied.");
  setTimeout(() => {
    pressed.textContent = label;
  }, 1200);
}

/** For pages from a disk, which some browsers keep from the clipboard. */
function copyBySelection(text) {
  const area = element("textarea", { class: "unseen" });
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
