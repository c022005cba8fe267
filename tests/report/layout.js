/**
 * Measure the layout of the page, and return its faults, as sentences. Boxes and the rectangles of
 * texts are measured: what is wider than its box, cut off, broken by the letter, or on other text.
 */
() => {
  const SLACK = 1;
  const faults = [];
  const hidden = (node) => !node.checkVisibility({ visibilityProperty: true });
  const unseen = (node) => node.closest(".unseen, svg, wbr, script, style, noscript, [hidden]");
  const name = (node) => {
    const kind = node.getAttribute?.("class") ?? "";
    return `${node.tagName.toLowerCase()}${node.id ? `#${node.id}` : ""}.${kind.replaceAll(" ", ".")}`;
  };
  const short = (text) => JSON.stringify(text.trim().slice(0, 40));

  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) {
    faults.push(`the page is ${root.scrollWidth} wide in a window of ${root.clientWidth}`);
  }
  for (const node of document.querySelectorAll("body *")) {
    if (unseen(node) || hidden(node)) continue;
    if (node.clientWidth && node.scrollWidth > node.clientWidth + SLACK) {
      faults.push(`${name(node)} holds ${node.scrollWidth} in ${node.clientWidth}`);
    }
  }

  /** Return the rectangles of a text, one for each line and run. */
  const linesOf = (text) => {
    const range = document.createRange();
    range.selectNodeContents(text);
    return [...range.getClientRects()].filter((rect) => rect.width && rect.height);
  };
  const clips = (node) => {
    const { overflowX, overflowY } = getComputedStyle(node);
    return { x: overflowX !== "visible", y: overflowY === "hidden" || overflowY === "clip" };
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode;
    const parent = text.parentElement;
    if (!text.data.trim() || unseen(parent) || hidden(parent)) continue;
    const lines = linesOf(text);
    if (!lines.length) faults.push(`${short(text.data)} in ${name(parent)} has no place`);
    for (let node = parent; node; node = node.parentElement) {
      const { x, y } = clips(node);
      if (!x && !y && node !== root) continue;
      const box = node.getBoundingClientRect();
      for (const line of lines) {
        const wide = (x || node === root) && (line.left < box.left - SLACK || line.right > box.right + SLACK);
        const high = y && (line.top < box.top - SLACK || line.bottom > box.bottom + SLACK);
        if (wide || high) faults.push(`${short(text.data)} is cut by ${name(node)}`);
      }
    }
  }

  // A label that breaks after one or two letters has too narrow a column.
  for (const node of document.querySelectorAll("dt, th, h2, h3, button, label, .column-name, .tick")) {
    if (unseen(node) || hidden(node) || node.textContent.trim().length <= 4) continue;
    const tops = new Map();
    const texts = document.createTreeWalker(node, NodeFilter.SHOW_TEXT);
    const rects = [];
    while (texts.nextNode()) {
      if (!unseen(texts.currentNode.parentElement)) rects.push(...linesOf(texts.currentNode));
    }
    for (const { left, right, top, height } of rects) {
      const line = [...tops.keys()].find((other) => Math.abs(other - top) < height / 2) ?? top;
      const [from, to] = tops.get(line) ?? [left, right];
      tops.set(line, [Math.min(from, left), Math.max(to, right)]);
    }
    const widths = [...tops.values()].map(([from, to]) => to - from).slice(0, -1);
    const least = 2 * parseFloat(getComputedStyle(node).fontSize);
    if (widths.some((width) => width < least)) {
      faults.push(`${short(node.textContent)} in ${name(node)} breaks by the letter`);
    }
  }

  // Lanes and their marks are inside the card, and labels of an axis do not lie on each other.
  const card = document.getElementById("lanes").getBoundingClientRect();
  for (const node of document.querySelectorAll("#lanes *")) {
    if (unseen(node) || hidden(node)) continue;
    const box = node.getBoundingClientRect();
    if (box.left < card.left - SLACK || box.right > card.right + SLACK) {
      faults.push(`${name(node)} leaves its card`);
    }
  }
  for (const axis of document.querySelectorAll(".lanes-axis, .chart-ticks")) {
    if (hidden(axis)) continue;
    const boxes = [...axis.querySelectorAll(".tick > span")].map((node) => node.getBoundingClientRect());
    boxes.forEach((a, i) => {
      for (const b of boxes.slice(i + 1)) {
        const apart = a.right <= b.left + SLACK || b.right <= a.left + SLACK || a.bottom <= b.top + 4 || b.bottom <= a.top + 4;
        if (!apart) faults.push(`two labels of ${name(axis)} lie on each other`);
      }
    });
  }
  return [...new Set(faults)];
}
