// The page: what happens when one types, points, clicks and selects. Data is what lstmfast computed; `network` runs here.

const DATA = JSON.parse(byId("data").textContent);
const GATES = ["input gate", "forget gate", "candidate", "output gate"];
const network = new Network(DATA.network);
const alphabet = new Alphabet(DATA.vocabulary);
const many = network.layers.length > 1;
const passage = {
  ids: wordsOf(DATA.ids), characters: DATA.characters, bits: floatsOf(DATA.bits),
  states: null, // after each symbol, states[0] after the beginning; null until the model has read them
};
const guesses = {
  count: DATA.guesses.count, ids: wordsOf(DATA.guesses.ids), p: floatsOf(DATA.guesses.p),
  rank: wordsOf(DATA.guesses.rank), true: floatsOf(DATA.guesses.true),
};
// What the whole page looks at: a cell, and a place in the text.
const chosen = { layer: 0, cell: 0, place: 0 };

const cellName = (layer, cell) => (many ? `layer ${layer + 1}, cell ${cell}` : `cell ${cell}`);
const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / Math.max(values.length, 1);
const quoted = (text) => `“${[...text].map(visible).join("")}”`;

// --- type and watch

const typed = { ids: [], states: [network.step(network.start(), DATA.beginning)], shown: 0, timer: 0 };
const KINDS = [["Input gate", 0], ["Forget gate", 1], ["Output gate", 3], ["Candidate", 2], ["Memory, tanh(c)", "c"], ["Output, h", "h"]];

function setTyped(ids) {
  let same = 0;
  while (same < ids.length && ids[same] === typed.ids[same]) same++;
  typed.ids = ids;
  typed.states.length = same + 1;
  for (const id of ids.slice(same)) typed.states.push(network.step(typed.states[typed.states.length - 1], id));
  showTyped();
}

function showTyped() {
  const states = typed.states[typed.states.length - 1];
  const p = probabilities(network.logits(states), 1);
  const best = [...p.keys()].sort((a, b) => p[b] - p[a]).slice(0, 8);
  fillBars(byId("next"), best.map((id) => ({ name: alphabet.name(id), share: p[id] / p[best[0]], text: percent(p[id]) })));
  byId("states").querySelectorAll("canvas").forEach((canvas, number) => {
    const values = valuesOf(states[typed.shown], KINDS[number][1], network.layers[typed.shown].size);
    const columns = columnsFor(values.length);
    drawSquares(canvas, values, columns, {
      scale: 8, gap: 1, chosen: typed.shown === chosen.layer && KINDS[number][1] !== "h" ? chosen.cell : -1,
    });
  });
}

const columnsFor = (count) => Math.ceil(Math.sqrt(2 * count));

// Of one state: a gate (0 to 3), "c" as tanh(c), or "h".
function valuesOf(state, kind, size) {
  if (kind === "h") return state.h;
  return kind === "c" ? state.c.map(Math.tanh) : state.gates.subarray(kind * size, (kind + 1) * size);
}

function readTextarea() {
  stopWriting();
  const { ids, unknown } = alphabet.encode(byId("typed").value);
  byId("unknown").textContent = unknown.length
    ? `The model does not know ${[...new Set(unknown)].map((character) => `“${visible(character)}”`).join(", ")} and skips it.` : "";
  setTyped(ids);
}

function writeOne() {
  const p = probabilities(network.logits(typed.states[typed.states.length - 1]), Number(byId("temperature").value));
  const ids = [...typed.ids, drawn(p)];
  byId("typed").value = alphabet.decode(ids);
  byId("typed").scrollTop = byId("typed").scrollHeight;
  setTyped(ids);
}

function stopWriting() {
  clearInterval(typed.timer);
  typed.timer = 0;
  byId("write").textContent = "Write on";
}

