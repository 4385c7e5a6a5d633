// Picture -> resized, padded pixels -> model -> label map, in a thread of its own.

import * as ort from "./ort.wasm.min.mjs";

let facts, session;
let queue = Promise.resolve(); // one picture after the other

self.onmessage = ({ data }) => {
  if (data.facts) {
    facts = data.facts;
    // Several threads need the headers that a static Space gets from its card.
    ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(8, navigator.hardwareConcurrency) : 1;
    session = ort.InferenceSession.create("model.onnx");
    session.then(
      () => self.postMessage({ ready: true }),
      (error) => self.postMessage({ error: `The model cannot be loaded: ${error.message}` }),
    );
    return;
  }
  queue = queue.then(() => segment(data)).catch((error) =>
    self.postMessage({ number: data.number, error: `${data.name} cannot be segmented: ${error.message}` }),
  );
};

async function segment({ number, name, bitmap }) {
  const model = await session;
  const started = performance.now();
  const picture = pixelsOf(bitmap, bitmap.width, bitmap.height);
  let planes = planesOf(facts.size ? resize(picture, resizedSize(bitmap, facts.size)) : picture);
  if (facts.window?.small_images === "enlarge") planes = enlarged(planes, facts.window.size);
  const shrink = Math.min(1, Math.sqrt(facts.most_pixels / (bitmap.width * bitmap.height)));
  const target = {
    width: Math.max(1, Math.floor(bitmap.width * shrink)),
    height: Math.max(1, Math.floor(bitmap.height * shrink)),
  };
  const labels = await (facts.window ? labelsOfWindows : labelsOfWhole)(model, planes, target);
  const shown = shrink < 1 ? pixelsOf(bitmap, target.width, target.height) : picture;
  bitmap.close();
  self.postMessage(
    {
      number, name, ...target, labels, picture: shown.data, isSmaller: shrink < 1,
      milliseconds: performance.now() - started,
    },
    [labels.buffer, shown.data.buffer],
  );
}

async function labelsOfWhole(model, planes, target) {
  const [height, width] = paddedSize(planes);
  const { label_map } = await model.run({
    pixel_values: cut(planes, 0, 0, height, width),
    rows: places(target.height, planes.height, height),
    columns: places(target.width, planes.width, width),
  });
  return label_map.data.slice();
}

// As the library averages windows: each window's logits at its pixels, their mean where windows overlap, then the map.
async function labelsOfWindows(model, planes, target) {
  const { size, stride, small_images } = facts.window;
  const least = small_images === "cut" ? paddedSize(planes) : [Infinity, Infinity];
  const [height, width] = size.map((side, axis) => Math.min(side, least[axis]));
  const columns = Math.max(planes.width, width), rows = Math.max(planes.height, height);
  if (rows * columns > 3 * facts.most_pixels) throw new Error("its windows need too much memory; make it smaller");
  const counts = new Float32Array(rows * columns);
  const classes = facts.num_logits;
  const sums = new Float32Array(counts.length * classes);
  for (const top of starts(planes.height, height, stride[0])) {
    for (const left of starts(planes.width, width, stride[1])) {
      const { logits } = await model.run({
        pixel_values: cut(planes, top, left, height, width),
        rows: places(height, height, height),
        columns: places(width, width, width),
      });
      for (let row = 0; row < height; row++) {
        const to = (top + row) * columns + left;
        for (let column = 0; column < width; column++) counts[to + column]++;
        const values = logits.data.subarray(row * width * classes, (row + 1) * width * classes);
        for (let index = 0, at = to * classes; index < values.length; index++, at++) sums[at] += values[index];
      }
    }
  }
  for (let pixel = 0; pixel < counts.length; pixel++) {
    for (let index = pixel * classes; index < (pixel + 1) * classes; index++) sums[index] /= counts[pixel];
  }
  return bestClasses(sums, columns, planes, target);
}

function starts(length, window, stride) {
  const found = [];
  for (let start = 0; start < length - window; start += stride) found.push(start);
  return [...found, Math.max(length - window, 0)];
}

