// Pictures: squares of cells and weights on canvases, charts as SVG. Numbers in, marks out.

const byId = (id) => document.getElementById(id);

function escaped(text) {
  return String(text).replace(/[&<>"]/g, (letter) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[letter]);
}

// An element of HTML: element("li", {class: "x"}, child, ...)
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// "#rrggbb" as three numbers
const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

// A value from -1 to 1 as a colour of the page: the accent where positive, its opposite where negative.
function tint(value, strength = 85) {
  const share = Math.min(Math.abs(value), 1) * strength;
  return `color-mix(in srgb, var(--${value < 0 ? "opposite" : "accent"}) ${share.toFixed(1)}%, transparent)`;
}

// values [rows, columns] from -1 to 1, one square each; `scale` pixels a square, `gap` of them free.
function drawSquares(canvas, values, columns, { scale = 1, gap = 0, chosen = -1 } = {}) {
  const rows = Math.ceil(values.length / columns);
  canvas.width = columns * scale;
  canvas.height = rows * scale;
  const picture = new ImageData(canvas.width, canvas.height);
  const paper = channels(color("raised")), ends = [channels(color("opposite")), channels(color("accent"))];
  const ink = channels(color("ink"));
  for (let y = 0; y < canvas.height; y++) {
    for (let x = 0; x < canvas.width; x++) {
      const cell = Math.floor(y / scale) * columns + Math.floor(x / scale);
      if (cell >= values.length || x % scale >= scale - gap || y % scale >= scale - gap) continue;
      const share = Math.min(Math.abs(values[cell]), 1), end = ends[values[cell] < 0 ? 0 : 1];
      const edge = cell === chosen && (x % scale < 2 || y % scale < 2 || x % scale >= scale - gap - 2
        || y % scale >= scale - gap - 2);
      const at = 4 * (y * canvas.width + x);
      for (let k = 0; k < 3; k++) picture.data[at + k] = edge ? ink[k] : paper[k] + (end[k] - paper[k]) * share;
      picture.data[at + 3] = 255;
    }
  }
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

// --- charts, as wide as the room that there is, so that letters have the same size on every screen

const roomIn = (node) => Math.max(280, Math.min(node.clientWidth, 760));

const svg = (width, height, label, marks) =>
  `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${escaped(label)}">${marks}</svg>`;
const words = (x, y, text, { anchor = "middle", kind = "" } = {}) =>
  `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" text-anchor="${anchor}" class="${kind}">${escaped(text)}</text>`;
const line = (x1, y1, x2, y2, kind = "axis") =>
  `<line x1="${x1.toFixed(1)}" y1="${y1.toFixed(1)}" x2="${x2.toFixed(1)}" y2="${y2.toFixed(1)}" class="${kind}"/>`;
const path = (points, kind) =>
  `<path d="M${points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join("L")}" class="${kind}"/>`;

// Lines over time, one row each: rows [{name, values, low, high}], letters under the last, `now` the place of a dashed line.
function lanes(rows, letters, now, width) {
  const left = 72, height = 62, step = (width - left - 8) / Math.max(letters.length, 1);
  const x = (t) => left + (t + 0.5) * step;
  let marks = "";
  rows.forEach(({ name, values, low, high }, number) => {
    const top = number * height + 8, bottom = top + height - 18;
    const y = (value) => bottom - (bottom - top) * (value - low) / (high - low);
    marks += line(left, y(low), width - 8, y(low)) + line(left, y(high), width - 8, y(high));
    if (low < 0) marks += line(left, y(0), width - 8, y(0));
    marks += words(left - 10, (top + bottom) / 2 + 4, name, { anchor: "end", kind: "strong" });
    marks += words(width - 4, top + 4, high, { anchor: "start" }) + words(width - 4, bottom + 4, low, { anchor: "start" });
    marks += path([...values].map((value, t) => [x(t), y(value)]), number === rows.length - 1 ? "second" : "main");
  });
  const bottom = rows.length * height;
  if (now >= 0) marks += line(x(now), 4, x(now), bottom + 2, "now");
  letters.forEach((letter, t) => { marks += words(x(t), bottom + 16, letter, { kind: "letter" }); });
  return svg(width + 22, bottom + 24, "Gates and memory over the text", marks);
}

// shares [H, 2] of steps shut and open
function scatter(title, shut, open, chosen) {
  const side = 220, left = 30, x = (v) => left + v * side, y = (v) => 10 + (1 - v) * side;
  let marks = line(x(0), y(0), x(1), y(0)) + line(x(0), y(0), x(0), y(1)) + line(x(1), y(0), x(0), y(1));
  for (const v of [0, 0.5, 1]) marks += words(x(v), y(0) + 16, v) + words(left - 6, y(v) + 4, v, { anchor: "end" });
  marks += words(x(0.5), y(0) + 32, "share of steps shut") + words(x(0) + 4, y(1) + 4, "open", { anchor: "start" });
  shut.forEach((share, cell) => {
    marks += `<circle cx="${x(share).toFixed(1)}" cy="${y(open[cell]).toFixed(1)}" r="4" class="point" data-cell="${cell}"/>`;
  });
  marks += `<circle cx="${x(shut[chosen]).toFixed(1)}" cy="${y(open[chosen]).toFixed(1)}" r="7" class="ring"/>`;
  return `<figcaption>${title}</figcaption>${svg(left + side + 12, side + 50, `${title}: saturation of every cell`, marks)}`;
}

// How many values fall between powers of two.
function histogram(values, unit, label, width) {
  const most = Math.max(...values), bins = [];
  const first = Math.floor(Math.log2(Math.max(Math.min(...values), 0.5)));
  for (let low = first; 2 ** low <= most || !bins.length; low++)
    bins.push({ low: 2 ** low, count: values.filter((v) => Math.max(v, 0.5) >= 2 ** low && v < 2 ** (low + 1)).length });
  const tallest = Math.max(...bins.map((bin) => bin.count)), height = 180, column = (width - 60) / bins.length;
  let marks = line(30, height, width - 20, height);
  bins.forEach(({ low, count }, number) => {
    const x = 40 + number * column, size = (height - 24) * count / tallest;
    if (count) {
      marks += `<rect x="${(x + 2).toFixed(1)}" y="${(height - size).toFixed(1)}" width="${(column - 4).toFixed(1)}" `
        + `height="${size.toFixed(1)}" rx="2" class="column"/>`;
      marks += words(x + column / 2, height - size - 6, count, { kind: "strong" });
    }
    marks += words(x, height + 16, low < 1 ? low.toFixed(1) : low);
  });
  marks += words(40 + bins.length * column, height + 16, 2 * bins[bins.length - 1].low);
  marks += words(width / 2, height + 36, unit);
  return svg(width, height + 44, label, marks);
}

// Curves [{name, points: [[x, y]], kind}] over steps.
function curves(all, xName, yName, label, width) {
  const height = 240, left = 44, points = all.flatMap((curve) => curve.points);
  const mostX = Math.max(...points.map((p) => p[0]), 1);
  const ys = points.map((p) => p[1]), low = Math.min(...ys), high = Math.max(...ys), span = high - low || 1;
  const x = (v) => left + (width - left - 90) * v / mostX, y = (v) => 28 + (height - 36) * (1 - (v - low) / span);
  let marks = line(left, y(low), width - 90, y(low));
  for (let k = 0; k <= 4; k++) {
    const value = low + span * k / 4;
    marks += words(left - 8, y(value) + 4, value.toFixed(2), { anchor: "end" });
    marks += words(x(mostX * k / 4), y(low) + 18, Math.round(mostX * k / 4).toLocaleString("en"));
  }
  marks += words(x(mostX / 2), y(low) + 36, xName) + words(0, 12, yName, { anchor: "start" });
  let free = -Infinity;
  for (const { name, points: own, kind } of [...all].sort((a, b) => y(a.points.at(-1)[1]) - y(b.points.at(-1)[1]))) {
    marks += path(own.map(([a, b]) => [x(a), y(b)]), kind);
    free = Math.max(free + 16, y(own.at(-1)[1]) + 4);
    marks += words(width - 84, free, name, { anchor: "start", kind: "strong" });
  }
  return svg(width, height + 44, label, marks);
}

// Items [{name, share, text, kind, pick}] as bars in a list.
function fillBars(list, items) {
  list.replaceChildren(...items.map(({ name, share, text, kind = "", pick = null }) => element("li", { class: kind },
    pick ? element("button", { type: "button", onclick: pick }, name) : element("span", { class: "symbol" }, name),
    element("span", { class: "bar", style: `width:${(100 * share).toFixed(2)}%` }),
    element("span", { class: "share" }, text))));
}