function setUpTyping() {
  byId("typed").addEventListener("input", readTextarea);
  byId("write").addEventListener("click", () => {
    if (typed.timer) return stopWriting();
    typed.timer = setInterval(writeOne, 60);
    byId("write").textContent = "Stop";
  });
  byId("clear").addEventListener("click", () => {
    byId("typed").value = "";
    readTextarea();
  });
  byId("temperature").addEventListener("input", (event) => {
    byId("temperature-value").textContent = Number(event.target.value).toFixed(2).replace(/0$/, "");
  });
  KINDS.forEach(([name, kind]) => {
    const canvas = element("canvas", { role: "img", "aria-label": `${name} of every cell` });
    canvas.addEventListener("click", (event) => {
      const count = network.layers[typed.shown].size;
      if (kind === "h" && network.layers[typed.shown].projection) return;
      const box = canvas.getBoundingClientRect(), columns = columnsFor(count);
      const cell = Math.floor((event.clientY - box.top) / box.height * Math.ceil(count / columns)) * columns
        + Math.floor((event.clientX - box.left) / box.width * columns);
      if (cell < count) choose({ layer: typed.shown, cell });
    });
    byId("states").append(element("figure", {}, element("figcaption", {}, name), canvas));
  });
  if (many) {
    byId("layers").append(...network.layers.map((_, layer) => element("button", {
      type: "button", "aria-pressed": layer === 0, onclick: () => showLayer(layer) }, `Layer ${layer + 1}`)));
  }
  const first = passage.characters.slice(0, 40).join("").split("\n")[0];
  byId("typed").value = first;
  readTextarea();
}

function showLayer(layer) {
  typed.shown = layer;
  byId("layers").querySelectorAll("button").forEach((button, number) =>
    button.setAttribute("aria-pressed", String(number === layer)));
  showTyped();
}

// --- the text

let spans = [];

function setUpText() {
  spans = passage.characters.map((character, place) => element("span", { "data-place": place }, character));
  byId("text").append(...spans);
  byId("passage-note").textContent = DATA.notes.join(" ");
  const placeOf = (event) => event.target.dataset.place;
  for (const kind of ["mouseover", "click"]) {
    byId("text").addEventListener(kind, (event) => {
      if (placeOf(event) !== undefined && document.getSelection().isCollapsed)
        showPlace(Number(placeOf(event)), kind === "click");
    });
  }
  byId("text").addEventListener("mouseleave", () => showPlace(chosen.place));
  byId("text").addEventListener("keydown", (event) => {
    const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 20, ArrowUp: -20, Home: -Infinity, End: Infinity };
    if (!(event.key in moves)) return;
    event.preventDefault();
    goTo(Math.max(0, Math.min(spans.length - 1, chosen.place + moves[event.key])));
  });
  byId("colour").addEventListener("change", colourText);
  byId("layer").max = network.layers.length;
  for (const name of ["layer", "cell"]) {
    byId(name).addEventListener("change", () => {
      const layer = Math.max(0, Math.min(network.layers.length, Number(byId("layer").value)) - 1);
      choose({ layer, cell: Math.max(0, Math.min(network.layers[layer].size - 1, Number(byId("cell").value))) });
    });
  }
  byId("layer").hidden = document.querySelector("label[for=layer]").hidden = !many;
  document.addEventListener("selectionchange", showSelection);
}

function goTo(place, isScrolled = true) {
  showPlace(place, true);
  if (isScrolled) spans[place].scrollIntoView({ block: "nearest" });
}

// What the model expected at a place; pinned: the rest of the page goes there too.
function showPlace(place, isPinned = false) {
  if (isPinned) {
    spans[chosen.place].classList.remove("here");
    chosen.place = place;
    spans[place].classList.add("here");
    drawGates();
    drawConnectivity(place);
  }
  const { count } = guesses, id = passage.ids[place];
  const items = [...Array(count).keys()].map((number) => place * count + number);
  const list = element("ol", { class: "bars" });
  fillBars(list, items.map((at) => ({
    name: alphabet.name(guesses.ids[at]), share: guesses.p[at] / guesses.p[place * count], text: percent(guesses.p[at]),
    kind: guesses.ids[at] === id ? "positive" : "",
  })));
  byId("place").replaceChildren(
    element("p", {}, element("span", { class: "symbol-read" }, alphabet.name(id)),
      ` came with ${passage.bits[place].toFixed(2)} bits of surprise: guess number ${guesses.rank[place]}, ${percent(guesses.true[place])}.`),
    element("p", { class: "note" }, "Expected here:"), list);
}

