/** Load the data and draw the page. `render` can be called again with newer data. */

function render(contents) {
  const first = data === null;
  setData(contents);
  if (first && isTimeZone(data.timezone)) state.timeZone = data.timezone;
  renderAll();
}

function renderAll() {
  renderHeader();
  renderLanes();
  renderQueue();
  renderDetail();
}

async function start() {
  verdicts.restore();
  state.incident = location.hash.slice(1) || null;
  renderHelp();
  document.addEventListener("keydown", onKeyDown);
  watchPrint();
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
