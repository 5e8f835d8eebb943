// The page around network.js: a digit and settings in, answers, numbers and pictures out.
"use strict";

const CLASSES = 10;
const SIDE = 28; // pixels of an image
const PIXELS = SIDE * SIDE;
const BOX = 20; // pixels within which MNIST fits a digit
const PEN = 2.4; // width of a stroke in such pixels
const TILES = 20; // of the first layer's units, in a row
const SHADES = 15; // of a colour, beside the palest

const byId = (id) => document.getElementById(id);
const make = (tag, parent, text = "") => {
  const element = parent.appendChild(document.createElement(tag));
  element.textContent = text;
  return element;
};

// ---- what is embedded

/** Arrays of the manifest by name: float16 becomes Float32Array, bytes stay bytes. */
async function readArrays() {
  const packed = Uint8Array.from(atob(byId("data").textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const bytes = await new Response(stream).arrayBuffer();
  const arrays = {};
  let start = 0;
  for (const { name, dtype, shape } of JSON.parse(byId("manifest").textContent)) {
    const size = shape.reduce((product, length) => product * length, 1);
    const width = dtype === "float16" ? 2 : 1; // bytes
    const part = bytes.slice(start, start + size * width);
    arrays[name] =
      dtype === "float16" ? Float32Array.from(new Uint16Array(part), fromFloat16) : new Uint8Array(part);
    start += size * width;
  }
  return arrays;
}

/** The number of 16 bits: sign, five of the exponent, ten of the fraction. */
function fromFloat16(bits) {
  const sign = bits >> 15 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = (bits & 1023) / 1024;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction);
}

function networkOf(arrays) {
  const layers = [];
  for (let l = 1; `kernel_${l}` in arrays; l++) {
    const [kernel, bias] = [arrays[`kernel_${l}`], arrays[`bias_${l}`]];
    layers.push({ kernel, bias, inputs: kernel.length / bias.length, units: bias.length });
  }
  return layers;
}

function toShares(bytes) {
  const shares = new Float32Array(bytes.length);
  for (let i = 0; i < bytes.length; i++) shares[i] = bytes[i] / 255;
  return shares;
}

// ---- state

let dense; // the network as it was trained: {layers, masks, costs, found, right}
let shown; // the same of the pruned network, with {setting, reconstruct, refitted}
let test; // {images, labels, count}
let worker; // answers the test images, and reconstructs
const orders = {}; // by method: what goes first
const trail = new Map(); // circles of the chart, by setting
const strokes = []; // of a drawn digit: lists of points [x, y] in [0, 1]
let drawn = false; // or else a test image is looked at
let seen = new Float32Array(PIXELS); // the image that is looked at

const settings = () => ({
  method: document.querySelector('input[name="method"]:checked').value,
  sparsity: byId("sparsity").valueAsNumber / 100,
  reconstruct: byId("reconstruct").checked,
});
const imageNumber = () => byId("image").valueAsNumber - 1;

/** A network with its masks and what it costs; its answers to the test images come later. */
function examined(layers, method) {
  const masks = masksOf(layers, method);
  return { layers, masks, costs: costs(layers, masks, method), found: null };
}

const countRight = (found) => found.reduce((n, answer, i) => n + (answer === test.labels[i]), 0);

// ---- moves

/** A setting was moved: prunes anew, shows it, and asks the worker for what takes longer. */
function move() {
  const { method, sparsity, reconstruct } = settings();
  orders[method] ??= removalOrders(dense.layers, method);
  const pruned = prune(dense.layers, method, orders[method], sparsity);
  const setting = { id: (shown?.setting.id ?? 0) + 1, method, sparsity };
  shown = { ...examined(pruned, method), setting, reconstruct: reconstruct && sparsity > 0, refitted: false };
  worker.postMessage({ setting, pruned, reconstruct: shown.reconstruct });
  byId("sparsity-value").textContent = `${Math.round(100 * sparsity)} %`;
  byId("solving").textContent = shown.reconstruct ? "refitting …" : "";
  show();
}

/** The worker has answered the test images, has got on with a reconstruction, or has ended it. */
function received({ setting, found, done, refitted = null }) {
  const isNewest = setting.id === shown.setting.id; // or else of a setting that was left since
  if (isNewest && done) byId("solving").textContent = `refitting … ${Math.round(100 * done)} %`;
  if (isNewest && refitted) {
    shown = { ...shown, ...examined(refitted, setting.method), refitted: true };
    byId("solving").textContent = "refitted";
    show();
  }
  if (!found) return;
  const right = countRight(found);
  showTrail(setting, refitted !== null, right);
  showAccuracy(right, isNewest);
  if (isNewest) Object.assign(shown, { found, right });
  byId("mistake").disabled = nextBroken() < 0;
}

/** Whether the worker still owes something to the setting that is shown. */
const isWaiting = () => !shown.found || shown.refitted !== shown.reconstruct;

function show() {
  showCosts();
  showMasks();
  showAnswer();
  showAccuracy(null, false);
}

// ---- the digit

function chooseImage(number) {
  const count = test.count;
  number = ((number % count) + count) % count;
  byId("image").value = number + 1;
  drawn = false;
  strokes.length = 0;
  seen = test.images.subarray(number * PIXELS, (number + 1) * PIXELS);
  drawPad();
  showAnswer();
}

/** The next test image that the dense network reads right and the pruned one wrong, or -1. */
function nextBroken() {
  const here = drawn ? -1 : imageNumber();
  for (let step = 1; shown.found && step <= test.count; step++) {
    const i = (here + step) % test.count;
    if (dense.found[i] === test.labels[i] && shown.found[i] !== test.labels[i]) return i;
  }
  return -1;
}

function clearPad() {
  drawn = true;
  strokes.length = 0;
  seen = new Float32Array(PIXELS);
  drawPad();
  showAnswer();
}

function startStroke(event) {
  if (event.button !== 0) return;
  event.preventDefault();
  byId("pad").setPointerCapture(event.pointerId);
  if (!drawn) clearPad();
  strokes.push([placeOf(event)]);
  strokeChanged();
}

function continueStroke(event) {
  if (!byId("pad").hasPointerCapture(event.pointerId)) return;
  const events = event.getCoalescedEvents?.() ?? [];
  for (const one of events.length ? events : [event]) strokes.at(-1).push(placeOf(one));
  strokeChanged();
}

function placeOf(event) {
  const box = byId("pad").getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}

function strokeChanged() {
  seen = asMnist(strokes);
  drawPad();
  showAnswer();
}

/**
 * Strokes as an image of MNIST: scaled into a box of 20 × 20 pixels, drawn with grey edges, and
 * shifted such that the centre of mass lies in the middle of 28 × 28.
 */
function asMnist(strokes) {
  const points = strokes.flat();
  const [xs, ys] = [points.map((p) => p[0]), points.map((p) => p[1])];
  const [left, right] = [Math.min(...xs), Math.max(...xs)];
  const [top, bottom] = [Math.min(...ys), Math.max(...ys)];
  // A short stroke is not blown up beyond what a quarter of the pad would be.
  const scale = (BOX - PEN) / Math.max(right - left, bottom - top, 0.25);
  const middle = [SIDE / 2 - (scale * (left + right)) / 2, SIDE / 2 - (scale * (top + bottom)) / 2];
  const once = inkOf(strokes, scale, middle);
  const [x, y] = centreOfMass(once);
  return inkOf(strokes, scale, [middle[0] + SIDE / 2 - x, middle[1] + SIDE / 2 - y]);
}

function inkOf(strokes, scale, [x, y]) {
  const canvas = new OffscreenCanvas(SIDE, SIDE);
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.setTransform(scale, 0, 0, scale, x, y);
  drawStrokes(pen, strokes, PEN / scale);
  const { data } = pen.getImageData(0, 0, SIDE, SIDE);
  return Float32Array.from({ length: PIXELS }, (_, i) => data[4 * i + 3] / 255); // opacity
}

function drawStrokes(pen, strokes, width) {
  pen.lineWidth = width;
  pen.lineCap = pen.lineJoin = "round";
  for (const points of strokes) {
    pen.beginPath();
    pen.moveTo(...points[0]);
    for (const point of points) pen.lineTo(...point);
    pen.stroke();
  }
}

function centreOfMass(ink) {
  let [mass, x, y] = [0, 0, 0];
  ink.forEach((value, i) => {
    mass += value;
    x += value * ((i % SIDE) + 0.5);
    y += value * (Math.floor(i / SIDE) + 0.5);
  });
  return mass ? [x / mass, y / mass] : [SIDE / 2, SIDE / 2];
}

function drawPad() {
  const ink = colour("--ink");
  const small = byId("seen").getContext("2d");
  const image = small.createImageData(SIDE, SIDE);
  seen.forEach((value, i) => image.data.set([...ink, Math.round(255 * value)], 4 * i));
  small.putImageData(image, 0, 0);
  const pad = byId("pad");
  const pen = pad.getContext("2d");
  pen.resetTransform();
  pen.clearRect(0, 0, pad.width, pad.height);
  pen.imageSmoothingEnabled = false;
  if (!drawn) {
    pen.drawImage(byId("seen"), 0, 0, pad.width, pad.height);
    return;
  }
  pen.strokeStyle = `rgb(${ink})`;
  pen.scale(pad.width, pad.height);
  drawStrokes(pen, strokes, 0.08);
}

// ---- what is shown

const ONE_DECIMAL = { minimumFractionDigits: 1, maximumFractionDigits: 1 };
const percent = (share) => `${(100 * share).toFixed(1)} %`;

function showAnswer() {
  const isEmpty = seen.every((value) => value === 0);
  const rows = [dense, shown].map(({ layers }) => probabilities(layers, seen, 1));
  const found = rows.map((row) => answers(row, CLASSES)[0]);
  if (isEmpty) rows.forEach((row) => row.fill(0));
  showWords(rows, found, isEmpty);
  [...byId("bars").children].forEach((bar, digit) => {
    bar.classList.toggle("chosen", !isEmpty && digit === found[1]);
    rows.forEach((row, k) => bar.children[k].style.setProperty("--share", row[digit].toFixed(4)));
  });
  const shares = (digit) => rows.map((row) => Math.round(100 * row[digit])).join(" and ");
  byId("bars").setAttribute(
    "aria-label",
    "Confidence in percent, dense and pruned. " +
      [...rows[0].keys()].map((digit) => `${digit}: ${shares(digit)}`).join("; "),
  );
}

/** The answer in three lines, which are read aloud when they change. */
function showWords(rows, found, isEmpty) {
  const label = drawn ? null : test.labels[imageNumber()];
  const lines = document.createElement("div");
  const names = ["Dense", shown.refitted ? "Reconstructed" : "Pruned"];
  names.forEach((name, k) => {
    const line = make("span", lines, `${name}: `);
    if (isEmpty) return line.append("–");
    const isWrong = label !== null && found[k] !== label;
    make("b", line, found[k]).classList.toggle("wrong", isWrong);
    line.append(`, ${percent(rows[k][found[k]])} sure${isWrong ? ", wrong" : ""}`);
  });
  const digit = isEmpty ? "Nothing is drawn yet" : "Your own digit";
  make("span", lines, label === null ? digit : `Test image ${imageNumber() + 1} is a ${label}`);
  if (lines.textContent !== byId("words").textContent) byId("words").replaceChildren(...lines.children);
}

function showCosts() {
  const texts = {
    bytes: ({ bytes }) => `${(bytes / 1000).toLocaleString("en", ONE_DECIMAL)} kB`,
    multiplications: ({ multiplications }) => multiplications.toLocaleString("en"),
  };
  for (const [id, text] of Object.entries(texts)) {
    const cells = byId(id).querySelectorAll("td");
    [dense, shown].forEach(({ costs }, k) => (cells[k].textContent = text(costs)));
  }
}

/** Until the accuracy of a new setting is known, the last one stands there, in grey. */
function showAccuracy(right, isNewest) {
  const cell = byId("accuracy").querySelector("td:last-child");
  cell.classList.toggle("old", !isNewest);
  if (right !== null) cell.textContent = percent(right / test.count);
}

/** Red, green and blue of a colour of the style sheet. */
function colour(name) {
  const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

/** Pixels from a pale to the full colour, for how large a weight is. */
function shades(name) {
  const [from, to] = [colour("--removed"), colour(name)];
  return Array.from({ length: SHADES + 1 }, (_, level) => {
    const share = 0.35 + (0.65 * level) / SHADES;
    return pixelOf(to.map((value, k) => Math.round(from[k] + share * (value - from[k]))));
  });
}

const pixelOf = ([r, g, b]) => (255 << 24) | (b << 16) | (g << 8) | r; // as a canvas stores it

function showMasks() {
  const removed = pixelOf(colour("--removed"));
  const [positive, negative] = [shades("--positive"), shades("--negative")];
  document.querySelectorAll("#masks figure").forEach((figure, l) => {
    const canvas = figure.querySelector("canvas");
    const [layer, mask] = [shown.layers[l], shown.masks[l]];
    const scale = SHADES / dense.layers[l].largest;
    paintKernel(canvas, layer, l === 0, (place) => {
      if (!mask[place]) return removed;
      const w = layer.kernel[place];
      return w > 0 ? positive[Math.min(SHADES, w * scale) | 0] : negative[Math.min(SHADES, -w * scale) | 0];
    });
    const [left, all] = [countOnes(mask), mask.length].map((n) => n.toLocaleString("en"));
    figure.querySelector("span").textContent = `${left} of ${all} weights left.`;
    canvas.setAttribute("aria-label", `Kernel ${l + 1}: ${left} of ${all} weights left`);
  });
}

/** Draws a kernel: the first as tiles of images, the others a column an input, a row a unit. */
function paintKernel(canvas, { inputs, units }, asTiles, colourAt) {
  const pitch = SIDE + 1;
  const width = asTiles ? TILES * pitch - 1 : inputs;
  const height = asTiles ? Math.ceil(units / TILES) * pitch - 1 : units;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const pen = canvas.getContext("2d");
  const image = pen.createImageData(width, height);
  const pixels = new Int32Array(image.data.buffer);
  for (let i = 0; i < inputs; i++) {
    for (let j = 0; j < units; j++) {
      const x = asTiles ? (j % TILES) * pitch + (i % SIDE) : i;
      const y = asTiles ? Math.floor(j / TILES) * pitch + Math.floor(i / SIDE) : j;
      pixels[y * width + x] = colourAt(i * units + j);
    }
  }
  pen.putImageData(image, 0, 0);
}

/** The magnitude that is drawn in full colour: three standard deviations. */
function largeWeight({ kernel }) {
  return 3 * Math.sqrt(kernel.reduce((total, w) => total + w * w, 0) / kernel.length);
}

const NAMESPACE = "http://www.w3.org/2000/svg";
const CHART = { left: 34, right: 350, top: 28, bottom: 168 };
const chartX = (sparsity) => CHART.left + sparsity * (CHART.right - CHART.left);
const chartY = (accuracy) => CHART.bottom - accuracy * (CHART.bottom - CHART.top);

function draw(tag, attributes, text = "") {
  const element = byId("chart").appendChild(document.createElementNS(NAMESPACE, tag));
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}

function drawAxes() {
  const { left, right, bottom } = CHART;
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    const [x, y] = [chartX(share), chartY(share)];
    draw("line", { class: "grid", x1: left, x2: right, y1: y, y2: y });
    draw("text", { x: left - 5, y: y + 4, "text-anchor": "end" }, 100 * share);
    draw("text", { x, y: bottom + 14, "text-anchor": "middle" }, 100 * share);
  }
  draw("text", { x: right, y: bottom + 28, "text-anchor": "end" }, "sparsity, %");
  draw("text", { x: 4, y: 12 }, "right on the test images, %");
  const y = chartY(dense.right / test.count);
  draw("line", { class: "level", x1: left, x2: right, y1: y, y2: y });
}

function showTrail({ method, sparsity }, refitted, right) {
  const key = [method, sparsity, refitted].join();
  if (!trail.has(key)) {
    const place = { cx: chartX(sparsity), cy: chartY(right / test.count), r: 3 };
    trail.set(key, draw("circle", { class: `${method}${refitted ? " refitted" : ""}`, ...place }));
  }
  byId("chart").querySelector(".now")?.classList.remove("now");
  const here = trail.get(key);
  here.classList.add("now");
  byId("chart").append(here); // in front
}

// ---- start

async function start() {
  const arrays = await readArrays();
  const [images, labels] = [toShares(arrays.test_images), arrays.test_labels];
  const layers = networkOf(arrays);
  layers.forEach((layer) => (layer.largest = largeWeight(layer)));
  test = { images, labels, count: labels.length };
  dense = examined(layers, "weights");
  dense.found = answers(probabilities(layers, images, test.count), CLASSES);
  dense.right = countRight(dense.found);
  const program = `${byId("network").textContent}\nserve();`;
  worker = new Worker(URL.createObjectURL(new Blob([program], { type: "text/javascript" })));
  worker.onmessage = ({ data }) => received(data);
  worker.postMessage({ layers, images, calibration: toShares(arrays.calibration_images) });
  for (let digit = 0; digit < CLASSES; digit++) {
    const bar = make("div", byId("bars"));
    bar.dataset.digit = digit;
    for (const name of ["dense", "pruned"]) make("i", bar).className = name;
  }
  byId("accuracy").querySelector("td").textContent = percent(dense.right / test.count);
  drawAxes();
  orders.random = removalOrders(layers, "random"); // takes long enough to be felt in a move
  move();
  chooseImage(imageNumber() || 0); // a browser may have kept the number
  listenToVisitor();
}

function listenToVisitor() {
  byId("settings").addEventListener("input", move);
  byId("clear").addEventListener("click", clearPad);
  byId("previous").addEventListener("click", () => chooseImage(imageNumber() - 1));
  byId("next").addEventListener("click", () => chooseImage(imageNumber() + 1));
  byId("mistake").addEventListener("click", () => {
    const i = nextBroken();
    if (i >= 0) chooseImage(i); // none while the worker has not answered
  });
  byId("image").addEventListener("input", () => {
    if (byId("image").checkValidity() && byId("image").value) chooseImage(imageNumber());
  });
  byId("image").addEventListener("change", () => chooseImage(imageNumber() || 0));
  byId("pad").addEventListener("pointerdown", startStroke);
  byId("pad").addEventListener("pointermove", continueStroke);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    drawPad();
    showMasks();
  });
}

/**
 * What a test needs: `ready`, a promise; `dense` and `shown`, the networks with what is known of
 * them; `seen`, the image that is looked at; `test`, the test images; `waiting`, whether the worker
 * has not yet answered.
 */
window.page = {
  ready: start(),
  get dense() { return dense; },
  get shown() { return shown; },
  get seen() { return seen; },
  get test() { return test; },
  get waiting() { return isWaiting(); },
};