// Of a cell along the passage: a gate (0 to 3) or "c" as tanh(c).
function alongText(layer, cell, kind) {
  const { size } = network.layers[layer];
  return Float32Array.from(passage.states.slice(1), (states) => (kind === "c" ? Math.tanh(states[layer].c[cell])
    : states[layer].gates[kind * size + cell]));
}

function colourText() {
  const kind = byId("colour").value, scale = byId("scale");
  byId("cell-choice").hidden = kind === "bits";
  if (kind !== "bits" && !passage.states) return;
  const values = kind === "bits" ? passage.bits.map((bits) => -Math.min(bits / 8, 1))
    : alongText(chosen.layer, chosen.cell, kind === "c" ? "c" : Number(kind));
  spans.forEach((span, place) => { span.style.backgroundColor = tint(values[place]); });
  const ends = { bits: ["0", "8 bits and more"], c: ["−1", "1"], 2: ["−1", "1"] }[kind] ?? ["0", "1"];
  const low = kind === "bits" || ends[0] === "0" ? 0 : -1, high = kind === "bits" ? -1 : 1;
  scale.replaceChildren(ends[0], element("i", {
    style: `background:linear-gradient(90deg, ${tint(low)}, ${low < 0 ? "transparent," : ""} ${tint(high)})` }), ends[1]);
}

function choose({ layer, cell }, isShown = false) {
  Object.assign(chosen, { layer, cell });
  byId("layer").value = layer + 1;
  byId("cell").value = cell;
  byId("cell").max = network.layers[layer].size - 1;
  document.querySelectorAll(".cell-name").forEach((node) => { node.textContent = cellName(layer, cell); });
  document.querySelectorAll("#cells tbody tr").forEach((row) =>
    row.classList.toggle("chosen", row.dataset.cell === `${layer} ${cell}`));
  if (isShown && byId("colour").value === "bits") byId("colour").value = "c";
  colourText();
  showTyped();
  drawGates();
  drawSaturation();
}

// --- cells for a selection

function selectedPlaces() {
  const selection = document.getSelection();
  if (selection.isCollapsed || !selection.rangeCount || !byId("text").contains(selection.anchorNode)) return null;
  const range = selection.getRangeAt(0);
  const places = spans.map((span, place) => (range.intersectsNode(span) ? place : -1)).filter((place) => place >= 0);
  return places.length ? [places[0], places[places.length - 1] + 1] : null;
}

let selected = "";

function showSelection() {
  const places = selectedPlaces();
  if (!places || !passage.states || String(places) === selected) return;
  selected = String(places);
  const [begin, end] = places;
  const chips = element("div", { class: "chips" }, ...cellsOn(begin, end).map(({ layer, cell, sign }) => element("button", {
    type: "button", onclick: () => { choose({ layer, cell }, true); showOthers(layer, cell, sign, begin, end); },
  }, cellName(layer, cell))));
  byId("selection").replaceChildren(element("p", {},
    `These cells differ most between ${quoted(passage.characters.slice(begin, end).join("").slice(0, 60))} and the rest of the text:`),
  chips, element("div", { id: "others" }));
  byId("selection").hidden = false;
}

// Cells by how far tanh(c) within [begin, end) is from the rest, in standard deviations.
function cellsOn(begin, end) {
  const found = [];
  network.layers.forEach(({ size }, layer) => {
    for (let cell = 0; cell < size; cell++) {
      const values = alongText(layer, cell, "c"), all = mean(values);
      const deviation = Math.sqrt(mean(values.map((value) => (value - all) ** 2)));
      const difference = mean(values.slice(begin, end)) - all;
      if (deviation > 1e-6) found.push({ layer, cell, sign: Math.sign(difference), z: Math.abs(difference) / deviation });
    }
  });
  return found.sort((a, b) => b.z - a.z).slice(0, 8);
}

