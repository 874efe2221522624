// The model: 8-bit weights back to numbers, one step of an LSTM, and the gradient back along a text.
// The equations are those of lstmfast.reference; gates are in the order input, forget, candidate, output.
"use strict";

function bytesOf(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}
const floatsOf = (text) => new Float32Array(bytesOf(text).buffer);
const wordsOf = (text) => new Uint16Array(bytesOf(text).buffer);

const sigmoid = (x) => 1 / (1 + Math.exp(-x));

// A kernel [rows, columns], row by row.
class Matrix {
  constructor({ shape, axis, values, scales }) {
    [this.rows, this.columns] = shape;
    const integers = new Int8Array(bytesOf(values).buffer);
    const factors = floatsOf(scales);
    this.values = Float32Array.from(integers, (integer, place) =>
      integer * factors[axis === 1 ? Math.floor(place / this.columns) : place % this.columns]);
  }

  row(index) {
    return this.values.subarray(index * this.columns, (index + 1) * this.columns);
  }

  // out += x · matrix
  addProduct(x, out) {
    for (let r = 0; r < this.rows; r++) {
      const factor = x[r], row = this.row(r);
      if (factor !== 0) for (let j = 0; j < out.length; j++) out[j] += factor * row[j];
    }
  }

  // matrix · d, the gradient by x
  back(d) {
    const out = new Float32Array(this.rows);
    for (let r = 0; r < this.rows; r++) {
      const row = this.row(r);
      let sum = 0;
      for (let j = 0; j < d.length; j++) sum += row[j] * d[j];
      out[r] = sum;
    }
    return out;
  }
}

// A state of one layer: h [output size], c [H], and the gates [4 · H] that made it.
class Layer {
  constructor(data, cell) {
    this.size = data.hidden_size;
    this.outputs = data.output_size;
    this.input = new Matrix(data.input_kernel);
    this.recurrent = new Matrix(data.recurrent_kernel);
    this.projection = data.projection && new Matrix(data.projection);
    this.bias = floatsOf(data.bias);
    this.peepholes = data.peepholes && floatsOf(data.peepholes);
    this.initial = data.initial_h && { h: floatsOf(data.initial_h), c: floatsOf(data.initial_c) };
    this.cell = cell;
  }

  start() {
    const { h, c } = this.initial || { h: new Float32Array(this.outputs), c: new Float32Array(this.size) };
    return { h, c, gates: new Float32Array(4 * this.size) };
  }

  // x: a vector, or the number of a one-hot symbol, whose product is a row of the kernel.
  step(x, before) {
    const H = this.size, { cell, peepholes } = this;
    const z = Float32Array.from(this.bias);
    if (typeof x === "number") {
      const row = this.input.row(x);
      for (let j = 0; j < z.length; j++) z[j] += row[j];
    } else {
      this.input.addProduct(x, z);
    }
    this.recurrent.addProduct(before.h, z);
    const c = new Float32Array(H), m = new Float32Array(H);
    for (let j = 0; j < H; j++) {
      const old = before.c[j];
      const i = sigmoid(z[j] + (peepholes ? peepholes[j] * old : 0));
      const f = cell.coupled_gates ? 1 - i
        : sigmoid(z[H + j] + cell.forget_bias + (peepholes ? peepholes[H + j] * old : 0));
      const g = Math.tanh(z[2 * H + j]);
      c[j] = clipped(f * old + i * g, cell.cell_clip);
      const o = sigmoid(z[3 * H + j] + (peepholes ? peepholes[2 * H + j] * c[j] : 0));
      m[j] = o * Math.tanh(c[j]);
      z[j] = i;
      z[H + j] = f;
      z[2 * H + j] = g;
      z[3 * H + j] = o;
    }
    let h = m;
    if (this.projection) {
      h = new Float32Array(this.outputs);
      this.projection.addProduct(m, h);
    }
    return { h, c, gates: z };
  }

  // From the gradients by a step's h and c: those by its input, and by the state before it.
  stepBack(state, before, dH, dC) {
    const H = this.size, { cell, peepholes } = this, { gates, c } = state;
    const dM = this.projection ? this.projection.back(dH) : dH;
    const dZ = new Float32Array(4 * H), dBefore = new Float32Array(H);
    for (let j = 0; j < H; j++) {
      const i = gates[j], f = gates[H + j], g = gates[2 * H + j], o = gates[3 * H + j];
      const shown = Math.tanh(c[j]), old = before.c[j];
      dZ[3 * H + j] = dM[j] * shown * o * (1 - o);
      let d = dC[j] + dM[j] * o * (1 - shown * shown) + (peepholes ? dZ[3 * H + j] * peepholes[2 * H + j] : 0);
      if (cell.cell_clip !== null && Math.abs(f * old + i * g) > cell.cell_clip) d = 0;
      dZ[j] = d * (cell.coupled_gates ? g - old : g) * i * (1 - i);
      dZ[H + j] = cell.coupled_gates ? 0 : d * old * f * (1 - f);
      dZ[2 * H + j] = d * i * (1 - g * g);
      dBefore[j] = d * f + (peepholes ? dZ[j] * peepholes[j] + dZ[H + j] * peepholes[H + j] : 0);
    }
    return { dX: this.input.back(dZ), dH: this.recurrent.back(dZ), dC: dBefore };
  }
}