// Label map of a target size, of logits (rows, `columns`, classes) that are interpolated bilinearly.
function bestClasses(logits, columns, { height, width }, target) {
  const along = (size, own) =>
    Array.from({ length: size }, (_, index) => {
      const place = facts.align_corners ? (index * (own - 1)) / Math.max(size - 1, 1) : ((index + 0.5) * own) / size - 0.5;
      const inside = Math.min(Math.max(place, 0), own - 1);
      return [Math.floor(inside), Math.ceil(inside), inside - Math.floor(inside)];
    });
  const classes = facts.num_logits;
  const labels = new (facts.names.length > 256 ? Int32Array : Uint8Array)(target.height * target.width);
  const acrosses = along(target.width, width);
  let at = 0;
  for (const [above, below, down] of along(target.height, height)) {
    for (const [before, after, across] of acrosses) {
      const first = (above * columns + before) * classes, second = (above * columns + after) * classes;
      const third = (below * columns + before) * classes, fourth = (below * columns + after) * classes;
      let best = 0, most = classes === 1 ? 0 : -Infinity; // one logit is a sigmoid
      for (let index = 0; index < classes; index++) {
        const top = logits[first + index] + across * (logits[second + index] - logits[first + index]);
        const bottom = logits[third + index] + across * (logits[fourth + index] - logits[third + index]);
        const value = top + down * (bottom - top);
        if (value > most) {
          most = value;
          best = classes === 1 ? 1 : index;
        }
      }
      labels[at++] = best;
    }
  }
  return labels;
}

function paddedSize({ height, width }) {
  return [height, width].map((side) => Math.ceil(Math.max(side, facts.minimum) / facts.divisor) * facts.divisor);
}

function pixelsOf(bitmap, width, height) {
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0, width, height);
  return context.getImageData(0, 0, width, height);
}

// The size that a picture is resized to: as said, or the largest with its ratio at which neither edge exceeds
// its bound, stretched up to multiples of a number.
function resizedSize({ height, width }, size) {
  if (size.height && size.width) return size;
  let scale = size.shortest_edge / Math.min(height, width);
  if (size.longest_edge) scale = Math.min(scale, size.longest_edge / Math.max(height, width));
  const [rows, columns] = [height, width].map(
    (side) => Math.ceil(Math.max(1, Math.floor(side * scale + 0.5)) / facts.stretch) * facts.stretch,
  );
  return { height: rows, width: columns };
}

// Where the pixels of the map lie, as shares of the network's input, whose first `own` of `whole` pixels are the picture.
function places(count, own, whole) {
  const values = Float32Array.from({ length: count }, (_, index) =>
    facts.align_corners
      ? ((index / Math.max(count - 1, 1)) * (own - 1)) / Math.max(whole - 1, 1)
      : (((index + 0.5) / count) * own) / whole,
  );
  return new ort.Tensor("float32", values, [count]);
}

// ------------------------------------- resizing as torchvision does pictures of 8 bits: same filters, same rounding

const FILTERS = {
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  bicubic: [2, (x) => {
    const a = -0.5;
    x = Math.abs(x);
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
  }],
};

// Of each target pixel the first source pixel, and the weights of it and those that follow: whole numbers, in units of
// 1 / 2^bits, as fine as 16 bits allow.
function weightsOf(source, target) {
  const [support, filter] = FILTERS[facts.filter];
  const scale = source / target, stretch = Math.max(scale, 1), radius = support * stretch;
  const pixels = Array.from({ length: target }, (_, index) => {
    const center = (index + 0.5) * scale;
    const first = Math.max(0, Math.floor(center - radius + 0.5));
    const last = Math.min(source, Math.floor(center + radius + 0.5));
    const weights = Array.from({ length: last - first }, (_, step) => filter((first + step - center + 0.5) / stretch));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    return { first, weights: weights.map((weight) => weight / sum) };
  });
  const most = Math.max(...pixels.map(({ weights }) => Math.max(...weights)));
  let bits = 0;
  while (bits < 22 && Math.trunc(0.5 + most * 2 ** (bits + 1)) < 2 ** 15) bits++;
  const whole = (weight) => Math.sign(weight) * Math.trunc(0.5 + Math.abs(weight) * 2 ** bits);
  for (const pixel of pixels) pixel.weights = pixel.weights.map(whole);
  return { pixels, unit: 2 ** bits };
}