// The longest other stretches where the cell is as it is in [begin, end).
function showOthers(layer, cell, sign, begin, end) {
  const values = alongText(layer, cell, "c").map((value) => sign * value);
  const least = mean(values.slice(begin, end)) * 0.8, runs = [];
  values.forEach((value, place) => {
    if (value < least || (place >= begin && place < end)) return;
    if (runs.length && runs[runs.length - 1][1] === place) runs[runs.length - 1][1]++;
    else runs.push([place, place + 1]);
  });
  const longest = runs.sort((a, b) => (b[1] - b[0]) - (a[1] - a[0])).slice(0, 6).sort((a, b) => a[0] - b[0]);
  spans.forEach((span) => span.classList.remove("like"));
  longest.forEach(([from, to]) => spans.slice(from, to).forEach((span) => span.classList.add("like")));
  byId("others").replaceChildren(element("p", {}, longest.length
    ? `Where ${cellName(layer, cell)} is like that too (underlined):` : `${cellName(layer, cell)} is like that nowhere else.`),
  element("div", { class: "chips" }, ...longest.map(([from, to]) => element("button", {
    type: "button", onclick: () => goTo(from) }, element("code", {}, quoted(passage.characters.slice(from, to).join("").slice(0, 30)))))));
}

// --- cells found

function setUpFound() {
  const shown = 12;
  byId("cells").tBodies[0].append(...DATA.found.map(({ layer, cell, track, r, chance }, number) => {
    const show = () => choose({ layer, cell }, true);
    return element("tr", { "data-cell": `${layer} ${cell}`, hidden: number >= shown, onclick: show },
      element("td", {}, element("button", { type: "button" }, cellName(layer, cell))),
      element("td", { title: DATA.tracks.find(({ name }) => name === track).about }, track),
      element("td", { class: "number" }, r.toFixed(2).replace("-", "−")),
      element("td", {}, element("span", { class: "meter" },
        element("b", { class: r < 0 ? "minus" : "", style: `width:${100 * Math.abs(r)}%` }),
        element("i", { style: `left:${100 * chance}%`, title: `chance: ${chance.toFixed(2)}` }))));
  }));
  byId("more").hidden = DATA.found.length <= shown;
  byId("more").addEventListener("click", () => {
    byId("cells").querySelectorAll("tr[hidden]").forEach((row) => { row.hidden = false; });
    byId("more").hidden = true;
  });
}

// --- gates

function drawGates() {
  const room = byId("over-time"), width = Math.max(280, room.clientWidth - 22);
  if (!passage.states) return;
  const count = Math.min(Math.floor((width - 80) / 10), passage.ids.length);
  const first = Math.max(0, Math.min(chosen.place - Math.floor(count * 0.6), passage.ids.length - count));
  const part = (kind) => alongText(chosen.layer, chosen.cell, kind).subarray(first, first + count);
  room.innerHTML = lanes([
    { name: "input", values: part(0), low: 0, high: 1 }, { name: "forget", values: part(1), low: 0, high: 1 },
    { name: "output", values: part(3), low: 0, high: 1 }, { name: "candidate", values: part(2), low: -1, high: 1 },
    { name: "tanh(c)", values: part("c"), low: -1, high: 1 },
  ], passage.characters.slice(first, first + count).map((character) => (character ? visible(character) : "·")),
  chosen.place - first, width);
  const life = floatsOf(DATA.half_lives[chosen.layer])[chosen.cell];
  byId("gates-note").textContent = `Along this text, half of what ${cellName(chosen.layer, chosen.cell)} holds is forgotten `
    + `after ${life < 1 ? "less than one character" : `${life.toFixed(life < 10 ? 1 : 0)} characters`}.`;
}

function drawSaturation() {
  const shares = floatsOf(DATA.saturation[chosen.layer]), { size } = network.layers[chosen.layer];
  byId("saturation").replaceChildren(...[0, 1, 3].map((gate) => {
    const of = (side) => Array.from({ length: size }, (_, cell) => shares[2 * (gate * size + cell) + side]);
    const figure = element("figure");
    figure.innerHTML = scatter(GATES[gate][0].toUpperCase() + GATES[gate].slice(1), of(0), of(1), chosen.cell);
    figure.addEventListener("click", (event) => {
      const { cell } = event.target.dataset;
      if (cell !== undefined) choose({ layer: chosen.layer, cell: Number(cell) });
    });
    return figure;
  }));
}

