// The network, its pruning and its reconstruction: arrays in, arrays out, no page.
//
// A network is a list of layers {kernel, bias, inputs, units}; a kernel is a Float32Array of
// shape (inputs, units), row by row, as Keras stores it. The last layer is the output layer.
"use strict";

// ---- answers

/** Sums of a layer, before its activation: x · kernel + bias, shape (count, units). */
function sums(layer, x, count) {
  const { kernel, bias, inputs, units } = layer;
  const add = addTo(kernel, units);
  const y = new Float32Array(count * units);
  const out = new Float64Array(units); // of one row; float32 would be converted at each sum
  const at = new Int32Array(inputs); // where an input is not zero
  for (let row = 0; row < count; row++) {
    const one = x.subarray(row * inputs, (row + 1) * inputs);
    let speaking = 0;
    for (let i = 0; i < inputs; i++) if (one[i] !== 0) at[speaking++] = i;
    out.set(bias);
    add(out, one, at, speaking);
    y.set(out, row * units);
  }
  return y;
}

/** A function that adds the products of one row: of few weights, only those that are not zero. */
function addTo(kernel, units) {
  let nonzero = 0;
  for (let place = 0; place < kernel.length; place++) if (kernel[place] !== 0) nonzero++;
  return nonzero < 0.3 * kernel.length ? sparseAdd(kernel, units, nonzero) : denseAdd(kernel, units);
}

function denseAdd(kernel, units) {
  const w = new Float64Array(kernel);
  return (out, x, at, speaking) => {
    let k = 0;
    for (; k + 4 <= speaking; k += 4) { // four inputs at a time: a quarter of the stores
      const i0 = at[k], i1 = at[k + 1], i2 = at[k + 2], i3 = at[k + 3];
      const x0 = x[i0], x1 = x[i1], x2 = x[i2], x3 = x[i3];
      const k0 = i0 * units, k1 = i1 * units, k2 = i2 * units, k3 = i3 * units;
      for (let j = 0; j < units; j++) {
        out[j] += x0 * w[k0 + j] + x1 * w[k1 + j] + x2 * w[k2 + j] + x3 * w[k3 + j];
      }
    }
    for (; k < speaking; k++) {
      const xi = x[at[k]];
      const start = at[k] * units;
      for (let j = 0; j < units; j++) out[j] += xi * w[start + j];
    }
  };
}

/** Of compressed rows: weights and their columns, and where each row starts among them. */
function sparseAdd(kernel, units, nonzero) {
  const inputs = kernel.length / units;
  const w = new Float64Array(nonzero);
  const column = new Int32Array(nonzero);
  const start = new Int32Array(inputs + 1);
  let n = 0;
  for (let i = 0; i < inputs; i++) {
    for (let j = 0; j < units; j++) {
      const weight = kernel[i * units + j];
      if (weight === 0) continue;
      column[n] = j;
      w[n++] = weight;
    }
    start[i + 1] = n;
  }
  return (out, x, at, speaking) => {
    for (let k = 0; k < speaking; k++) {
      const xi = x[at[k]];
      const end = start[at[k] + 1];
      for (let n = start[at[k]]; n < end; n++) out[column[n]] += xi * w[n];
    }
  };
}

function relu(y) {
  for (let i = 0; i < y.length; i++) if (y[i] < 0) y[i] = 0;
  return y;
}

function softmax(y, classes) {
  for (let start = 0; start < y.length; start += classes) {
    const row = y.subarray(start, start + classes);
    const most = Math.max(...row);
    let total = 0;
    for (let j = 0; j < classes; j++) total += row[j] = Math.exp(row[j] - most);
    for (let j = 0; j < classes; j++) row[j] /= total;
  }
  return y;
}

/** Probabilities, shape (count, classes), for images x of shape (count, pixels) in [0, 1]. */
function probabilities(layers, x, count) {
  for (const layer of layers.slice(0, -1)) x = relu(sums(layer, x, count));
  const output = layers.at(-1);
  return softmax(sums(output, x, count), output.units);
}

