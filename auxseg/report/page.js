"use strict";
(function () {
  const $ = (id) => document.getElementById(id);
  const root = $("viewer");
  if (!$("viewer-data") || !root) return;
  // items: pictures of one kind, cases of a report or slices of a scan; levels: HU of the grey levels 0 to 255.
  const { items, levels, windows, classes, difference, start, coronals, marks } = JSON.parse($("viewer-data").textContent);
  const NAMES = ["background"].concat(classes.map((each) => each.title.toLowerCase()));
  const COLOURS = classes.map((each) => each.colour).concat([difference]).map(rgb);
  const DIFFERS = COLOURS.length;
  const UNKNOWN = 15;
  NAMES[UNKNOWN] = "unknown";
  const KEPT = 12;
  const decoded = new Map();
  let current = -1;
  let pixels = null;
  let chosenWindow = 0;
  let coronal = coronals[0];

  function rgb(colour) {
    return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  }

  function checked(id) {
    return $(id) !== null && $(id).checked;
  }

  function fill() {
    return document.querySelector('input[name="fill"]:checked').value;
  }

  function show(value, digits) {
    return value === null || value === undefined ? "n/a" : Number(value).toFixed(digits);
  }

  // The first channel of a picture in a data address: {width, height, values}.
  function read(address) {
    return new Promise((resolve, reject) => {
      const image = new Image();
      image.onload = () => {
        const canvas = document.createElement("canvas");
        canvas.width = image.width;
        canvas.height = image.height;
        const context = canvas.getContext("2d", { willReadFrequently: true });
        context.drawImage(image, 0, 0);
        const all = context.getImageData(0, 0, image.width, image.height).data;
        const values = new Uint8Array(all.length / 4);
        for (let i = 0; i < values.length; i++) values[i] = all[4 * i];
        resolve({ width: image.width, height: image.height, values });
      };
      image.onerror = reject;
      image.src = address;
    });
  }

  function decode(item) {
    if (!decoded.has(item)) {
      decoded.set(item, Promise.all([read(item.ct), read(item.codes)]).then(([ct, codes]) => ({ ct, codes: codes.values })));
      if (decoded.size > KEPT) decoded.delete(decoded.keys().next().value);
    }
    return decoded.get(item);
  }

  // Draws the grey levels in the chosen window, and one colour over what `colour` gives a class of codes.
  function paint(canvas, { ct, codes }, colour, opacity) {
    const [low, high] = windows[chosenWindow].hu;
    const grey = levels.map((hu) => (255 * (hu - low)) / (high - low));
    canvas.width = ct.width;
    canvas.height = ct.height;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const image = context.createImageData(ct.width, ct.height);
    for (let i = 0; i < ct.values.length; i++) {
      const value = grey[ct.values[i]];
      const over = codes[i] ? colour(codes[i] >> 4, codes[i] & 15) : 0;
      for (let c = 0; c < 3; c++) {
        image.data[4 * i + c] = over ? Math.min(255, Math.max(0, value)) * (1 - opacity) + COLOURS[over - 1][c] * opacity : value;
      }
      image.data[4 * i + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  }

  function chosenColour() {
    const shown = classes.map((each) => checked("class-" + each.name));
    const of = (code) => (shown[code - 1] ? code : 0);
    return {
      truth: (truth) => of(truth),
      prediction: (truth, prediction) => of(prediction),
      difference: (truth, prediction) => (truth === prediction || truth === UNKNOWN ? 0 : DIFFERS),
      none: () => 0,
    }[fill()];
  }

  function outline(svg, paths, dashed) {
    for (const each of classes) {
      if (!paths[each.name] || !checked("class-" + each.name)) continue;
      const path = document.createElementNS(svg.namespaceURI, "path");
      const style = { d: paths[each.name], fill: "none", stroke: each.colour, "stroke-width": 1.6, "vector-effect": "non-scaling-stroke" };
      if (dashed) style["stroke-dasharray"] = "5 3";
      for (const key in style) path.setAttribute(key, style[key]);
      svg.appendChild(path);
    }
  }

  function draw() {
    if (!pixels) return;
    const item = items[current];
    const canvas = $("canvas");
    const opacity = $("opacity").value / 100;
    $("opacity-value").textContent = `${$("opacity").value} %`;
    paint(canvas, pixels, chosenColour(), opacity);
    const zoom = $("zoom").value;
    const picture = $("picture");
    picture.style.width = zoom === "fit" ? "100%" : `${item.columns * zoom}px`;
    picture.style.aspectRatio = `${item.columns} / ${item.rows * item.aspect}`;
    const svg = $("outlines");
    svg.setAttribute("viewBox", `0 0 ${item.columns} ${item.rows}`);
    svg.replaceChildren();
    if (checked("show-truth") && item.truth) outline(svg, item.truth, false);
    if (checked("show-prediction") && item.prediction) outline(svg, item.prediction, true);
    if (checked("show-marks")) mark(svg, item);
    svg.setAttribute("aria-label", `CT of ${item.title}`);
    drawCoronal(opacity);
  }

  // A ring and a number for each nodule that the slice shows; height is to width as on the screen.
  function mark(svg, item) {
    const add = (name, style) => {
      const made = document.createElementNS(svg.namespaceURI, name);
      for (const key in style) made.setAttribute(key, style[key]);
      svg.appendChild(made);
      return made;
    };
    for (const each of marks) {
      if (current < each.first || current > each.last) continue;
      const around = { fill: "none", stroke: "#ff9f1c", "stroke-width": 1.5, "vector-effect": "non-scaling-stroke" };
      add("ellipse", { cx: each.column, cy: each.row, rx: each.radius, ry: each.radius / item.aspect, ...around });
      const place = `translate(${each.column + 0.75 * each.radius} ${each.row - (0.75 * each.radius) / item.aspect}) scale(1 ${1 / item.aspect})`;
      add("text", { transform: place, fill: "#ff9f1c", "font-size": item.columns / 32 }).textContent = each.number;
    }
  }

  function drawCoronal(opacity) {
    if (!coronal) return;
    const wanted = coronal;
    $("coronal-title").textContent = wanted.title;
    decode(wanted).then((both) => {
      if (wanted !== coronal) return;
      const canvas = $("coronal");
      paint(canvas, both, chosenColour(), opacity);
      canvas.style.aspectRatio = `${coronal.columns} / ${coronal.rows * coronal.aspect}`;
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.fillStyle = "#ff9f1c";
      context.fillRect(0, items.length - 1 - current, canvas.width, 1);
    });
  }

  function select(index) {
    const wanted = Math.min(items.length - 1, Math.max(0, index));
    if (wanted === current) return;
    current = wanted;
    const item = items[current];
    if ($("strip")) Array.from($("strip").children).forEach((button, i) => button.setAttribute("aria-pressed", String(i === current)));
    if ($("position")) $("position").value = current;
    $("item-title").textContent = item.title;
    $("readout").textContent = item.about;
    if ($("item-scores")) scores(item);
    decode(item).then((both) => {
      if (item !== items[current]) return;
      pixels = both;
      draw();
      root.dataset.ready = item.key;
    });
  }

  function step(by) {
    select($("strip") ? (current + by + items.length) % items.length : current + by);
  }

  function thumbnail(item, index) {
    const button = document.createElement("button");
    const canvas = document.createElement("canvas");
    button.type = "button";
    button.title = item.key;
    button.appendChild(canvas);
    for (const reason of item.reasons) {
      const [name, rank] = reason.split(": ");
      const dice = item.row[name + "_dice"];
      const span = document.createElement("span");
      span.textContent = `${name.replaceAll("_", " ")}: ${rank}` + (dice === null ? "" : ` ${show(dice, 3)}`);
      button.appendChild(span);
    }
    button.addEventListener("click", () => select(index));
    $("strip").appendChild(button);
    decode(item).then((both) => paint(canvas, both, (truth, prediction) => (truth === prediction || truth === UNKNOWN ? prediction : DIFFERS), 0.6));
  }

  function place(event) {
    const box = event.currentTarget.getBoundingClientRect();
    return [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width];
  }

  function point(event) {
    const item = items[current];
    const [y, x] = place(event);
    if (!pixels || y < 0 || x < 0 || y >= 1 || x >= 1) return;
    const at = Math.floor(y * pixels.ct.height) * pixels.ct.width + Math.floor(x * pixels.ct.width);
    const level = pixels.ct.values[at];
    const how = level === 0 ? "at most" : level === 255 ? "at least" : "about";
    const code = pixels.codes[at];
    const named = item.truth ? `truth ${NAMES[code >> 4]}, prediction ${NAMES[code & 15]}` : NAMES[code & 15];
    $("readout").textContent = `row ${Math.floor(y * item.rows)}, column ${Math.floor(x * item.columns)}: ${how} ${Math.round(levels[level])} HU; ${named}`;
  }

  function scores(item) {
    const unit = item.row.spacing_y_mm !== null ? "mm" : "px";
    const lines = [
      ["Dice", (n) => show(item.row[n + "_dice"], 3)],
      ["IoU", (n) => show(item.row[n + "_iou"], 3)],
      [`HD95 ${unit}`, (n) => show(item.row[`${n}_hd95_${unit}`], 2)],
      [`ASSD ${unit}`, (n) => show(item.row[`${n}_assd_${unit}`], 2)],
      [`Surface Dice 1 ${unit}`, (n) => show(item.row[`${n}_surface_dice_1${unit}`], 3)],
      [`Surface Dice 2 ${unit}`, (n) => show(item.row[`${n}_surface_dice_2${unit}`], 3)],
      ["Truth px", (n) => show(item.row[n + "_reference_px"], 0)],
      ["Predicted px", (n) => show(item.row[n + "_predicted_px"], 0)],
      ["Status", (n) => String(item.row[n + "_status"]).replaceAll("_", " ")],
    ];
    const body = $("item-scores");
    body.replaceChildren();
    for (const [title, value] of lines) {
      const row = body.insertRow();
      const head = document.createElement("th");
      head.scope = "row";
      head.textContent = title;
      row.appendChild(head);
      classes.forEach((each) => { row.insertCell().textContent = value(each.name); });
    }
  }

  function key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (/^(SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    const range = event.target.type === "range" || event.target.type === "radio";
    const arrows = !range && (root.contains(event.target) || !$("strip"));
    const steps = { n: 1, b: -1, ...(arrows && { ArrowRight: 1, ArrowLeft: -1 }), ...(arrows && !$("strip") && { ArrowUp: 1, ArrowDown: -1, PageUp: 10, PageDown: -10 }) };
    const boxes = { t: "show-truth", p: "show-prediction" };
    const fills = { d: "difference", o: "prediction" };
    if (steps[event.key]) step(steps[event.key]);
    else if (windows.length > 1 && windows[Number(event.key) - 1]) chooseWindow(Number(event.key) - 1);
    else if ($(boxes[event.key])) { $(boxes[event.key]).checked ^= true; draw(); }
    else if ($("fill-" + fills[event.key])) { $("fill-" + (fill() === fills[event.key] ? "none" : fills[event.key])).checked = true; draw(); }
    else return;
    event.preventDefault();
  }

  // A link to an item, or a row of a table whose first link is one, shows it; one to a nodule, its coronal plane too.
  function follow(event) {
    const link = event.target.closest('a[href^="#"]') || event.target.closest("tr")?.querySelector('a[href^="#"]');
    const key = link ? link.getAttribute("href").slice(1) : "";
    const found = marks.find((each) => each.key === key);
    const index = found ? found.item : items.findIndex((each) => each.key === key);
    if (index < 0) return;
    event.preventDefault();
    if (found && coronals.length) coronal = coronals[found.coronal];
    if (index === current) draw();
    select(index);
    root.scrollIntoView();
  }

  function chooseWindow(index) {
    chosenWindow = index;
    document.querySelectorAll("[data-window]").forEach((each) => each.setAttribute("aria-pressed", String(Number(each.dataset.window) === index)));
    draw();
  }

  if ($("strip")) items.forEach(thumbnail);
  root.addEventListener("input", (event) => { if (event.target.id === "position") select(Number(event.target.value)); else draw(); });
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  $("picture").addEventListener("pointermove", point);
  $("picture").addEventListener("pointerdown", point);
  if ($("position")) $("picture").addEventListener("wheel", (event) => { event.preventDefault(); step(event.deltaY > 0 ? -1 : 1); }, { passive: false });
  if (coronal) $("coronal").addEventListener("click", (event) => select(Math.floor((1 - place(event)[0]) * items.length)));
  document.querySelectorAll("[data-window]").forEach((each) => each.addEventListener("click", () => chooseWindow(Number(each.dataset.window))));
  document.addEventListener("keydown", key);
  document.addEventListener("click", follow);
  select(start);
})();