function clipped(value, limit) {
  return limit === null ? value : Math.max(-limit, Math.min(limit, value));
}

// States are arrays, one for each layer.
class Network {
  constructor(data) {
    this.table = data.table && new Matrix(data.table);
    this.layers = data.layers.map((layer) => new Layer(layer, data.cell));
    this.output = new Matrix(data.output_kernel);
    this.outputBias = floatsOf(data.output_bias);
  }

  start() {
    return this.layers.map((layer) => layer.start());
  }

  step(states, id) {
    let x = this.table ? this.table.row(id) : id;
    return this.layers.map((layer, number) => {
      const state = layer.step(x, states[number]);
      x = state.h;
      return state;
    });
  }

  logits(states) {
    const out = Float32Array.from(this.outputBias);
    this.output.addProduct(states[states.length - 1].h, out);
    return out;
  }

  // How much the prediction of symbol `id` after states[end] hangs on each symbol read since states[first]: the size of
  // the gradient of its log-probability by what stands for the earlier symbol, oldest first.
  connectivity(states, first, end, id) {
    const d = probabilities(this.logits(states[end]), 1).map((p, symbol) => p - (symbol === id ? 1 : 0));
    const carried = this.layers.map((layer) => ({ dH: new Float32Array(layer.outputs), dC: new Float32Array(layer.size) }));
    let dAbove = this.output.back(d);
    const strengths = new Float32Array(end - first);
    for (let t = end; t > first; t--) {
      for (let number = this.layers.length - 1; number >= 0; number--) {
        const dH = dAbove ? carried[number].dH.map((value, j) => value + dAbove[j]) : carried[number].dH;
        carried[number] = this.layers[number].stepBack(states[t][number], states[t - 1][number], dH, carried[number].dC);
        dAbove = carried[number].dX;
      }
      strengths[t - 1 - first] = Math.hypot(...dAbove);
      dAbove = null;
    }
    return strengths;
  }
}

// At temperature 0 the likeliest symbol has all of it.
function probabilities(logits, temperature) {
  const most = Math.max(...logits);
  if (temperature === 0) {
    const best = logits.indexOf(most);
    return Float32Array.from(logits, (_, symbol) => (symbol === best ? 1 : 0));
  }
  const powers = Float32Array.from(logits, (logit) => Math.exp((logit - most) / temperature));
  const total = powers.reduce((sum, power) => sum + power, 0);
  return powers.map((power) => power / total);
}

function drawn(p) {
  let left = Math.random();
  for (let symbol = 0; symbol < p.length; symbol++) {
    left -= p[symbol];
    if (left < 0) return symbol;
  }
  return p.indexOf(Math.max(...p));
}

// ids to characters and back. Symbols of a run of bytes are bytes of UTF-8.
class Alphabet {
  constructor({ symbols }) {
    this.symbols = symbols.length ? symbols : null;
    this.ids = new Map(symbols.map((symbol, id) => [symbol, id]));
  }

  get size() {
    return this.symbols ? this.symbols.length : 256;
  }

  // The ids of a text, and the characters in it that have none.
  encode(text) {
    if (!this.symbols) return { ids: [...new TextEncoder().encode(text)], unknown: [] };
    const ids = [], unknown = [];
    for (const character of text) {
      const id = this.ids.get(character);
      if (id === undefined) unknown.push(character);
      else ids.push(id);
    }
    return { ids, unknown };
  }

  decode(ids) {
    return this.symbols ? ids.map((id) => this.symbols[id]).join("") : new TextDecoder().decode(Uint8Array.from(ids));
  }

  // A symbol as it is shown by itself.
  name(id) {
    return visible(this.symbols ? this.symbols[id] : id < 128 ? String.fromCharCode(id) : `\\x${id.toString(16)}`);
  }
}

const INVISIBLE = { " ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍", "\u00a0": "⍽" };
const visible = (character) => INVISIBLE[character] ?? (/^[\p{C}\p{Z}]$/u.test(character)
  ? `U+${character.codePointAt(0).toString(16).padStart(4, "0")}` : character);