/** The class of the highest probability of each row. */
function answers(y, classes) {
  const found = new Uint8Array(y.length / classes);
  for (let row = 0; row < found.length; row++) {
    for (let j = 1; j < classes; j++) {
      if (y[row * classes + j] > y[row * classes + found[row]]) found[row] = j;
    }
  }
  return found;
}

// ---- which weights or units go

/** round(sparsity · size), halves to the even number; as keras_pruning counts. */
function numPruned(size, sparsity) {
  const wanted = sparsity * size;
  const rounded = Math.round(wanted);
  return wanted % 1 === 0.5 && rounded % 2 === 1 ? rounded - 1 : rounded;
}

/** Positions from the lowest score to the highest, the first of equal ones first. */
function ranking(scores) {
  return Uint32Array.from(scores.keys()).sort((a, b) => scores[a] - scores[b] || a - b);
}

/** Euclidean norms of the columns of a kernel. */
function unitNorms({ kernel, units }) {
  const squares = new Float64Array(units);
  kernel.forEach((w, place) => (squares[place % units] += w * w));
  return squares.map(Math.sqrt);
}

/** Random numbers in [0, 1), the same for the same seed (mulberry32). */
function randomNumbers(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** The places of a kernel in random order, those of zeros first. */
function shuffledPlaces(kernel, random) {
  const places = Uint32Array.from(kernel.keys());
  for (let last = places.length - 1; last > 0; last--) {
    const other = Math.floor(random() * (last + 1));
    [places[last], places[other]] = [places[other], places[last]];
  }
  const zeros = places.filter((place) => kernel[place] === 0);
  const others = places.filter((place) => kernel[place] !== 0);
  places.set(zeros);
  places.set(others, zeros.length);
  return places;
}

/** The order in which a method takes from each hidden layer; the output layer is spared. */
function removalOrders(layers, method) {
  const random = randomNumbers(1);
  const orderOf = {
    weights: ({ kernel }) => ranking(kernel.map(Math.abs)),
    units: (layer) => ranking(unitNorms(layer)),
    random: ({ kernel }) => shuffledPlaces(kernel, random),
  }[method];
  return layers.slice(0, -1).map(orderOf);
}

/** The network without `sparsity`, at most 0.99, of the weights or units of each hidden layer. */
function prune(layers, method, orders, sparsity) {
  return layers.map((layer, l) => {
    if (l >= orders.length) return layer;
    const { inputs, units } = layer;
    const [kernel, bias] = [layer.kernel.slice(), layer.bias.slice()];
    const count = numPruned(orders[l].length, sparsity);
    for (const place of orders[l].subarray(0, count)) {
      if (method !== "units") {
        kernel[place] = 0;
        continue;
      }
      for (let i = 0; i < inputs; i++) kernel[i * units + place] = 0;
      bias[place] = 0; // so that the unit sends nothing
    }
    return { inputs, units, kernel, bias };
  });
}

/**
 * A mask a kernel: 1 where a weight is left. A unit without weights can be cut out, and with it
 * the weights by which the next layer hears it.
 */
function masksOf(layers, method) {
  let heard = null; // which inputs are left; all of them in the first layer
  return layers.map(({ kernel, bias, inputs, units }, l) => {
    const mask = new Uint8Array(kernel.length);
    for (let place = 0; place < mask.length; place++) if (kernel[place] !== 0) mask[place] = 1;
    if (method !== "units") return mask;
    const left = unitsLeft(mask, units);
    for (let j = 0; j < units; j++) if (bias[j] !== 0 || l === layers.length - 1) left[j] = 1;
    for (let i = 0; i < inputs; i++) {
      for (let j = 0; j < units; j++) mask[i * units + j] = left[j] & (heard ? heard[i] : 1);
    }
    heard = left;
    return mask;
  });
}

/**
 * What the network costs: one multiplication for each weight that is left, and float32 numbers of
 * four bytes. Where units went, the numbers left after cutting them out; where single weights
 * went, those that are not zero and, in hidden layers, a bit a weight to tell which; at most all.
 */
function costs(layers, masks, method) {
  const multiplications = masks.reduce((total, mask) => total + countOnes(mask), 0);
  const biases = layers.reduce((total, { bias }) => total + bias.length, 0);
  const all = layers.reduce((total, { kernel }) => total + kernel.length, biases);
  if (method === "units") {
    const kept = layers.reduce((n, { units }, l) => n + countOnes(unitsLeft(masks[l], units)), 0);
    return { multiplications, bytes: 4 * (multiplications + kept) };
  }
  const bits = layers.slice(0, -1).reduce((total, { kernel }) => total + kernel.length, 0);
  const sparse = 4 * (multiplications + biases) + Math.ceil(bits / 8);
  return { multiplications, bytes: Math.min(4 * all, sparse) };
}

function countOnes(mask) {
  let count = 0;
  for (let i = 0; i < mask.length; i++) count += mask[i];
  return count;
}

/** 1 for each unit of which a weight is left. */
function unitsLeft(mask, units) {
  const left = new Uint8Array(units);
  for (let start = 0; start < mask.length; start += units) {
    for (let j = 0; j < units; j++) left[j] |= mask[start + j];
  }
  return left;
}

// ---- reconstruction

/**
 * The pruned network with what is left of each layer refitted, by least squares, to the sums that
 * layer had in the original; layer after layer, each on what the refitted ones before it send.
 * As keras_pruning.reconstruct: no labels, and zeros stay zero.
 *
 * `original` is what `listen` returns. `pause(done)` is awaited now and then with the share that
 * is done; if it gives true, the work is no longer wanted and null is returned.
 */
async function reconstruct(pruned, original, pause, damping = 0.01) {
  const { count, heard, wanted, first } = original;
  const refitted = [];
  let x = heard;
  for (const [l, layer] of pruned.entries()) {
    const error = sums(layer, x, count);
    for (let i = 0; i < error.length; i++) error[i] = wanted[l][i] - error[i];
    const system = l === 0 ? first : normalSystem(x, count, layer.inputs, damping);
    const cross = products(system.columns, error, count, layer.units);
    const weights = withBias(layer);
    const step = await ridgeStep(system, cross, weights, layer.units, (share) =>
      pause((l + share) / pruned.length),
    );
    if (step === null) return null;
    for (let i = 0; i < step.length; i++) {
      const changed = Math.fround(weights[i] + step[i]);
      if (changed !== 0 && Number.isFinite(changed)) weights[i] = changed; // no new zeros
    }
    const end = layer.kernel.length;
    refitted.push({ ...layer, kernel: weights.slice(0, end), bias: weights.slice(end) });
    x = relu(sums(refitted[l], x, count));
  }
  return refitted;
}

/** What a reconstruction needs of the dense network: the sums of its layers for images x. */
function listen(layers, x, count, damping = 0.01) {
  const wanted = [];
  let sent = x;
  for (const layer of layers) {
    wanted.push(sums(layer, sent, count));
    sent = relu(wanted.at(-1).slice());
  }
  return { count, heard: x, wanted, first: normalSystem(x, count, layers[0].inputs, damping) };
}

/** Kernel and bias in one array: a bias is the weight of one input more, which is always 1. */
function withBias({ kernel, bias }) {
  const weights = new Float32Array(kernel.length + bias.length);
  weights.set(kernel);
  weights.set(bias, kernel.length);
  return weights;
}

/**
 * The matrix of the normal equations, X^T X over its mean diagonal plus `damping`, of the inputs
 * that ever speak: {live, matrix, scale}, the columns of X, and room for the matrix's inverse,
 * computed when first needed. X are the inputs and, for the bias, one that is always 1.
 */
function normalSystem(x, count, inputs, damping) {
  const features = inputs + 1;
  const gram = new Float64Array(features * features);
  const at = new Int32Array(features);
  for (let row = 0; row < count; row++) {
    const speaking = speakingInputs(x, row, inputs, at);
    for (let a = 0; a < speaking; a++) {
      const xa = at[a] < inputs ? x[row * inputs + at[a]] : 1;
      const start = at[a] * features;
      for (let b = 0; b <= a; b++) {
        gram[start + at[b]] += xa * (at[b] < inputs ? x[row * inputs + at[b]] : 1);
      }
    }
  }
  let scale = 0;
  const live = [];
  for (let i = 0; i < features; i++) {
    const square = gram[i * features + i];
    scale += square / features;
    if (square > 0) live.push(i);
  }
  const size = live.length;
  const matrix = new Float64Array(size * size);
  for (let a = 0; a < size; a++) {
    for (let b = 0; b <= a; b++) {
      const value = gram[live[a] * features + live[b]] / scale + (a === b ? damping : 0);
      matrix[a * size + b] = matrix[b * size + a] = value;
    }
  }
  return { live, matrix, scale, columns: columnsOf(x, count, inputs), inverse: null };
}

/** Writes the inputs of a row that are not zero into `at`, the bias last; returns how many. */
function speakingInputs(x, row, inputs, at) {
  let speaking = 0;
  for (let i = 0; i < inputs; i++) if (x[row * inputs + i] !== 0) at[speaking++] = i;
  at[speaking++] = inputs;
  return speaking;
}

/** The inputs of `count` rows column by column, and for the bias one that is always 1. */
function columnsOf(x, count, inputs) {
  const columns = new Float32Array((inputs + 1) * count).fill(1);
  for (let row = 0; row < count; row++) {
    for (let i = 0; i < inputs; i++) columns[i * count + row] = x[row * inputs + i];
  }
  return columns;
}

/** X^T E, shape (inputs + 1, units): the sums of a layer whose kernel is E. */
function products(columns, error, count, units) {
  const layer = { kernel: error, bias: new Float32Array(units), inputs: count, units };
  return sums(layer, columns, columns.length / count);
}

/**
 * The change D of the weights that minimises |E - X D|² + λ |D|² for each unit over the weights it
 * keeps. Units that keep the same weights share a factor. Where a unit loses fewer weights than it
 * keeps, the system of the lost ones, P, is solved: with B the inverse of the whole matrix,
 * D = B c - B_P (B_PP)^-1 (B c)_P (Hassibi & Stork 1993).
 */
async function ridgeStep(system, cross, weights, units, pause) {
  const { live, matrix, scale } = system;
  const size = live.length;
  const step = new Float64Array(weights.length);
  const groups = unitsByPattern(live, weights, units);
  let done = 0;
  for (const { kept, lost, members } of groups) {
    if (await pause(done++ / groups.length)) return null;
    if (kept.length <= lost.length) {
      const factor = cholesky(submatrix(matrix, size, kept), kept.length);
      for (const j of members) {
        const goal = Float64Array.from(kept, (a) => cross[live[a] * units + j] / scale);
        solve(factor, goal).forEach((d, a) => (step[live[kept[a]] * units + j] = d));
      }
      continue;
    }
    system.inverse ??= inverse(matrix, size);
    const factor = cholesky(submatrix(system.inverse, size, lost), lost.length);
    for (const j of members) {
      const goal = Float64Array.from(live, (i) => cross[i * units + j] / scale);
      const change = timesSymmetric(system.inverse, goal);
      const back = solve(factor, Float64Array.from(lost, (a) => change[a]));
      lost.forEach((a, k) => subtractRow(change, system.inverse, a, back[k]));
      for (const a of kept) step[live[a] * units + j] = change[a];
    }
  }
  return step;
}

/** Groups of units that keep the same weights: positions in `live` that are kept, and lost. */
function unitsByPattern(live, weights, units) {
  const groups = new Map();
  for (let j = 0; j < units; j++) {
    const [kept, lost] = [[], []];
    live.forEach((i, a) => (weights[i * units + j] !== 0 ? kept : lost).push(a));
    if (!kept.length) continue;
    const pattern = kept.join();
    if (!groups.has(pattern)) groups.set(pattern, { kept, lost, members: [] });
    groups.get(pattern).members.push(j);
  }
  return [...groups.values()];
}

function submatrix(matrix, size, places) {
  const part = new Float64Array(places.length ** 2);
  let at = 0;
  for (const a of places) for (const b of places) part[at++] = matrix[a * size + b];
  return part;
}

/** The upper factor U of a positive definite matrix A = U^T U, in the upper half of A. */
function cholesky(matrix, size) {
  for (let i = 0; i < size; i++) {
    const row = i * size;
    let k = 0;
    for (; k + 4 <= i; k += 4) { // four rows at a time: a quarter of the stores
      const k0 = k * size, k1 = k0 + size, k2 = k1 + size, k3 = k2 + size;
      const u0 = matrix[k0 + i], u1 = matrix[k1 + i], u2 = matrix[k2 + i], u3 = matrix[k3 + i];
      for (let j = i; j < size; j++) {
        matrix[row + j] -=
          u0 * matrix[k0 + j] + u1 * matrix[k1 + j] + u2 * matrix[k2 + j] + u3 * matrix[k3 + j];
      }
    }
    for (; k < i; k++) {
      const u = matrix[k * size + i];
      for (let j = i; j < size; j++) matrix[row + j] -= u * matrix[k * size + j];
    }
    const root = Math.sqrt(matrix[row + i]);
    for (let j = i; j < size; j++) matrix[row + j] /= root;
  }
  return matrix;
}

/** The solution d of U^T U d = goal, in the place of the goal. */
function solve(factor, goal) {
  const size = goal.length;
  for (let i = 0; i < size; i++) {
    goal[i] /= factor[i * size + i];
    for (let j = i + 1; j < size; j++) goal[j] -= factor[i * size + j] * goal[i];
  }
  for (let i = size - 1; i >= 0; i--) {
    let value = goal[i];
    for (let j = i + 1; j < size; j++) value -= factor[i * size + j] * goal[j];
    goal[i] = value / factor[i * size + i];
  }
  return goal;
}

function inverse(matrix, size) {
  const factor = cholesky(matrix.slice(), size);
  const result = new Float64Array(size * size);
  for (let i = 0; i < size; i++) {
    const column = result.subarray(i * size, (i + 1) * size);
    column[i] = 1;
    solve(factor, column);
  }
  return result;
}

function timesSymmetric(matrix, vector) {
  const product = new Float64Array(vector.length);
  vector.forEach((value, a) => subtractRow(product, matrix, a, -value));
  return product;
}

function subtractRow(vector, matrix, a, factor) {
  const start = a * vector.length;
  for (let b = 0; b < vector.length; b++) vector[b] -= factor * matrix[start + b];
}

// ---- in a worker

/**
 * Works for a page: gets {layers, images, calibration} and then jobs {setting, pruned, reconstruct},
 * of which only the newest matters. For a job it sends {setting, found}, the answers to the images;
 * if it is to reconstruct, now and then {setting, done}, and at the end {setting, refitted, found}.
 * It knows no labels.
 */
function serve() {
  let given, original; // `original` is what a reconstruction needs, computed when first needed
  let newest = null;
  let isWorking = false;
  const nextTask = () => new Promise((resolve) => setTimeout(resolve)); // lets newer jobs in
  const foundBy = (layers) => {
    const { images } = given;
    const classes = layers.at(-1).units;
    return answers(probabilities(layers, images, images.length / layers[0].inputs), classes);
  };

  onmessage = ({ data }) => {
    if (data.layers) {
      given = data;
      return;
    }
    newest = data;
    if (!isWorking) work();
  };

  async function work() {
    isWorking = true;
    for (let job = null; job !== newest; ) {
      await nextTask();
      job = newest;
      postMessage({ setting: job.setting, found: foundBy(job.pruned) });
      if (job.reconstruct) await refit(job);
    }
    isWorking = false;
  }

  async function refit(job) {
    const { layers, calibration } = given;
    original ??= listen(layers, calibration, calibration.length / layers[0].inputs);
    let last = performance.now();
    const refitted = await reconstruct(job.pruned, original, async (done) => {
      if (performance.now() - last < 40) return false; // milliseconds
      postMessage({ setting: job.setting, done });
      await nextTask();
      last = performance.now();
      return job !== newest;
    });
    if (refitted) postMessage({ setting: job.setting, refitted, found: foundBy(refitted) });
  }
}