function drawHalfLives() {
  const lives = DATA.half_lives.flatMap((own) => [...floatsOf(own)]).sort((a, b) => a - b);
  const at = (share) => lives[Math.min(lives.length - 1, Math.floor(share * lives.length))];
  const room = byId("half-lives");
  room.innerHTML = histogram(lives, "half-life in characters", "Half-lives of all cells", roomIn(room));
  const rounded = (value) => (value < 10 ? value.toFixed(1) : Math.round(value));
  byId("half-lives-note").textContent = `Number of cells by how many characters it takes until half of their memory is `
    + `forgotten, by the product of their forget gates. Most of this model remembers ${rounded(at(0.1))} to `
    + `${rounded(at(0.9))} characters; the longest ${rounded(lives[lives.length - 1])}.`;
}

// --- causes

function setUpCauses() {
  const base = mean(passage.bits), items = DATA.knock_out.map((item) => ({ ...item, cost: item.bits - base }));
  items.sort((a, b) => b.cost - a.cost);
  const most = Math.max(...items.map(({ cost }) => Math.abs(cost)), 1e-9);
  const list = element("ol", { class: "bars" });
  fillBars(list, items.map(({ layer, cell, cost, found }) => ({
    name: cellName(layer, cell), share: Math.abs(cost) / most, kind: `${found ? "" : "other"} ${cost < 0 ? "minus" : ""}`,
    text: `${cost < 0 ? "−" : "+"}${Math.abs(cost).toFixed(4)}`, pick: () => choose({ layer, cell }, true),
  })));
  byId("knock-out").append(list);
  byId("knock-out-note").textContent = `Bits per character that are added when one cell is held at zero, to the `
    + `${base.toFixed(3)} of the whole model on this text. Full colour: cells found above; pale: others, to compare with. The model gets `
    + `worse without the upper ones, and better on this text without those below zero.`;
  byId("examples").append(...DATA.examples.map((place) => element("button", {
    type: "button", onclick: () => { goTo(place, false); } },
  element("code", {}, `…${passage.characters.slice(Math.max(place - 12, 0), place).map(visible).join("")}`,
    element("b", {}, visible(passage.characters[place] || "·"))))));
}

function drawConnectivity(place) {
  if (!passage.states) return;
  const first = Math.max(place + 1 - DATA.window, 0), strengths = network.connectivity(passage.states, first, place, passage.ids[place]);
  // strengths[k] is that of the symbol read at states[first + 1 + k], which is character first + k of the passage
  const most = Math.max(...strengths, 1e-30);
  byId("hangs").replaceChildren(...[...strengths].map((strength, k) => {
    const span = element("span", { title: `${percent(strength / most)} of the strongest` }, passage.characters[first + k]);
    span.style.backgroundColor = tint(strength / most);
    return span;
  }), element("span", { class: "here" }, passage.characters[place]));
  const total = strengths.reduce((sum, value) => sum + value, 0);
  const reach = strengths.reduce((sum, value, k) => sum + value * (strengths.length - k), 0) / Math.max(total, 1e-30);
  byId("hangs-note").textContent = `The framed character is predicted; the fuller the colour, the more its probability `
    + `hangs on that character. Mean distance: ${reach.toFixed(1)} characters. Choose another in the text above.`;
}

// --- the run

function setUpRun() {
  const { run } = DATA, room = byId("curve");
  const points = (key) => run.metrics.filter((entry) => key in entry).map((entry) => [entry.step, entry[key] / Math.LN2]);
  const all = [{ name: "training", points: points("loss"), kind: "main" },
    { name: "validation", points: points("valid_loss"), kind: "second" }].filter((curve) => curve.points.length > 1);
  if (all.length) {
    room.innerHTML = curves(all, "step", "bits per character", "Loss over the steps of training", roomIn(room));
    const last = run.metrics[run.metrics.length - 1], speeds = run.metrics.map((entry) => entry.chars_per_second).filter(Boolean);
    byId("curve-note").textContent = `Loss while it learnt, in bits per character, over ${last.step.toLocaleString("en")} steps`
      + (speeds.length ? `, at ${Math.round(mean(speeds) / 1000).toLocaleString("en")},000 characters a second on average.` : ".");
  } else {
    byId("curve-note").textContent = "There are no records of the training beside this checkpoint.";
  }
  const picked = [0, 1 / 3, 2 / 3, 1].map((share) => run.samples[Math.round(share * (run.samples.length - 1))]);
  byId("samples").append(...[...new Set(picked)].filter(Boolean).map(({ step, text }) => element("details", {},
    element("summary", {}, `What it wrote after ${step.toLocaleString("en")} steps`), element("pre", {}, text))));
  drawWeights();
  byId("settings").append(...Object.entries(run.settings).flatMap(([name, settings]) => [element("h3", {}, name),
    table(Object.entries(settings).map(([key, value]) => [key, typeof value === "string" ? value : JSON.stringify(value)]))]));
}

