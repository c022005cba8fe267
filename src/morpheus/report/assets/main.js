/** Load the data and draw the page. `render` can be called again with newer data. */

function render(contents) {
  data = addIndexes(contents);
  if (!selectedIncident()) state.incident = filteredIncidents()[0]?.id ?? null;
  renderHeader();
  renderLanes();
  renderQueue();
  renderDetail();
}

function redraw() {
  if (!data) return;
  paintLanes();
  renderDetail();
}

async function start() {
  verdicts.restore();
  state.incident = location.hash.slice(1) || null;
  renderHelp();
  document.addEventListener("keydown", onKeyDown);
  window.addEventListener("resize", redraw);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  try {
    render(await load());
  } catch (error) {
    replaceContent(
      "strip",
      element("h1", {}, "Morpheus"),
      element("p", { class: "warning" }, String(error)),
    );
  }
  document.body.dataset.ready = "yes";
}

start();
