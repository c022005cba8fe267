/**
 * Load the data: embedded in the page and compressed, or fetched from the server. `data.log` describes
 * the kind of log.
 */
async function load() {
  const [embedded, log] = ["data", "log"].map(readEmbedded);
  if (embedded) return { ...(await decompress(embedded)), log: await decompress(log) };
  const response = await fetch(document.body.dataset.feed);
  if (!response.ok) throw new Error(`Cannot load the data: HTTP status ${response.status}.`);
  return response.json();
}

function readEmbedded(id) {
  return document.getElementById(id).textContent.trim();
}

async function decompress(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i += 1) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

/** Put the report's contents in place, and select what was selected before. */
function setData(contents) {
  data = addIndexes(contents);
  if (!selectedIncident()) state.incident = filteredIncidents()[0]?.id ?? null;
}

/** Add maps for fast look-ups. Users with incidents come first, the most severe first. */
function addIndexes(data) {
  data.byUser = new Map(data.people.map((person) => [person.name, person]));
  data.incidents = data.incidents.map(({ incident, ...more }) => ({ ...incident, ...more }));
  data.byId = new Map(data.incidents.map((incident) => [incident.id, incident]));
  data.incidentsOf = new Map();
  for (const incident of data.incidents) {
    const others = data.incidentsOf.get(incident.user);
    if (others) others.push(incident);
    else data.incidentsOf.set(incident.user, [incident]);
  }
  const rank = new Map([...data.incidentsOf.keys()].map((user, place) => [user, place]));
  const last = rank.size;
  data.people.sort((a, b) => (rank.get(a.name) ?? last) - (rank.get(b.name) ?? last));
  return data;
}

/** Return the incidents of a user, the most severe first. */
function incidentsOf(user) {
  return data.incidentsOf.get(user) ?? [];
}
