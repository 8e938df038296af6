// Layers, heads and tokens are counted from zero here, from one in what is shown and in the address.
const data = JSON.parse(document.getElementById("data").textContent);
const views = await Promise.all(data.observations.map(unpack));
const state = { view: 0, layer: 0, head: 0, pinned: null };
const dark = matchMedia("(prefers-color-scheme: dark)");
const $ = (id) => document.getElementById(id);
let colours, plot; // the colour of each weight; where the map lies on its canvas

// An observation with its weights as maps[layer][head], whole numbers of 1/unit in rows of keys.
async function unpack(observation) {
  const bytes = Uint8Array.from(atob(observation.weights), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const weights = new Uint16Array(await new Response(stream).arrayBuffer());
  const size = observation.queries.length * observation.keys.length;
  let start = 0;
  const next = () => weights.subarray(start, (start += size));
  return { ...observation, maps: observation.entropy.map((layer) => layer.map(next)) };
}

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

const view = () => views[state.view];
const map = () => view().maps[state.layer][state.head];
const weight = (query, key) => map()[query * view().keys.length + key] / data.unit;
const range = (count) => [...Array(count).keys()];
const clamp = (value, count) => Math.min(Math.max(Number.isFinite(value) ? value : 0, 0), count - 1);

// Colours: the square root spreads the small weights of long sequences, an exact zero is the card itself.
function mixColours() {
  const stops = getComputedStyle(document.documentElement).getPropertyValue("--ramp").split(",");
  const ramp = stops.map((stop) => [1, 3, 5].map((at) => parseInt(stop.trim().slice(at, at + 2), 16)));
  colours = range(data.unit + 1).map((units) => {
    const place = Math.sqrt(units / data.unit) * (ramp.length - 1);
    const below = Math.min(Math.floor(place), ramp.length - 2);
    return ramp[below].map((c, i) => Math.round(c + (ramp[below + 1][i] - c) * (place - below)));
  });
}

function paint(node, share) {
  const [r, g, b] = colours[Math.round(share * data.unit)];
  node.style.background = `rgb(${r}, ${g}, ${b})`;
  node.style.color = 0.3 * r + 0.59 * g + 0.11 * b > 140 ? "#1b1820" : "#ffffff";
}

// A canvas with one pixel per weight.
function picture(weights, T, S) {
  const canvas = element("canvas", { width: S, height: T });
  const pixels = new ImageData(S, T);
  weights.forEach((units, i) => pixels.data.set([...colours[units], 255], 4 * i));
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

// The overviews: a row of buttons per layer, a column per head.
function drawGrid(id, fill) {
  const heads = Math.max(...view().maps.map((layer) => layer.length));
  const cells = [element("span"), ...range(heads).map((head) => element("span", { textContent: head + 1 }))];
  view().maps.forEach((layer, l) => {
    cells.push(element("span", { textContent: l + 1 }));
    for (const h of range(heads)) {
      const button = element("button", { title: `layer ${l + 1}, head ${h + 1}` });
      button.ariaLabel = `${id} of ${button.title}`;
      Object.assign(button.dataset, { layer: l, head: h });
      if (h < layer.length) fill(button, l, h);
      cells.push(h < layer.length ? button : element("span"));
    }
  });
  $(id).style.gridTemplateColumns = `1.2rem repeat(${heads}, minmax(20px, 72px))`;
  $(id).replaceChildren(...cells);
}

function drawView() {
  const { queries, keys, entropy } = view();
  drawGrid("maps", (button, l, h) => button.append(picture(view().maps[l][h], queries.length, keys.length)));
  const most = Math.log2(keys.length) || 1, places = entropy[0].length > 9 ? 1 : 2;
  drawGrid("entropy", (button, l, h) => {
    button.textContent = entropy[l][h].toFixed(places);
    paint(button, Math.min(entropy[l][h] / most, 1) ** 2);
  });
  $("range").textContent = `bits: 0 one token, ${Math.log2(keys.length).toFixed(1)} all ${keys.length} alike`;
  for (const [i, tab] of [...$("tabs").children].entries()) tab.ariaSelected = i === state.view;
  const strip = (tokens, name) =>
    element("dd", {}, ...tokens.map((token, i) => {
      const node = element("i", { textContent: token });
      node.dataset[name] = i;
      return node;
    }));
  const term = (text) => element("dt", { textContent: text });
  const lines = view().same
    ? [term("tokens"), strip(queries, "query")]
    : [term(view().query_label), strip(queries, "query"), term(view().key_label), strip(keys, "key")];
  $("tokens").replaceChildren(element("dl", {}, ...lines));
  drawHead();
}

function drawHead() {
  for (const button of document.querySelectorAll(".grid button")) {
    button.ariaPressed = button.dataset.layer == state.layer && button.dataset.head == state.head;
  }
  const bits = view().entropy[state.layer][state.head];
  $("name").textContent = `Layer ${state.layer + 1}, head ${state.head + 1}`;
  $("about").textContent = `${view().title}. Entropy ${bits.toFixed(2)} bits: as if spread over ${(2 ** bits).toFixed(1)} tokens.`;
  drawMap();
  point(null);
}

function drawMap() {
  const { queries, keys } = view(), [T, S] = [queries.length, keys.length];
  const style = getComputedStyle(document.body), brush = $("map").getContext("2d");
  const font = `12px ${style.getPropertyValue("--mono")}`;
  const short = (token) => (token.length > 14 ? `${token.slice(0, 13)}…` : token);
  brush.font = font;
  const widest = (tokens) => Math.ceil(Math.max(...tokens.map((token) => brush.measureText(short(token)).width)));
  const [left, top] = [widest(queries) + 34, widest(keys) + 34];
  const room = $("chosen").clientWidth - left - 2;
  const cell = Math.max(Math.min(room / S, 720 / T, 30), 2);
  plot = { left, top, cell };
  const across = Math.max(cell * S, brush.measureText(view().key_label).width);
  const down = Math.max(cell * T, brush.measureText(view().query_label).width);
  const [width, height] = [left + across + 1, top + down + 1];
  const sharp = devicePixelRatio || 1;
  Object.assign($("map"), { width: Math.ceil(width * sharp), height: Math.ceil(height * sharp) });
  Object.assign($("map").style, { width: `${width}px`, height: `${height}px` });
  brush.scale(sharp, sharp);
  brush.imageSmoothingEnabled = false;
  brush.drawImage(picture(map(), T, S), left, top, cell * S, cell * T);
  brush.strokeStyle = style.getPropertyValue("--line");
  brush.strokeRect(left - 0.5, top - 0.5, cell * S + 1, cell * T + 1);
  const write = (text, x, y, turn, align, baseline = "middle") => {
    brush.save();
    brush.translate(x, y);
    brush.rotate(turn);
    Object.assign(brush, { textAlign: align, textBaseline: baseline });
    brush.fillText(text, 0, 0);
    brush.restore();
  };
  const every = Math.ceil(14 / cell); // names that do not fit are left out
  Object.assign(brush, { font, fillStyle: style.getPropertyValue("--ink") });
  queries.forEach((token, i) => i % every || write(short(token), left - 7, top + (i + 0.5) * cell, 0, "right"));
  const how = keys.every((token) => token.length === 1) ? [0, "center"] : [-Math.PI / 2, "left"];
  keys.forEach((token, i) => i % every || write(short(token), left + (i + 0.5) * cell, top - 9, ...how));
  Object.assign(brush, { font: `12px ${style.fontFamily}`, fillStyle: style.getPropertyValue("--soft") });
  write(view().key_label, left, 2, 0, "left", "top");
  write(view().query_label, 2, top, -Math.PI / 2, "right", "top");
}

// Show what a query attends to, or which queries attend to a key; nothing: the pinned token, or none.
function point(query, key = null) {
  if (query === null && key === null) query = state.pinned;
  const { queries, keys, same } = view();
  const backwards = query === null && key !== null;
  for (const node of $("tokens").querySelectorAll("i")) {
    const asQuery = "query" in node.dataset, i = Number(asQuery ? node.dataset.query : node.dataset.key);
    const shown = backwards ? asQuery : query !== null && (same || !asQuery);
    node.style.background = node.style.color = "";
    if (shown) paint(node, backwards ? weight(i, key) : weight(query, i));
    node.classList.toggle("looking", asQuery ? i === query : backwards && i === key);
    node.classList.toggle("pinned", asQuery && i === state.pinned);
  }
  read(query, key);
  const { left, top, cell } = plot, [T, S] = [queries.length, keys.length];
  place("row", query !== null, left, top + query * cell, S * cell, cell);
  if (backwards) place("row", true, left + key * cell, top, cell, T * cell);
  place("cell", query !== null && key !== null, left + key * cell, top + query * cell, cell, cell);
}

function place(id, shown, left, top, width, height) {
  $(id).hidden = !shown;
  const box = { left: left - 1, top: top - 1, width: width + 2, height: height + 2 };
  for (const side in box) $(id).style[side] = `${box[side]}px`;
}

function read(query, key) {
  const { queries, keys } = view();
  const name = (tokens, i) => element("b", { textContent: tokens[i] }, element("sub", { textContent: i + 1 }));
  if (query === null && key === null) {
    $("reading").replaceChildren("Point at a token to see what it attends to; click it to keep it.");
    return;
  }
  const backwards = query === null;
  const shares = backwards ? queries.map((_, i) => weight(i, key)) : keys.map((_, i) => weight(query, i));
  let best = range(shares.length).filter((i) => shares[i] > 0);
  best = best.sort((a, b) => shares[b] - shares[a]).slice(0, 5);
  if (!backwards && key !== null) best = [key];
  const list = best.flatMap((i, n) => [n ? ", " : " ", name(backwards ? queries : keys, i), ` ${shares[i].toFixed(3)}`]);
  const verb = backwards ? " is attended to by" : " attends to";
  $("reading").replaceChildren(backwards ? name(keys, key) : name(queries, query), verb, ...(best.length ? list : [" nothing"]));
}

// The address says what is shown: #map=cross&layer=2&head=1&query=5.
function choose(change) {
  const { view: before } = state;
  Object.assign(state, change);
  state.view = clamp(state.view, views.length);
  state.layer = clamp(state.layer, view().maps.length);
  state.head = clamp(state.head, view().maps[state.layer].length);
  if (state.view !== before || state.pinned >= view().queries.length) state.pinned = change.pinned ?? null;
  if (state.pinned !== null) state.pinned = clamp(state.pinned, view().queries.length);
  const query = state.pinned === null ? "" : `&query=${state.pinned + 1}`;
  history.replaceState(null, "", `#map=${view().name}&layer=${state.layer + 1}&head=${state.head + 1}${query}`);
  state.view === before ? drawHead() : drawView();
}

function follow() {
  const said = new URLSearchParams(location.hash.slice(1));
  const index = (name) => (said.has(name) ? Number(said.get(name)) - 1 : 0);
  const named = views.findIndex((candidate) => candidate.name === said.get("map"));
  choose({ view: named, layer: index("layer"), head: index("head"), pinned: said.has("query") ? index("query") : null });
}

const under = (event, names) => {
  const node = event.target.closest(names.map((name) => `[data-${name}]`).join());
  return node && Object.fromEntries(Object.entries(node.dataset).map(([name, value]) => [name, Number(value)]));
};

function cellUnder(event) {
  const query = Math.floor((event.offsetY - plot.top) / plot.cell), key = Math.floor((event.offsetX - plot.left) / plot.cell);
  const inside = query >= 0 && key >= 0 && query < view().queries.length && key < view().keys.length;
  return inside ? { query, key } : null;
}

const pin = (query) => choose({ pinned: state.pinned === query ? null : query });
$("tokens").onmouseover = (event) => {
  const token = under(event, ["query", "key"]);
  if (token) point(token.query ?? null, token.key ?? null);
};
$("tokens").onclick = (event) => {
  const token = under(event, ["query"]);
  if (token) pin(token.query);
};
$("map").onmousemove = (event) => {
  const cell = cellUnder(event);
  cell ? point(cell.query, cell.key) : point(null);
};
$("map").onclick = (event) => {
  const cell = cellUnder(event);
  if (cell) pin(cell.query);
};
$("tokens").onmouseleave = $("map").onmouseleave = () => point(null);
$("overview").onclick = (event) => {
  const head = under(event, ["head"]);
  if (head) choose(head);
};
onkeydown = (event) => {
  const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (event.key === "Escape") choose({ pinned: null });
  if (!step || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  choose({ layer: state.layer + step[0], head: state.head + step[1] });
};
onhashchange = follow;
onresize = () => (drawMap(), point(null));
dark.onchange = () => (mixColours(), drawView());

$("tabs").append(...views.map(({ title }, i) =>
  element("button", { textContent: title, role: "tab", onclick: () => choose({ view: i }) })));
$("tabs").hidden = views.length < 2;
$("scale").append(...[0, 0.01, 0.1, 0.25, 0.5, 1].map((share) => {
  const tick = element("i", { textContent: share });
  tick.style.left = `${100 * Math.sqrt(share)}%`;
  return tick;
}));
mixColours();
state.view = -1; // so that the first choice draws everything
follow();
