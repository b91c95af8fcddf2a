"use strict";
(function () {
  const data = document.getElementById("case-data");
  const root = document.getElementById("viewer");
  if (!data || !root) return;
  const cases = JSON.parse(data.textContent);
  const NS = "http://www.w3.org/2000/svg";
  const CLASSES = ["left_lung", "right_lung", "nodule"];
  const NAMES = ["background", "left lung", "right lung", "nodule"];
  const COLORS = { left_lung: "#d6303a", right_lung: "#1f9d55", nodule: "#2563eb", difference: "#f5c400" };
  const $ = (id) => document.getElementById(id);
  let current = 0;
  let pixels = null;

  function make(name, attributes, parent) {
    const node = document.createElementNS(NS, name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    if (parent) parent.appendChild(node);
    return node;
  }

  function picture(item) {
    const svg = make("svg", { viewBox: `0 0 ${item.columns} ${item.rows}`, preserveAspectRatio: "xMidYMid meet" });
    make("image", { href: item.ct, x: 0, y: 0, width: item.columns, height: item.rows, preserveAspectRatio: "none" }, svg);
    return svg;
  }

  function path(d, attributes, parent) {
    if (d) make("path", Object.assign({ d: d, "fill-rule": "evenodd" }, attributes), parent);
  }

  function line(color, dashed) {
    const style = { fill: "none", stroke: color, "stroke-width": 1.6, "vector-effect": "non-scaling-stroke" };
    return dashed ? Object.assign(style, { "stroke-dasharray": "5 3" }) : style;
  }

  function show(value, digits) {
    return value === null || value === undefined ? "n/a" : Number(value).toFixed(digits);
  }

  function thumbnail(item, index) {
    const button = document.createElement("button");
    button.type = "button";
    const svg = picture(item);
    svg.setAttribute("aria-hidden", "true");
    for (const name of CLASSES) path(item.prediction[name], { fill: COLORS[name], "fill-opacity": 0.45 }, svg);
    path(item.difference, { fill: COLORS.difference, "fill-opacity": 0.95 }, svg);
    button.appendChild(svg);
    for (const reason of item.reasons) {
      const [name, rank] = reason.split(": ");
      const span = document.createElement("span");
      const dice = item.row[name + "_dice"];
      span.textContent = `${name.replace("_", " ")}: ${rank}` + (dice === null ? "" : ` ${show(dice, 3)}`);
      button.appendChild(span);
    }
    button.title = item.id;
    button.addEventListener("click", () => select(index));
    $("strip").appendChild(button);
  }

  function select(index) {
    current = (index + cases.length) % cases.length;
    const item = cases[current];
    Array.from($("strip").children).forEach((button, i) => button.setAttribute("aria-pressed", String(i === current)));
    $("case-title").textContent = `${item.id} (${current + 1} of ${cases.length}): ${item.reasons.join("; ").replace(/_/g, " ")}`;
    pixels = null;
    decode(item, current);
    draw();
    scores(item);
    $("readout").textContent = size(item);
  }

  function size(item) {
    const y = item.row.spacing_y_mm;
    const known = y !== null ? `pixel ${show(y, 3)} x ${show(item.row.spacing_x_mm, 3)} mm` : "pixel size unknown";
    return `${item.rows} x ${item.columns} pixels, ${known}, window ${item.window[0]} to ${item.window[1]} HU`;
  }

  function draw() {
    const item = cases[current];
    const svg = picture(item);
    const zoom = $("zoom").value;
    if (zoom === "fit") svg.style.width = "100%";
    else { svg.style.width = `${item.columns * zoom}px`; svg.style.maxWidth = "none"; }
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `CT of ${item.id} with outlines`);
    const opacity = $("opacity").value / 100;
    $("opacity-value").textContent = `${$("opacity").value} %`;
    const fill = document.querySelector('input[name="fill"]:checked').value;
    const shown = CLASSES.filter((name) => $("class-" + name).checked);
    if (fill === "difference") path(item.difference, { fill: COLORS.difference, "fill-opacity": opacity }, svg);
    else if (fill !== "none") shown.forEach((name) => path(item[fill][name], { fill: COLORS[name], "fill-opacity": opacity }, svg));
    if ($("show-truth").checked) shown.forEach((name) => path(item.truth[name], line(COLORS[name], false), svg));
    if ($("show-prediction").checked) shown.forEach((name) => path(item.prediction[name], line(COLORS[name], true), svg));
    svg.addEventListener("pointermove", read);
    svg.addEventListener("pointerdown", read);
    $("picture").replaceChildren(svg);
  }

  function decode(item, index) {
    const wanted = [item.ct, item.codes].map((uri) => new Promise((resolve, reject) => {
      const image = new Image();
      image.onload = () => {
        const canvas = document.createElement("canvas");
        canvas.width = item.columns;
        canvas.height = item.rows;
        const context = canvas.getContext("2d", { willReadFrequently: true });
        context.drawImage(image, 0, 0);
        resolve(context.getImageData(0, 0, item.columns, item.rows).data);
      };
      image.onerror = reject;
      image.src = uri;
    }));
    Promise.all(wanted).then((both) => { if (index === current) pixels = both; }, () => { pixels = null; });
  }

  function read(event) {
    const item = cases[current];
    const box = event.currentTarget.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left) / box.width * item.columns);
    const row = Math.floor((event.clientY - box.top) / box.height * item.rows);
    if (!pixels || row < 0 || column < 0 || row >= item.rows || column >= item.columns) return;
    const at = 4 * (row * item.columns + column);
    const hu = Math.round(item.window[0] + pixels[0][at] / 255 * (item.window[1] - item.window[0]));
    const clipped = pixels[0][at] === 0 ? "at most " : pixels[0][at] === 255 ? "at least " : "about ";
    const code = pixels[1][at];
    $("readout").textContent = `row ${row}, column ${column}: ${clipped}${hu} HU; truth ${NAMES[code >> 4]}, prediction ${NAMES[code & 15]}`;
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
      ["Status", (n) => String(item.row[n + "_status"]).replace("_", " ")],
    ];
    const body = $("case-scores");
    body.replaceChildren();
    for (const [title, value] of lines) {
      const row = body.insertRow();
      const head = document.createElement("th");
      head.scope = "row";
      head.textContent = title;
      row.appendChild(head);
      CLASSES.forEach((name) => { row.insertCell().textContent = value(name); });
    }
  }

  function key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (/^(SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    const range = event.target.type === "range" || event.target.type === "radio";
    const toggles = { t: "show-truth", p: "show-prediction" };
    if (event.key === "n" || (event.key === "ArrowRight" && root.contains(event.target) && !range)) select(current + 1);
    else if (event.key === "b" || (event.key === "ArrowLeft" && root.contains(event.target) && !range)) select(current - 1);
    else if (toggles[event.key]) { const box = $(toggles[event.key]); box.checked = !box.checked; draw(); }
    else if (event.key === "d") {
      const on = $("fill-difference").checked;
      $(on ? "fill-none" : "fill-difference").checked = true;
      draw();
    } else return;
    event.preventDefault();
  }

  cases.forEach(thumbnail);
  root.addEventListener("input", draw);
  $("previous").addEventListener("click", () => select(current - 1));
  $("next").addEventListener("click", () => select(current + 1));
  document.addEventListener("keydown", key);
  select(0);
  root.dataset.ready = "yes";
})();
