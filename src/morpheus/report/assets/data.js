/** The page's data: embedded and packed, or fetched from whoever serves the page. */

async function load() {
  const packed = document.getElementById("data").textContent.trim();
  if (packed) return unpacked(packed);
  const answer = await fetch(document.body.dataset.feed);
  if (!answer.ok) throw new Error(`The data did not come: ${answer.status}.`);
  return answer.json();
}

async function unpacked(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i += 1) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

/** What is looked up again and again. */
function indexed(data) {
  data.byUser = new Map(data.people.map((person) => [person.name, person]));
  data.incidents = data.incidents.map(({ incident, around }) => ({ ...incident, around }));
  data.byId = new Map(data.incidents.map((incident) => [incident.id, incident]));
  data.alerts = new Map();
  for (const incident of data.incidents) {
    data.alerts.set(incident.user, (data.alerts.get(incident.user) ?? 0) + 1);
  }
  return data;
}