const table = (rows) => element("table", {}, ...rows.map((row) => element("tr", {}, ...row.map((text) => element("td", {}, text)))));

// The kernel of every layer, gate by gate: rows of the input above, those of the last output below.
function drawWeights() {
  byId("weights").replaceChildren(...network.layers.flatMap((layer, number) => GATES.map((name, gate) => {
    const values = new Float32Array((layer.input.rows + layer.recurrent.rows) * layer.size);
    values.set(inDeviations(layer.input, gate, layer.size));
    values.set(inDeviations(layer.recurrent, gate, layer.size), layer.input.rows * layer.size);
    const canvas = element("canvas", { role: "img", "aria-label": `Weights of the ${name}` });
    drawSquares(canvas, values.map((value) => value / 3), layer.size);
    return element("figure", {}, canvas, element("figcaption", {},
      `${many ? `Layer ${number + 1}, ` : ""}${name}: ${layer.input.rows} rows of the input above, ${layer.recurrent.rows} of h below`));
  })));
}

// The columns of a gate, in units of their standard deviation.
function inDeviations(matrix, gate, size) {
  const values = new Float32Array(matrix.rows * size);
  for (let r = 0; r < matrix.rows; r++) values.set(matrix.row(r).subarray(gate * size, (gate + 1) * size), r * size);
  const deviation = Math.sqrt(mean(values.map((value) => value * value))) || 1;
  return values.map((value) => value / deviation);
}

// --- start

function summarize() {
  const { run, rounding } = DATA, sizes = network.layers.map(({ size }) => size);
  const symbols = alphabet.symbols ? `${alphabet.size} characters` : "bytes";
  byId("summary").textContent = `An LSTM of ${sizes.length > 1 ? `${sizes.length} layers of ` : ""}${sizes[0]} cells that reads `
    + `${symbols}, ${run.parameters.toLocaleString("en")} parameters. On the text below it is surprised by `
    + `${mean(passage.bits).toFixed(3)} bits per ${alphabet.symbols ? "character" : "byte"}. Weights have 8 bits in this page; `
    + `with all of theirs it is surprised by ${rounding.bits.toFixed(3)}, and its first guess is the same in `
    + `${percent(rounding.same)} of places.`;
}

// The model reads the passage in pieces, so that the page stays alive meanwhile.
function readPassage(done) {
  const states = [network.step(network.start(), DATA.beginning)];
  (function piece() {
    const until = performance.now() + 25;
    while (states.length <= passage.ids.length && performance.now() < until)
      states.push(network.step(states[states.length - 1], passage.ids[states.length - 1]));
    if (states.length <= passage.ids.length) return setTimeout(piece);
    passage.states = states;
    done();
  })();
}

function drawAll() {
  drawGates();
  drawSaturation();
  drawHalfLives();
}

summarize();
setUpTyping();
setUpText();
setUpFound();
setUpCauses();
setUpRun();
const { layer, cell } = DATA.found[0] ?? { layer: 0, cell: 0 };
choose({ layer, cell });
drawHalfLives();
showPlace(0, true);
readPassage(() => {
  document.documentElement.dataset.ready = "true";
  choose(chosen);
  goTo(DATA.examples[0] ?? Math.min(60, spans.length - 1), false);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { showTyped(); drawWeights(); });
let resizing = 0;
addEventListener("resize", () => {
  clearTimeout(resizing);
  resizing = setTimeout(drawAll, 150);
});
