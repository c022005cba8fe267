/** Charts, drawn by uPlot. */

const charts = new Set();

/** Destroy the charts that are shown, to free their memory. */
function destroyCharts() {
  for (const chart of charts) chart.destroy();
  charts.clear();
}

/** Return an element. The chart is drawn when the element has its width. */
function chart(label, height, make) {
  const box = element("div", { class: "chart", role: "img", "aria-label": label });
  requestAnimationFrame(() => {
    if (!box.isConnected) return;
    const { options, values } = make();
    const size = { width: box.clientWidth, height };
    charts.add(new uPlot({ ...size, legend: { show: false }, ...options }, values, box));
  });
  return box;
}

function axis(extra = {}) {
  const line = { stroke: colour("rule"), width: 1 };
  return {
    stroke: colour("faint"),
    font: "11px system-ui, sans-serif",
    grid: line,
    ticks: { ...line, size: 4 },
    ...extra,
  };
}

const bars = (share) => uPlot.paths.bars({ size: [share, 60], align: 1 });

/** Draw the activity around an incident over the typical volume, and mark the alerts. */
function timeline(incident, weekly) {
  const { start, step, n, f } = incident.around;
  const times = n.map((_, i) => start + i * step);
  const typical = times.map((time) => typicalEvents(weekly, time, step));
  const label = `Events from ${formatTime(start)} to ${formatTime(start + n.length * step)}`;
  return chart(label, 132, () => ({
    options: timelineOptions(incident, f, weekly),
    values: [times, typical, n],
  }));
}

function typicalEvents(weekly, time, step) {
  if (!weekly) return null;
  const hours = Math.max(Math.round(step / HOUR), 1);
  let events = 0;
  for (let i = 0; i < hours; i += 1) events += weekly.hours[(hourOfWeek(time) + i) % 168];
  return events / weekly.weeks;
}

function timelineOptions(incident, flagged, weekly) {
  const { start, step, n } = incident.around;
  const bar = { width: 0, points: { show: false } };
  const typical = { ...bar, label: "typical", fill: colour("typical"), paths: bars(1) };
  const observed = { ...bar, label: "observed", fill: colour("observed"), paths: bars(0.55) };
  return {
    tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
    cursor: { show: false },
    scales: {
      x: { range: [start, start + n.length * step] },
      y: { range: (_, __, top) => [0, Math.max(top, 1) * 1.15] },
    },
    axes: [axis({ values: hourLabels, size: 26 }), axis({ size: 42 })],
    series: [{}, { ...typical, show: Boolean(weekly) }, observed],
    hooks: { draw: [(plot) => drawMarks(plot, incident, flagged)] },
  };
}

function hourLabels(_, splits) {
  return splits.map((time, i) => {
    const clock = toIso(time).slice(11, 16);
    return i === 0 || clock === "00:00" ? `${formatDay(time).slice(5)} ${clock}` : clock;
  });
}

/** Draw a tick for each alert, and a line under cells with a time-series anomaly. */
function drawMarks(plot, incident, flagged) {
  const context = plot.ctx;
  const { left, top, width, height } = plot.bbox;
  const ratio = window.devicePixelRatio || 1;
  context.save();
  context.fillStyle = colour(incident.severity_name);
  for (const offset of incident.times) {
    const x = plot.valToPos(incident.since + offset, "x", true);
    if (x <= left + width) context.fillRect(x - ratio, top, 2 * ratio, height * 0.3);
  }
  context.fillStyle = colour("anomaly");
  const { start, step } = incident.around;
  flagged.forEach((events, i) => {
    if (!events) return;
    const from = plot.valToPos(start + i * step, "x", true);
    const to = plot.valToPos(start + (i + 1) * step, "x", true);
    context.fillRect(from, top + height - 3 * ratio, to - from, 3 * ratio);
  });
  context.restore();
}

/** Draw the validation loss of each epoch. */
function lossCurve(profile) {
  const epochs = profile.curve.map((_, i) => i + 1);
  const best = profile.epochs;
  return chart(`Validation loss by epoch: lowest after epoch ${best}`, 150, () => ({
    options: {
      cursor: { show: false },
      scales: { x: { time: false } },
      axes: [axis({ size: 26 }), axis({ size: 50 })],
      series: [{}, { stroke: colour("accent"), width: 2, points: { show: false } }],
      hooks: { draw: [(plot) => drawBestEpoch(plot, best)] },
    },
    values: [epochs, profile.curve],
  }));
}

function drawBestEpoch(plot, best) {
  const context = plot.ctx;
  context.save();
  context.fillStyle = colour("faint");
  const x = plot.valToPos(best, "x", true);
  context.fillRect(x, plot.bbox.top, 1, plot.bbox.height);
  context.fillText(`best: ${best}`, x + 4, plot.bbox.top + 12);
  context.restore();
}