// RGBA -> {data: RGBA of 8 bits, width, height}; columns first, then rows, rounded in between.
function resize({ data, width: sourceWidth, height: sourceHeight }, { width, height }) {
  let rows = data;
  if (width !== sourceWidth) {
    rows = new Uint8ClampedArray(4 * width * sourceHeight);
    const { pixels, unit } = weightsOf(sourceWidth, width);
    pixels.forEach(({ first, weights }, column) => {
      for (let row = 0; row < sourceHeight; row++) {
        mix(data, 4 * (row * sourceWidth + first), 4, weights, unit, rows, 4 * (row * width + column));
      }
    });
  }
  let result = rows;
  if (height !== sourceHeight) {
    result = new Uint8ClampedArray(4 * width * height);
    const { pixels, unit } = weightsOf(sourceHeight, height);
    pixels.forEach(({ first, weights }, row) => {
      for (let column = 0; column < width; column++) {
        mix(rows, 4 * (first * width + column), 4 * width, weights, unit, result, 4 * (row * width + column));
      }
    });
  }
  return { data: result, width, height };
}

function mix(source, from, step, weights, unit, target, to) {
  for (let channel = 0; channel < 3; channel++) {
    let sum = unit / 2;
    for (let index = 0; index < weights.length; index++) sum += weights[index] * source[from + channel + index * step];
    target[to + channel] = Math.floor(sum / unit); // the array clamps
  }
}

// RGBA -> {values: planes of red, green and blue, 0-255, width, height}.
function planesOf({ data, width, height }) {
  const count = width * height, values = new Float32Array(3 * count);
  for (let pixel = 0; pixel < count; pixel++) {
    for (let channel = 0; channel < 3; channel++) values[channel * count + pixel] = data[4 * pixel + channel];
  }
  return { values, width, height };
}

// Planes, bilinearly resized without a filter so that no side is below a window's.
function enlarged(planes, window) {
  const sides = [planes.height, planes.width];
  const first = window[1] / sides[1] > window[0] / sides[0] ? 1 : 0; // the axis that decides
  if (sides[first] >= window[first]) return planes;
  const other = Math.max(window[1 - first], Math.trunc((sides[1 - first] / sides[first]) * window[first]));
  const [height, width] = first === 0 ? [window[0], other] : [other, window[1]];
  const values = new Float32Array(3 * height * width);
  const along = (size, own) =>
    Array.from({ length: size }, (_, index) => {
      const place = Math.max(0, ((index + 0.5) * own) / size - 0.5);
      return [Math.floor(place), Math.min(Math.floor(place) + 1, own - 1), place - Math.floor(place)];
    });
  const acrosses = along(width, planes.width);
  let at = 0;
  for (let channel = 0; channel < 3; channel++) {
    const plane = planes.values.subarray(channel * sides[0] * sides[1], (channel + 1) * sides[0] * sides[1]);
    for (const [above, below, down] of along(height, planes.height)) {
      for (const [before, after, across] of acrosses) {
        const mixed = (row) => plane[row * sides[1] + before] * (1 - across) + plane[row * sides[1] + after] * across;
        values[at++] = mixed(above) * (1 - down) + mixed(below) * down;
      }
    }
  }
  return { values, width, height };
}

// A part of the planes as a tensor, with the mean where it reaches beyond them.
function cut({ values, width, height }, top, left, rows, columns) {
  const part = new Float32Array(3 * rows * columns);
  for (let channel = 0; channel < 3; channel++) {
    part.fill(facts.padding[channel], channel * rows * columns, (channel + 1) * rows * columns);
    for (let row = 0; row < Math.min(rows, height - top); row++) {
      const from = (channel * height + top + row) * width + left;
      part.set(values.subarray(from, from + Math.min(columns, width - left)), (channel * rows + row) * columns);
    }
  }
  return new ort.Tensor("float32", part, [1, 3, rows, columns]);
}
