/** Helpers for elements. Log text always becomes a text node, never markup. */

const SVG = "http://www.w3.org/2000/svg";

/** Create an element. Attributes that start with `on` are listeners; null children are skipped. */
function element(tag, attributes = {}, ...children) {
  return populate(document.createElement(tag), attributes, children);
}

/** Create an SVG element. */
function svgElement(tag, attributes = {}, ...children) {
  return populate(document.createElementNS(SVG, tag), attributes, children);
}

function populate(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return node;
}

/** Create a button with a text label. */
function button(label, onclick, attributes = {}) {
  return element("button", { type: "button", onclick, ...attributes }, label);
}

/** Replace the children of the element with this id. */
function replaceContent(id, ...children) {
  const node = document.getElementById(id);
  node.replaceChildren(
    ...children.flat(Infinity).filter((child) => child != null && child !== false),
  );
  return node;
}

/** Announce a text to screen readers. */
function announce(text) {
  document.getElementById("status").textContent = text;
}

