// Maps over their images, drawn here, so that depth and opacity follow the hand. What `value` holds: see lens.py.

const panes = element.querySelector(".panes");
const depth = element.querySelector(".depth");
const opacity = element.querySelector(".opacity");
const said = element.querySelector(".said");
let shown = []; // of every pane what is drawn, and where the cursor is

function bytes(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

function percent(share) {
  return share >= 0.0995 ? `${Math.round(100 * share)} %` : `${(100 * share).toPrecision(2)} %`;
}

// With two panes of other depths, the slider moves both from first to last.
function layerOf(pane) {
  const last = Math.max(...shown.map((one) => one.peaks.length)) - 1;
  return last ? Math.round((depth.value * (pane.peaks.length - 1)) / last) : 0;
}

// The map of a layer in colours, as large as the picture; white where the model saw nothing.
function paint(pane, layer) {
  const { canvas, rows, columns } = pane;
  const [left, upper, right, lower] = edges(pane);
  const gray = new ImageData(columns, rows);
  pane.levels
    .subarray(layer * rows * columns, (layer + 1) * rows * columns)
    .forEach((level, patch) => gray.data.set([level, level, level, 255], 4 * patch));
  const small = new OffscreenCanvas(columns, rows);
  small.getContext("2d").putImageData(gray, 0, 0);
  const map = new OffscreenCanvas(canvas.width, canvas.height);
  const light = map.getContext("2d", { willReadFrequently: true });
  light.imageSmoothingQuality = "high";
  light.drawImage(small, left, upper, right - left, lower - upper);
  const pixels = light.getImageData(0, 0, map.width, map.height);
  const data = pixels.data;
  for (let i = 0; i < data.length; i += 4) {
    const color = 3 * data[i];
    const seen = data[i + 3] > 127;
    data[i] = seen ? pane.colors[color] : 255;
    data[i + 1] = seen ? pane.colors[color + 1] : 255;
    data[i + 2] = seen ? pane.colors[color + 2] : 255;
    data[i + 3] = 255;
  }
  light.putImageData(pixels, 0, 0);
  return { layer, map };
}

// Of what the model saw, in pixels of the canvas.
function edges(pane) {
  return pane.region.map((edge, index) => edge * (index % 2 ? pane.canvas.height : pane.canvas.width));
}

function draw(pane) {
  const { canvas, picture, rows, columns } = pane;
  const layer = layerOf(pane);
  if (pane.painted?.layer !== layer) pane.painted = paint(pane, layer);
  const context = canvas.getContext("2d");
  context.globalAlpha = 1;
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  context.globalAlpha = opacity.value / 100;
  context.drawImage(pane.painted.map, 0, 0);
  context.globalAlpha = 1;
  const [left, upper, right, lower] = edges(pane);
  const width = (right - left) / columns;
  const height = (lower - upper) / rows;
  for (const [patch, color] of [[pane.patch, "#35d0ff"], [pane.cursor, "white"]]) {
    if (!patch) continue;
    const corner = [left + patch[1] * width, upper + patch[0] * height, width, height];
    context.lineWidth = 4;
    context.strokeStyle = "black";
    context.strokeRect(...corner);
    context.lineWidth = 2;
    context.strokeStyle = color;
    context.strokeRect(...corner);
  }
}

function drawAll() {
  shown.forEach((pane) => pane.picture.complete && draw(pane));
  const [pane] = shown;
  if (!pane) return;
  const { depth_name: name } = props.value;
  const layers = [...new Set(shown.map((one) => `${layerOf(one) + 1} of ${one.peaks.length}`))].join(", ");
  element.querySelector(".what").textContent = name;
  element.querySelector(".depth-said").textContent = layers;
  element.querySelector(".opacity-said").textContent = `${opacity.value} %`;
  depth.setAttribute("aria-valuetext", `${name} ${layers}`);
  opacity.setAttribute("aria-valuetext", `${opacity.value} percent`);
}

function say(pane) {
  if (!pane.cursor) {
    said.textContent = props.value.hint;
    return;
  }
  const [row, column] = pane.cursor;
  const level = pane.levels[(layerOf(pane) * pane.rows + row) * pane.columns + column] / 255;
  const what = pane.unit ? `${percent(level * pane.peaks[layerOf(pane)])} ${pane.unit}` : `${percent(level)} of the peak`;
  const enter = pane.patch && pane.patch[0] === row && pane.patch[1] === column ? "goes back" : "shows what it attends to";
  said.textContent = `Row ${row + 1}, column ${column + 1}: ${what}. A click or Enter ${enter}.`;
}

function patchUnder(pane, event) {
  const box = pane.canvas.getBoundingClientRect();
  const [left, upper, right, lower] = pane.region;
  const across = ((event.clientX - box.left) / box.width - left) / (right - left);
  const down = ((event.clientY - box.top) / box.height - upper) / (lower - upper);
  if (across < 0 || down < 0 || across >= 1 || down >= 1) return null;
  return [Math.floor(down * pane.rows), Math.floor(across * pane.columns)];
}

function pick(pane, patch) {
  const again = patch && pane.patch && patch[0] === pane.patch[0] && patch[1] === pane.patch[1];
  pane.patch = again ? null : patch;
  draw(pane);
  trigger("pick", { patches: shown.map((one) => one.patch) });
}

function move(pane, cursor) {
  pane.cursor = cursor;
  draw(pane);
  say(pane);
}

function steer(pane, event) {
  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  if (event.key in steps) {
    const [row, column] = pane.cursor || pane.patch || [pane.rows >> 1, pane.columns >> 1];
    const [down, across] = steps[event.key];
    const inside = (place, count) => Math.min(Math.max(place, 0), count - 1);
    move(pane, [inside(row + down, pane.rows), inside(column + across, pane.columns)]);
  } else if ((event.key === "Enter" || event.key === " ") && pane.cursor) {
    pick(pane, pane.cursor);
  } else if (event.key === "Escape" && pane.patch) {
    pick(pane, null);
  } else {
    return;
  }
  event.preventDefault();
}

function addPane(data, colors) {
  const figure = document.createElement("figure");
  const canvas = document.createElement("canvas");
  const caption = document.createElement("figcaption");
  caption.textContent = data.caption;
  Object.assign(canvas, { width: data.width, height: data.height, tabIndex: 0 });
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-roledescription", "map");
  canvas.setAttribute("aria-label", data.alt);
  figure.append(canvas, caption);
  panes.append(figure);
  const picture = new Image();
  const pane = { ...data, canvas, picture, colors, levels: bytes(data.levels), cursor: null };
  picture.onload = () => draw(pane);
  picture.src = data.picture;
  canvas.addEventListener("pointermove", (event) => move(pane, patchUnder(pane, event)));
  canvas.addEventListener("pointerleave", () => move(pane, null));
  canvas.addEventListener("blur", () => move(pane, null));
  canvas.addEventListener("click", (event) => patchUnder(pane, event) && pick(pane, patchUnder(pane, event)));
  canvas.addEventListener("keydown", (event) => steer(pane, event));
  return pane;
}

function show() {
  const value = props.value;
  element.hidden = !value;
  const focused = shown.findIndex((pane) => pane.canvas === document.activeElement);
  const cursor = shown[focused]?.cursor;
  const height = panes.offsetHeight; // while pictures are decoded, what is below stays where it is
  panes.style.minHeight = `${height}px`;
  panes.replaceChildren();
  shown = value ? value.panes.map((data) => addPane(data, bytes(value.colors))) : [];
  const last = Math.max(1, ...shown.map((pane) => pane.peaks.length)) - 1;
  if (Number(depth.max) !== last || !value) {
    depth.max = last;
    depth.value = last;
  }
  depth.closest("label").hidden = last === 0;
  panes.style.minHeight = "";
  drawAll();
  if (!shown.length) return;
  say(shown[0]);
  const pane = shown[focused];
  if (!pane) return;
  pane.canvas.focus({ preventScroll: true }); // the keyboard goes on where it was
  if (cursor && cursor[0] < pane.rows && cursor[1] < pane.columns) move(pane, cursor);
}

depth.addEventListener("input", drawAll);
opacity.addEventListener("input", drawAll);
watch("value", show);
show();
