/** Elements: whatever comes from a log becomes a text node, never markup. */

const SVG = "http://www.w3.org/2000/svg";

/** Make an element; attributes that begin with `on` are listeners, null children are left out. */
function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for a drawing. */
function drawing(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return node;
}

/** A button that says what it does. */
function button(label, onclick, attributes = {}) {
  return element("button", { type: "button", onclick, ...attributes }, label);
}

/** Put children in place of those there are. */
function refill(id, ...children) {
  const node = document.getElementById(id);
  node.replaceChildren(
    ...children.flat(Infinity).filter((child) => child != null && child !== false),
  );
  return node;
}

/** Say something to those who do not see it. */
function announce(text) {
  document.getElementById("status").textContent = text;
}

/** A colour of the style sheet. */
function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}
