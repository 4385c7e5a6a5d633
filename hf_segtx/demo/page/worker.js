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
  const { height, width } = facts.size ? resizedSize(bitmap, facts.size) : bitmap;
  const resized = resize(picture, width, height);
  const [paddedHeight, paddedWidth] = [height, width].map(
    (side) => Math.ceil(Math.max(side, facts.minimum) / facts.divisor) * facts.divisor,
  );
  const shrink = Math.min(1, Math.sqrt(facts.most_pixels / (bitmap.width * bitmap.height)));
  const target = {
    width: Math.max(1, Math.floor(bitmap.width * shrink)),
    height: Math.max(1, Math.floor(bitmap.height * shrink)),
  };
  const { label_map } = await model.run({
    pixel_values: new ort.Tensor("float32", padded(resized, paddedHeight, paddedWidth), [1, 3, paddedHeight, paddedWidth]),
    rows: places(target.height, height, paddedHeight),
    columns: places(target.width, width, paddedWidth),
  });
  const shown = shrink < 1 ? pixelsOf(bitmap, target.width, target.height) : picture;
  bitmap.close();
  const labels = label_map.data.slice();
  self.postMessage(
    {
      number, name, ...target, labels, picture: shown.data, isSmaller: shrink < 1,
      milliseconds: performance.now() - started,
    },
    [labels.buffer, shown.data.buffer],
  );
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
function resize({ data, width: sourceWidth, height: sourceHeight }, width, height) {
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

// RGBA -> planes of red, green and blue, padded on the right and bottom with the mean.
function padded({ data, width, height }, paddedHeight, paddedWidth) {
  const values = new Float32Array(3 * paddedHeight * paddedWidth);
  for (let channel = 0; channel < 3; channel++) {
    const plane = values.subarray(channel * paddedHeight * paddedWidth, (channel + 1) * paddedHeight * paddedWidth);
    plane.fill(facts.padding[channel]);
    for (let row = 0; row < height; row++) {
      for (let column = 0; column < width; column++) {
        plane[row * paddedWidth + column] = data[4 * (row * width + column) + channel];
      }
    }
  }
  return values;
}
