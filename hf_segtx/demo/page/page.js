// What is seen: the picture under the colours of its label map, and a legend that switches classes on and off.

const byId = (id) => document.getElementById(id);
const facts = await (await fetch("facts.json")).json();
const worker = new Worker("worker.js", { type: "module" });
const canvas = byId("canvas");
const context = canvas.getContext("2d", { willReadFrequently: true });
let shown = null; // {name, width, height, picture (RGBA), labels} of the newest picture
let hidden = new Set(); // classes that are switched off
let number = 0; // of the newest picture: answers about older ones are passed over

byId("title").textContent = document.title = facts.title;

function say(text, isBad = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("bad", isBad);
}

// ----------------------------------------------------------------------------------------------------- pictures in

async function open(blob, name) {
  const own = ++number;
  say(`Reading ${name} ...`);
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { premultiplyAlpha: "none", colorSpaceConversion: "none" }); // upright
  } catch {
    if (own === number) say(`${name} is not a picture that this browser can read; choose a PNG or JPEG file`, true);
    return;
  }
  if (own !== number) return;
  say(`Segmenting ${name} ...`);
  worker.postMessage({ number: own, name, bitmap }, [bitmap]);
}

worker.onmessage = ({ data }) => {
  if (data.ready) {
    if (number === 0) say(`Ready: ${facts.names.length} classes.`);
    return;
  }
  if (data.error !== undefined) {
    if (data.number === undefined || data.number === number) say(data.error, true);
    return;
  }
  if (data.number !== number) return;
  shown = data;
  hidden = new Set();
  canvas.width = data.width;
  canvas.height = data.height;
  canvas.hidden = false;
  byId("drop").classList.add("filled");
  fillLegend();
  draw();
  const smaller = data.isSmaller ? `, shown at ${data.width} x ${data.height} pixels` : "";
  say(`${data.name}: segmented in ${(data.milliseconds / 1000).toFixed(1)} s${smaller}.`);
};
worker.onerror = (event) => say(`The model cannot be loaded: ${event.message || "worker.js does not start"}`, true);
worker.postMessage({ facts });

byId("file").onchange = ({ target }) => {
  if (target.files.length) open(target.files[0], target.files[0].name);
  target.value = ""; // so that the same file may be chosen again
};
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    byId("drop").classList.toggle("over", kind === "dragover");
    if (kind !== "drop") return;
    const [file] = event.dataTransfer.files;
    if (file) open(file, file.name);
    else say("That was no file; drop a picture from your machine", true);
  });
}
document.addEventListener("paste", ({ clipboardData }) => {
  if (clipboardData.files.length) open(clipboardData.files[0], clipboardData.files[0].name);
});
for (const address of facts.examples) {
  const button = document.createElement("button");
  const image = document.createElement("img");
  image.src = address;
  image.alt = `Segment ${address.split("/").pop()}`;
  button.append(image);
  button.onclick = async () => open(await (await fetch(address)).blob(), address.split("/").pop());
  byId("examples").append(button);
}

// -------------------------------------------------------------------------------------------------- segments out

function fillLegend() {
  const counts = new Map();
  for (const label of shown.labels) counts.set(label, (counts.get(label) ?? 0) + 1);
  const buttons = [...counts].sort((a, b) => b[1] - a[1]).map(([label, count]) => {
    const button = document.createElement("button");
    const swatch = document.createElement("span");
    const share = document.createElement("small");
    swatch.className = "swatch";
    swatch.style.background = `rgb(${facts.colors[label].join(" ")})`;
    share.textContent = `${((100 * count) / shown.labels.length).toFixed(1)} %`;
    button.append(swatch, facts.names[label], share);
    button.dataset.label = label;
    button.setAttribute("aria-pressed", "true");
    button.onclick = () => {
      if (!hidden.delete(label)) hidden.add(label);
      button.setAttribute("aria-pressed", String(!hidden.has(label)));
      draw();
    };
    return button;
  });
  byId("legend").replaceChildren(...buttons);
}

function draw() {
  if (shown === null) return;
  const opacity = Number(byId("opacity").value);
  const pixels = new Uint8ClampedArray(shown.picture);
  shown.labels.forEach((label, index) => {
    if (hidden.has(label)) return;
    const color = facts.colors[label];
    for (let channel = 0, at = 4 * index; channel < 3; channel++, at++) {
      pixels[at] = pixels[at] * (1 - opacity) + color[channel] * opacity;
    }
  });
  context.putImageData(new ImageData(pixels, shown.width, shown.height), 0, 0);
}

byId("opacity").oninput = draw;
canvas.onpointermove = ({ offsetX, offsetY }) => {
  const column = Math.min(shown.width - 1, Math.floor((offsetX * shown.width) / canvas.clientWidth));
  const row = Math.min(shown.height - 1, Math.floor((offsetY * shown.height) / canvas.clientHeight));
  canvas.title = facts.names[shown.labels[Math.max(0, row) * shown.width + Math.max(0, column)]];
};
