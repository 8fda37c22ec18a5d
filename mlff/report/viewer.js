"use strict";
// A viewer of structures on a canvas: spheres and bonds sorted by depth, cell edges, arrows of force errors.
// Drag or arrow keys rotate, wheel, two fingers or + and - zoom, a click names an atom.
(function () {
  const canvas = document.getElementById("viewer");
  if (!canvas) return;
  const data = JSON.parse(document.getElementById("structures").textContent);
  const pen = canvas.getContext("2d");
  const arrowsBox = document.getElementById("arrows");
  const caption = document.getElementById("viewer-caption");
  const picked = document.getElementById("viewer-atom");
  const buttons = Array.from(document.querySelectorAll("button[data-structure]"));
  const BOND = 1.2; // of the sum of the covalent radii
  const LONGEST = 1.6; // Å, the longest arrow
  const SPHERE = 0.45, LEAST = 0.2; // of the covalent radius, Å
  let shown, view, zoom, drawn = [];

  const dot = (m, v) => [0, 3, 6].map((k) => m[k] * v[0] + m[k + 1] * v[1] + m[k + 2] * v[2]);
  const length = (v) => Math.hypot(v[0], v[1], v[2]);
  const sum = (a, b, factor) => [a[0] + factor * b[0], a[1] + factor * b[1], a[2] + factor * b[2]];
  const triples = (flat) => Array.from({ length: flat.length / 3 }, (_, k) => flat.slice(3 * k, 3 * k + 3));

  function look(symbol) {
    const { colour, radius } = data.elements[symbol];
    return { colour, radius, size: Math.max(LEAST, SPHERE * radius) };
  }

  function select(number) {
    const item = data.structures[number];
    const atoms = triples(item.positions).map((r, k) => ({ r, symbol: item.symbols[k], ...look(item.symbols[k]) }));
    const cell = item.cell ? triples(item.cell) : [];
    const corners = item.cell ? [0, 1, 2, 3, 4, 5, 6, 7].map((bits) =>
      cell.reduce((at, vector, k) => sum(at, vector, (bits >> k) & 1), [0, 0, 0])) : [];
    const all = corners.concat(atoms.map((atom) => atom.r));
    const low = [0, 1, 2].map((k) => Math.min(...all.map((r) => r[k])));
    const high = [0, 1, 2].map((k) => Math.max(...all.map((r) => r[k])));
    const middle = sum(low, high, 1).map((x) => x / 2);
    for (const atom of atoms) atom.r = sum(atom.r, middle, -1);
    const errors = item.errors ? triples(item.errors) : null;
    const largest = errors ? Math.max(...errors.map(length)) : 0;
    shown = {
      atoms, errors, bonds: findBonds(atoms), edges: findEdges(corners.map((r) => sum(r, middle, -1))),
      stretch: largest > 0 ? LONGEST / largest : 0,
    };
    const tips = errors ? atoms.map((atom, k) => length(sum(atom.r, errors[k], shown.stretch))) : [];
    shown.radius = Math.max(1.5, ...tips, ...all.map((r) => length(sum(r, middle, -1)))) + 0.5;
    view = item.view.slice();
    zoom = 1;
    picked.textContent = "";
    caption.textContent = item.caption + (largest > 0 ? "; longest arrow " + largest.toPrecision(3) + " eV/Å" : "");
    arrowsBox.disabled = !errors;
    for (const button of buttons) button.setAttribute("aria-pressed", String(Number(button.dataset.structure) === number));
    draw();
  }

  function findBonds(atoms) {
    const bonds = [];
    for (let a = 0; a < atoms.length; a++)
      for (let b = 0; b < a; b++)
        if (length(sum(atoms[a].r, atoms[b].r, -1)) < BOND * (atoms[a].radius + atoms[b].radius)) bonds.push([a, b]);
    return bonds;
  }

  function findEdges(corners) {
    const edges = [];
    for (let a = 0; a < corners.length; a++)
      for (const bit of [1, 2, 4]) if (!(a & bit)) edges.push([corners[a], corners[a | bit]]);
    return edges;
  }

  function mix(colour, other, share) {
    return "rgb(" + colour.map((x, k) => Math.round(x + (other[k] - x) * share)).join(",") + ")";
  }

  function draw() {
    const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
    if (!width || !shown) return;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    const style = getComputedStyle(canvas);
    const paper = style.backgroundColor.match(/[\d.]+/g).slice(0, 3).map(Number), ink = style.color;
    const orange = style.getPropertyValue("--orange");
    const scale = (zoom * 0.5 * Math.min(width, height)) / shown.radius;
    const place = (r) => { const [x, y, z] = dot(view, r); return [width / 2 + scale * x, height / 2 - scale * y, z]; };
    const fog = (z) => Math.min(0.55, Math.max(0, 0.3 - (0.35 * z) / shown.radius));

    pen.strokeStyle = ink;
    pen.globalAlpha = 0.45;
    pen.lineWidth = 1;
    pen.beginPath();
    for (const [a, b] of shown.edges) {
      pen.moveTo(...place(a).slice(0, 2));
      pen.lineTo(...place(b).slice(0, 2));
    }
    pen.stroke();
    pen.globalAlpha = 1;

    const parts = [];
    drawn = shown.atoms.map((atom, number) => {
      const [x, y, z] = place(atom.r);
      const spot = { x, y, z, size: scale * atom.size, number };
      parts.push({ z, paint: () => sphere(spot, atom.colour, paper, fog(z)) });
      return spot;
    });
    for (const [a, b] of shown.bonds) {
      const middle = sum(drawn3(a), sum(drawn3(b), drawn3(a), -1), 0.5);
      const half = length(sum(shown.atoms[a].r, shown.atoms[b].r, -1)) / 2;
      for (const end of [a, b]) {
        const inside = Math.min(1, (0.9 * shown.atoms[end].size) / half);
        const start = sum(drawn3(end), sum(middle, drawn3(end), -1), inside), z = (start[2] + middle[2]) / 2;
        parts.push({ z, paint: () => rod(start, middle, scale, mix(shown.atoms[end].colour, paper, fog(z)), ink) });
      }
    }
    if (shown.errors && arrowsBox.checked)
      shown.errors.forEach((error, k) => {
        const tip = place(sum(shown.atoms[k].r, error, shown.stretch));
        parts.push({ z: Math.max(tip[2], drawn[k].z) + 0.05, paint: () => arrow(drawn[k], tip, orange) });
      });
    parts.sort((a, b) => a.z - b.z);
    for (const part of parts) part.paint();
  }

  const drawn3 = (k) => [drawn[k].x, drawn[k].y, drawn[k].z];

  function sphere(spot, colour, paper, fog) {
    const light = pen.createRadialGradient(
      spot.x - 0.35 * spot.size, spot.y - 0.4 * spot.size, 0.05 * spot.size, spot.x, spot.y, spot.size);
    const base = colour.map((x, k) => x + (paper[k] - x) * fog);
    light.addColorStop(0, mix(base, [255, 255, 255], 0.7));
    light.addColorStop(0.45, mix(base, base, 0));
    light.addColorStop(1, mix(base, [0, 0, 0], 0.45));
    pen.fillStyle = light;
    pen.beginPath();
    pen.arc(spot.x, spot.y, spot.size, 0, 2 * Math.PI);
    pen.fill();
  }

  function rod(from, to, scale, colour, ink) {
    pen.lineCap = "butt";
    for (const [width, stroke, alpha] of [[0.24, ink, 0.35], [0.19, colour, 1]]) {
      pen.globalAlpha = alpha;
      pen.strokeStyle = stroke;
      pen.lineWidth = scale * width;
      pen.beginPath();
      pen.moveTo(from[0], from[1]);
      pen.lineTo(to[0], to[1]);
      pen.stroke();
    }
    pen.globalAlpha = 1;
  }

  function arrow(from, tip, colour) {
    const x = tip[0] - from.x, y = tip[1] - from.y, size = Math.hypot(x, y);
    if (size < 2) return;
    const head = Math.min(10, 0.5 * size), u = x / size, v = y / size;
    const neck = [tip[0] - head * u, tip[1] - head * v];
    pen.strokeStyle = pen.fillStyle = colour;
    pen.lineWidth = 2.5;
    pen.beginPath();
    pen.moveTo(from.x, from.y);
    pen.lineTo(neck[0], neck[1]);
    pen.stroke();
    pen.beginPath();
    pen.moveTo(tip[0], tip[1]);
    pen.lineTo(neck[0] - 0.45 * head * v, neck[1] + 0.45 * head * u);
    pen.lineTo(neck[0] + 0.45 * head * v, neck[1] - 0.45 * head * u);
    pen.fill();
  }

  function turn(right, up) {
    const [c, s, d, t] = [Math.cos(right), Math.sin(right), Math.cos(up), Math.sin(up)];
    const rotation = [c, 0, s, s * t, d, -c * t, -s * d, t, c * d];
    const columns = [0, 1, 2].map((k) => dot(rotation, [view[k], view[k + 3], view[k + 6]]));
    view = [0, 1, 2].flatMap((row) => columns.map((column) => column[row]));
    draw();
  }

  function enlarge(factor) {
    zoom = Math.min(20, Math.max(0.3, zoom * factor));
    draw();
  }

  function name(x, y) {
    const hits = drawn.filter((spot) => Math.hypot(spot.x - x, spot.y - y) < Math.max(spot.size, 6));
    if (!hits.length) { picked.textContent = ""; return; }
    const number = hits.reduce((a, b) => (b.z > a.z ? b : a)).number;
    const error = shown.errors ? ": force error " + length(shown.errors[number]).toPrecision(3) + " eV/Å" : "";
    picked.textContent = shown.atoms[number].symbol + " " + number + error;
  }

  const fingers = new Map();
  let moved = 0, spread = 0;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, [event.offsetX, event.offsetY]);
    moved = spread = 0;
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const [right, down] = [event.offsetX - before[0], event.offsetY - before[1]];
    fingers.set(event.pointerId, [event.offsetX, event.offsetY]);
    moved += Math.hypot(right, down);
    if (fingers.size === 1) turn(0.01 * right, 0.01 * down);
    else {
      const [[a, b], [c, d]] = [...fingers.values()], now = Math.hypot(a - c, b - d);
      if (spread) enlarge(now / spread);
      spread = now;
    }
  });
  for (const kind of ["pointerup", "pointercancel"])
    canvas.addEventListener(kind, (event) => {
      fingers.delete(event.pointerId);
      spread = 0;
      if (kind === "pointerup" && moved < 4) name(event.offsetX, event.offsetY);
    });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    enlarge(Math.exp(-0.0015 * event.deltaY));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] };
    if (steps[event.key]) turn(...steps[event.key]);
    else if (event.key === "+" || event.key === "-") enlarge(event.key === "+" ? 1.1 : 1 / 1.1);
    else return;
    event.preventDefault();
  });
  arrowsBox.addEventListener("change", draw);
  for (const button of buttons)
    button.addEventListener("click", () => {
      select(Number(button.dataset.structure));
      canvas.scrollIntoView({ block: "nearest" });
    });
  window.addEventListener("resize", draw);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  select(0);
})();
