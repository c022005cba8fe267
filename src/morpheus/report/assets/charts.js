/** Charts, drawn by uPlot. */

const drawn = new Set();

/** Let go of the charts of what was shown before. */
function forgetCharts() {
  for (const chart of drawn) chart.destroy();
  drawn.clear();
}

/** Draw into an element once it has its width. */
function chart(label, height, make) {
  const box = element("div", { class: "chart", role: "img", "aria-label": label });
  requestAnimationFrame(() => {
    if (!box.isConnected) return;
    const { options, values } = make();
    const size = { width: box.clientWidth, height };
    drawn.add(new uPlot({ ...size, legend: { show: false }, ...options }, values, box));
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

/** Events around an incident, over what is usual at these hours, with the alerts marked. */
function timeline(incident, rhythm) {
  const { start, step, n, f } = incident.around;
  const times = n.map((_, i) => start + i * step);
  const usual = times.map((time) => usualIn(rhythm, time, step));
  const label = `Events from ${moment(start)} to ${moment(start + n.length * step)}`;
  return chart(label, 132, () => ({
    options: timelineOptions(incident, f, rhythm),
    values: [times, usual, n],
  }));
}

function usualIn(rhythm, time, step) {
  if (!rhythm) return null;
  const hours = Math.max(Math.round(step / HOUR), 1);
  let events = 0;
  for (let i = 0; i < hours; i += 1) events += rhythm.hours[(hourOfWeek(time) + i) % 168];
  return events / rhythm.weeks;
}

function timelineOptions(incident, flagged, rhythm) {
  const { start, step, n } = incident.around;
  const ghost = { label: "usual", fill: colour("ghost"), width: 0, paths: bars(1), points: none() };
  const now = { label: "now", fill: colour("now"), width: 0, paths: bars(0.55), points: none() };
  return {
    tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
    cursor: { show: false },
    scales: {
      x: { range: [start, start + n.length * step] },
      y: { range: (_, __, top) => [0, Math.max(top, 1) * 1.15] },
    },
    axes: [axis({ values: hours, size: 26 }), axis({ size: 42 })],
    series: [{}, { ...ghost, show: Boolean(rhythm) }, now],
    hooks: { draw: [(plot) => markTimeline(plot, incident, flagged)] },
  };
}

const none = () => ({ show: false });

function hours(_, splits) {
  return splits.map((time, i) => {
    const clock = iso(time).slice(11, 16);
    return i === 0 || clock === "00:00" ? `${day(time).slice(5)} ${clock}` : clock;
  });
}

/** A tick for each alert, and a line under cells that break the rhythm. */
function markTimeline(plot, incident, flagged) {
  const pen = plot.ctx;
  const { left, top, width, height } = plot.bbox;
  const ratio = window.devicePixelRatio || 1;
  pen.save();
  pen.fillStyle = colour(incident.severity);
  for (const offset of incident.times) {
    const x = plot.valToPos(incident.since + offset, "x", true);
    if (x <= left + width) pen.fillRect(x - ratio, top, 2 * ratio, height * 0.3);
  }
  pen.fillStyle = colour("rhythm");
  const { start, step } = incident.around;
  flagged.forEach((events, i) => {
    if (!events) return;
    const from = plot.valToPos(start + i * step, "x", true);
    const to = plot.valToPos(start + (i + 1) * step, "x", true);
    pen.fillRect(from, top + height - 3 * ratio, to - from, 3 * ratio);
  });
  pen.restore();
}

/** Loss on held-out events, epoch by epoch. */
function lossCurve(profile) {
  const epochs = profile.curve.map((_, i) => i + 1);
  const best = profile.epochs;
  return chart(`Loss on held-out events: best after epoch ${best}`, 150, () => ({
    options: {
      cursor: { show: false },
      scales: { x: { time: false } },
      axes: [axis({ size: 26 }), axis({ size: 50 })],
      series: [{}, { stroke: colour("accent"), width: 2, points: { show: false } }],
      hooks: { draw: [(plot) => markBest(plot, best)] },
    },
    values: [epochs, profile.curve],
  }));
}

function markBest(plot, best) {
  const pen = plot.ctx;
  pen.save();
  pen.fillStyle = colour("faint");
  const x = plot.valToPos(best, "x", true);
  pen.fillRect(x, plot.bbox.top, 1, plot.bbox.height);
  pen.fillText(`best: ${best}`, x + 4, plot.bbox.top + 12);
  pen.restore();
}
