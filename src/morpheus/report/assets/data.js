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

/** Add maps for fast look-ups. */
function addIndexes(data) {
  data.byUser = new Map(data.people.map((person) => [person.name, person]));
  data.incidents = data.incidents.map(({ incident, around }) => ({ ...incident, around }));
  data.byId = new Map(data.incidents.map((incident) => [incident.id, incident]));
  data.alerts = new Map();
  for (const incident of data.incidents) {
    data.alerts.set(incident.user, (data.alerts.get(incident.user) ?? 0) + 1);
  }
  return data;
}
