/** Begin: take the data, draw everything. `render` may be called again with newer data. */

function render(contents) {
  data = indexed(contents);
  if (!current()) state.incident = chosen()[0]?.id ?? null;
  renderHeader();
  renderLanes();
  renderInbox();
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
  document.addEventListener("keydown", pressed);
  window.addEventListener("resize", redraw);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  try {
    render(await load());
  } catch (error) {
    refill(
      "strip",
      element("h1", {}, "Morpheus"),
      element("p", { class: "warning" }, String(error)),
    );
  }
  document.body.dataset.ready = "yes";
}

start();
