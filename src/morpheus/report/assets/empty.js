/** Empty states: why there is nothing to show. */

function emptyNote(text, ...more) {
  return element("p", { class: "faint pad empty" }, text, more);
}

/** Say why the report has no incident, from what the run counted. */
function whyNothing() {
  const { account, axis } = data;
  const { read = 0, refused = 0, scored = 0, training = 0 } = account;
  if (!axis && document.body.dataset.feed) return NOTHING_YET;
  if (!axis && refused && refused >= read) return whyAllRejected(refused);
  if (!axis && !read) return training ? onlyTraining(training) : NOTHING_READ;
  if (!axis) return `Nothing in the period: none of ${count(read, "event")} read is in the period to score.`;
  if (!scored) return whyUnscored();
  return whyNoAlert(scored);
}

const NOTHING_READ =
  "Nothing was read: the run found no event. Check the path and the kind of the logs.";

const NOTHING_YET =
  "Nothing yet: there is no row in this folder. The page shows rows when the run writes them.";

function onlyTraining(training) {
  return `Nothing in the period: all ${count(training, "event")} were used for training.`;
}

function whyAllRejected(refused) {
  const [first] = data.account.refusals ?? [];
  const detail = first ? ` The first one: ${displayText(first, 300)}` : "";
  return `Nothing was read: all ${count(refused, "record")} were rejected.${detail}`;
}

function whyUnscored() {
  const reasons = Object.entries(data.account.unscored ?? {}).map(
    ([reason, events]) => `${displayText(reason)}: ${count(events, "event")}`,
  );
  const detail = reasons.length ? ` ${reasons.join("; ")}.` : "";
  return `Nothing was scored, so there are no incidents.${detail}`;
}

function whyNoAlert(scored) {
  const { wanted, suppressed, next_pvalue: next } = data.account.alerts ?? {};
  const budget = wanted == null ? "" : ` of ${formatAmount(wanted)} alerts`;
  const parts = [
    `Nothing above the budget${budget}: ${count(scored, "event")} scored, none is an alert.`,
    suppressed ? `${count(suppressed, "user-day")} suppressed.` : "",
    next ? `The most unusual user-day is like one in ${formatAmount(1 / next)} days.` : "",
  ];
  return parts.filter(Boolean).join(" ");
}

/** Say why the alert queue is empty: nothing at all, or nothing that matches the filters. */
function emptyQueue() {
  if (!data.incidents.length) return emptyNote(whyNothing());
  const hidden = count(data.incidents.length, "incident");
  return emptyNote(`No incident matches the filters, which hide ${hidden}.`);
}
