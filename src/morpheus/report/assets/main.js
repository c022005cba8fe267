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

/** Draw the time axis again: the number of its labels depends on the width. */
function resize() {
  if (data && !state.printing) document.querySelector(".lanes-axis")?.replaceWith(lanesAxis());
}

async function start() {
  verdicts.restore();
  state.incident = location.hash.slice(1) || null;
  renderHelp();
  document.addEventListener("keydown", onKeyDown);
  window.addEventListener("resize", resize);
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
