/** Printing: paper gets the details of every incident, with nothing left to open. */

function preparePrint() {
  if (!data || state.printing) return;
  state.printing = true;
  renderLanes();
  renderQueue();
  renderDetail();
  const incidents = filteredIncidents();
  const shown = incidents.filter(({ user }) => state.userPage === undefined || user === state.userPage);
  const cards = shown.map((incident) =>
    element("article", { class: "print-card" }, incidentDetails(incident, incident.worst)),
  );
  const title = element("h2", {}, `Incidents: ${COUNTS.format(shown.length)}`);
  document.querySelector("main").append(element("section", { id: "print" }, title, cards));
  for (const details of document.querySelectorAll("#print details, #strip details")) {
    details.open = true;
  }
}

function endPrint() {
  if (!state.printing) return;
  state.printing = false;
  document.getElementById("print")?.remove();
  renderLanes();
  renderQueue();
  renderDetail();
}

function watchPrint() {
  window.addEventListener("beforeprint", preparePrint);
  window.addEventListener("afterprint", endPrint);
  const paper = window.matchMedia("print");
  paper.addEventListener("change", () => (paper.matches ? preparePrint() : endPrint()));
}
