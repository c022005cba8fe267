/** Charts, drawn as SVG: they have the width of their box, on screen and on paper. */

/** Return a chart: the drawing, the axis from 0 to `top`, and labels at parts of the width. */
function chart({ label, top, drawing, ticks }) {
  return element(
    "figure",
    { class: "chart", role: "img", "aria-label": label },
    element(
      "div",
      { class: "chart-values", "aria-hidden": "true" },
      element("span", {}, formatNumber(top)),
      element("span", {}, "0"),
    ),
    drawing,
    element("div", { class: "chart-ticks", "aria-hidden": "true" }, ticks.map((tick) => tickLabel(tick))),
  );
}

/** Place a label at a part of the width. A label without room to its right has its mark only. */
function tickLabel([part, ...lines], room = 0.2) {
  const end = part === 1;
  const fits = end || part <= 1 - room;
  const shown = fits ? lines.map(tickLine) : [];
  const label = element("span", { class: end ? "tick end" : "tick" }, shown);
  label.style.left = `${(part * 100).toFixed(2)}%`;
  return label;
}

function tickLine(text) {
  return element("span", {}, text);
}

/** Return a drawing that is stretched to the size of its box: x in `0..width`, y in `0..100`. */
function stretched(width, ...children) {
  const size = { viewBox: `0 0 ${width} 100`, preserveAspectRatio: "none" };
  return svgElement("svg", { ...size, "aria-hidden": "true" }, children);
}

/** Return bars from the bottom as one path. */
function barPath(values, top, from, width) {
  return values
    .map((value, i) => {
      if (!value) return "";
      const height = Math.max((value / top) * 100, 1.5);
      return `M${i + from} 100v${(-height).toFixed(2)}h${width}V100z`;
    })
    .join("");
}

/** Draw the activity around an incident over the typical volume, and mark the alerts. */
function timeline(incident, weekly) {
  const { start, step, n, f } = incident.around;
  const typical = n.map((_, i) => typicalEvents(weekly, start + i * step, step));
  const top = Math.max(...n, ...typical, 1) * 1.15;
  const end = start + n.length * step;
  const marks = incident.times.map((offset) => (incident.since + offset - start) / step);
  const drawing = stretched(
    n.length,
    svgElement("path", { class: "typical-bar", d: barPath(typical, top, 0, 1) }),
    svgElement("path", { class: "observed-bar", d: barPath(n, top, 0.2, 0.6) }),
    svgElement("path", {
      class: `alert-mark ${severityName(incident)}`,
      d: [...new Set(marks.map((x) => `M${x.toFixed(2)} 0v30`))].join(""),
    }),
    svgElement("path", { class: "anomaly-bar", d: barPath(f.map(Boolean), 1 / 0.05, 0, 1) }),
  );
  const label = `Events from ${formatTime(start)} to ${formatTime(end)}`;
  return chart({ label, top: Math.max(...n, ...typical), drawing, ticks: timeTicks(start, end, 5) });
}

function typicalEvents(weekly, time, step) {
  if (!weekly) return 0;
  const hours = Math.max(Math.round(step / HOUR), 1);
  let events = 0;
  for (let i = 0; i < hours; i += 1) events += weekly.hours[(hourOfWeek(time) + i) % 168];
  return events / weekly.weeks;
}

/** Return the labels of a time axis. The day is named at its first label. */
function timeTicks(start, end, most) {
  let before = "";
  return axisTicks(start, end, most).ticks.map((time) => {
    const [day, clock] = formatMinute(time).split(" ");
    const first = day !== before;
    before = day;
    const part = (time - start) / (end - start);
    return [part, clock, ...(first ? [`${formatWeekday(time)} ${day.slice(5)}`] : [])];
  });
}

/** Draw the validation loss of each epoch. */
function lossCurve({ curve, epochs: best }) {
  const top = Math.max(...curve) * 1.05 || 1;
  const width = Math.max(curve.length - 1, 1);
  const points = curve.map((loss, i) => `${i ? "L" : "M"}${i} ${(100 - (loss / top) * 100).toFixed(2)}`);
  const drawing = stretched(
    width,
    svgElement("path", { class: "curve", d: points.join("") }),
    svgElement("path", { class: "curve-mark", d: `M${best - 1} 0V100` }),
  );
  const label = `Validation loss by epoch: lowest after epoch ${best}`;
  const ticks = [
    [0, "epoch 1"],
    [1, `epoch ${curve.length}`],
  ];
  return [chart({ label, top, drawing, ticks }), faint(`Lowest after epoch ${best}.`)];
}
