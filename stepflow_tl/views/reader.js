// @ts-check
// The reader's script: text, arcs and map of one trace, or of two side by side.
// All text is untrusted: it enters the page as text nodes, never as markup.

/** @typedef {["t", string] | ["m", Tree, boolean]} Run */
/** @typedef {[string, Record<string, string>, Array<any>]} Tree */
/**
 * @typedef {{step?: number, frame?: string, segment?: string, runs?: Run[], length?: number,
 *   labels?: Record<string, string>, tokens?: Array<[string, number]>}} Item
 * @typedef {{name: string, settings: string[][], layers: number[],
 *   bands: Record<string, number[]>, planes: Array<[number, number | null]>, signed: boolean,
 *   measures: Record<string, Array<number | null>>, audit: string[]}} MapFacts
 * @typedef {{name: string, facts: string[][], items: Item[],
 *   values: Record<string, Array<number | null>>, fired: number[],
 *   ledger: Table | null, maps: MapFacts[]}} SideFacts
 * @typedef {{columns: string[], rows: string[][]}} Table
 * @typedef {{title: string, version: string, sides: SideFacts[], table?: Table,
 *   text?: string[]}} Facts
 * @typedef {{step: number, weight: number}} Link
 */

const KINDS = 8; // colors of labels in the style sheet
const MOST_KINDS = 24; // values of a label that colors steps; one of more is in their tooltips alone
const LONGEST = 6000; // characters of a step that are shown before one asks for the rest
const SVG = "http://www.w3.org/2000/svg";
const MATHML = "http://www.w3.org/1998/Math/MathML";

// ---------------------------------------------------------------- elements

/**
 * An element with properties and children; strings become text.
 * @param {string} tag
 * @param {Record<string, any>} [set]
 * @param {...(Node | string)} children
 * @returns {HTMLElement}
 */
function el(tag, set = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(set)) {
    if (name.includes("-") || name === "role" || name === "for") made.setAttribute(name, value);
    else Reflect.set(made, name, value);
  }
  made.append(...children);
  return made;
}

/**
 * @param {string} tag
 * @param {Record<string, string | number>} attributes
 * @param {...(Node | string)} children
 */
function svg(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  made.append(...children);
  return made;
}

/** @param {Tree} tree @returns {Element} */
function math([tag, attributes, children]) {
  const made = document.createElementNS(MATHML, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children.map((child) => (typeof child === "string" ? child : math(child))));
  return made;
}

/** @param {number} value */
const shown = (value) =>
  value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(1) : value.toFixed(3);

// ---------------------------------------------------------------- data

/** What was deflated into the page under an id. @param {string} id */
async function inflated(id) {
  const packed = document.getElementById(id)?.textContent ?? "";
  const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Where row i of a lower triangle begins. @param {number} i */
const rowStart = (i) => (i * (i + 1)) / 2;

/** The matrices of a map: planes of layers, and of heads where they were kept. */
class MapData {
  /** @param {MapFacts} facts @param {number} count @param {Uint8Array} bytes */
  constructor(facts, count, bytes) {
    this.facts = facts;
    this.count = count;
    this.size = rowStart(count);
    const scales = facts.planes.length * count;
    this.scale = new Float32Array(bytes.slice(0, 4 * scales).buffer);
    this.cells = bytes.subarray(4 * scales);
  }

  /**
   * Numbers of the planes of a choice of layers, and of a head.
   * @param {number | string} layer A layer, or a band's name.
   * @param {number | null} head
   */
  planes(layer, head) {
    const layers = typeof layer === "number" ? [layer] : (this.facts.bands[layer] ?? []);
    return this.facts.planes.flatMap(([one, of], plane) =>
      layers.includes(one) && of === head ? [plane] : [],
    );
  }

  /**
   * The lower triangle of the mean over planes.
   * @param {number[]} planes
   * @param {string} norm "row", "layer" or "none".
   */
  matrix(planes, norm) {
    const found = new Float32Array(this.size);
    const values = new Float32Array(this.size);
    for (const plane of planes) {
      let whole = 0;
      for (let i = 0; i < this.count; i++) {
        const start = rowStart(i);
        const scale = this.scale[plane * this.count + i];
        let total = 0;
        for (let at = start; at <= start + i; at++) {
          const cell = this.cells[plane * this.size + at];
          const root = (cell & 127) / 127;
          values[at] = (cell & 128 ? -1 : 1) * root * root * scale;
          total += Math.abs(values[at]);
        }
        whole += total;
        if (norm === "row" && total > 0)
          for (let at = start; at <= start + i; at++) values[at] /= total;
      }
      const factor = (norm === "layer" && whole > 0 ? 1 / whole : 1) / planes.length;
      for (let at = 0; at < this.size; at++) found[at] += values[at] * factor;
    }
    return found;
  }
}

/**
 * The chance that a walk from a step passes each earlier one (stepflow_tl.saliency.tracing).
 * @param {Float32Array} matrix
 * @param {number} target
 * @param {boolean[]} ends Steps of the question, where a walk ends.
 */
function passing(matrix, target, ends) {
  const through = new Float64Array(target + 1);
  through[target] = 1;
  for (let i = target; i > 0; i--) {
    if (through[i] === 0 || (ends[i] && i !== target)) continue;
    let total = 0;
    for (let j = 0; j < i; j++) total += Math.abs(matrix[rowStart(i) + j]);
    if (total > 0)
      for (let j = 0; j < i; j++)
        through[j] += (through[i] * Math.abs(matrix[rowStart(i) + j])) / total;
  }
  return through;
}

// ---------------------------------------------------------------- state

/** @param {string} id @returns {Promise<Facts>} */
const read = async (id) => JSON.parse(new TextDecoder().decode(await inflated(id)));

// A table of contents holds what its rows open under a prefix.
const whole = await read("facts");
const row = Number(/^#row=(\d+)$/.exec(location.hash)?.[1] ?? -1);
const prefix = whole.table && row >= 0 && row < whole.table.rows.length ? `row-${row}-` : "";
const facts = prefix ? await read(`${prefix}facts`) : whole;

/** One trace of the page. */
class Side {
  /** @param {SideFacts} given @param {number} number */
  constructor(given, number) {
    this.facts = given;
    this.number = number;
    this.steps = given.items.filter((item) => item.step !== undefined);
    this.isQuestion = this.steps.map((item) => item.segment === "question");
    /** @type {Map<string, MapData>} */
    this.maps = new Map();
    /** @type {HTMLElement[]} */
    this.cards = [];
    /** @type {Float32Array | null} */
    this.matrix = null;
    /** @type {HTMLCanvasElement} */
    this.canvas = /** @type {HTMLCanvasElement} */ (el("canvas", { className: "map" }));
  }

  /** Text of a step, as it is compared and searched. @param {number} step */
  textOf(step) {
    const leaves = (/** @type {any} */ one) =>
      typeof one === "string" ? one : one[2].map(leaves).join("");
    return (this.steps[step].runs ?? [])
      .map((run) => (run[0] === "t" ? run[1] : leaves(run[1])))
      .join("");
  }

  /** @param {string} name */
  async load(name) {
    const index = this.facts.maps.findIndex((one) => one.name === name);
    if (index < 0 || this.maps.has(name)) return;
    const bytes = await inflated(`${prefix}map-${this.number}-${index}`);
    this.maps.set(name, new MapData(this.facts.maps[index], this.steps.length, bytes));
  }
}

const sides = facts.sides.map((given, number) => new Side(given, number));
const [first, second] = sides;
const mapNames = [...new Set(sides.flatMap((side) => side.facts.maps.map((one) => one.name)))];
const valueNames = [...new Set(sides.flatMap((side) => Object.keys(side.facts.values)))];
/** Values of a label, sorted. @param {string} name */
const kindsOf = (name) =>
  [...new Set(sides.flatMap((side) => side.steps.map((one) => one.labels?.[name])))]
    .filter((value) => value !== undefined)
    .sort();

// Labels that say of what kind a step is: of few values, each with a color.
const labelNames = [
  ...new Set(sides.flatMap((side) => side.steps.flatMap((one) => Object.keys(one.labels ?? {})))),
].filter((name) => kindsOf(name).length <= MOST_KINDS);
const parting = sides.length > 1 ? divergence() : -1;
const sameSteps =
  second !== undefined &&
  first.steps.length === second.steps.length &&
  first.steps.every((_, step) => first.textOf(step) === second.textOf(step));

const state = {
  side: 0,
  step: -1,
  locked: false,
  map: mapNames[0] ?? "",
  /** @type {number | string} */
  layer: "all",
  /** @type {number | null} */
  head: null,
  norm: "row",
  threshold: 0.02,
  tracing: false,
  difference: false,
  colorBy: "segment",
  query: "",
};
/** @type {Array<[number, number]>} */
const visited = [];
let matricesOf = "";

// ---------------------------------------------------------------- links

/**
 * The strongest sources (earlier) and targets (later) of a step.
 * @param {Side} side @param {number} step
 * @returns {{sources: Link[], targets: Link[]}}
 */
function linksOf(side, step) {
  const matrix = side.matrix;
  if (!matrix || step < 0) return { sources: [], targets: [] };
  const sources = Array.from({ length: step }, (_, j) => ({
    step: j,
    weight: matrix[rowStart(step) + j],
  }));
  const targets = Array.from({ length: side.steps.length - step - 1 }, (_, n) => ({
    step: step + 1 + n,
    weight: matrix[rowStart(step + 1 + n) + step],
  }));
  const strongest = (/** @type {Link[]} */ links) =>
    links
      .filter((link) => link.weight !== 0 && Math.abs(link.weight) >= state.threshold)
      .sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight))
      .slice(0, 12);
  return { sources: strongest(sources), targets: strongest(targets) };
}

// ---------------------------------------------------------------- text

/** @param {Side} side */
function textOf(side) {
  const list = el("div", {
    className: "text",
    role: "list",
    "aria-label": side.facts.name,
  });
  for (const item of side.facts.items) {
    if (item.step === undefined) {
      list.append(el("pre", { className: "frame" }, item.frame ?? ""));
      continue;
    }
    const step = item.step;
    const body = el("div", { className: "body", dir: "auto" });
    fill(body, item);
    const marks = [`${step}`];
    if (side.facts.fired.includes(step)) marks.push("⚡");
    const kinds = Object.entries(item.labels ?? {}).map(([name, value]) => `${name}: ${value}`);
    const card = el(
      "article",
      {
        className: `step ${item.segment}`,
        tabIndex: -1,
        role: "listitem",
        title: [`${item.segment}, ${item.length} tokens`, ...kinds].join("\n"),
        "data-step": String(step),
      },
      el("span", { className: "number" }, marks.join(" ")),
      body,
    );
    if (parting >= 0 && step >= parting) card.classList.add("diverged");
    if (step === parting) card.prepend(el("p", { className: "split" }, "differs from here"));
    card.addEventListener("click", () => choose(side, step, true));
    card.addEventListener("mouseenter", () => state.locked || choose(side, step, false));
    side.cards[step] = card;
    list.append(card);
  }
  return list;
}

/** The first step that the two sides do not share; -1 for none. */
function divergence() {
  const most = Math.max(first.steps.length, second.steps.length);
  for (let step = 0; step < most; step++)
    if (
      step >= first.steps.length ||
      step >= second.steps.length ||
      first.textOf(step) !== second.textOf(step)
    )
      return step;
  return -1;
}

/** @param {HTMLElement} body @param {Item} item */
function fill(body, item) {
  if (item.tokens) {
    for (const [text, shade] of item.tokens) {
      const token = el("span", { className: shade < 0 ? "token below" : "token" }, text);
      token.style.setProperty("--shade", String(Math.abs(shade)));
      body.append(token);
    }
    return;
  }
  let room = LONGEST;
  for (const run of item.runs ?? []) {
    if (run[0] === "m") body.append(math(run[1]));
    else if (run[1].length <= room) body.append(run[1]);
    else {
      const rest = run[1].slice(room);
      const more = el("button", { className: "more" }, `show ${rest.length} more characters`);
      more.addEventListener("click", (event) => {
        event.stopPropagation();
        more.replaceWith(rest);
      });
      body.append(run[1].slice(0, room), more);
    }
    room = Math.max(0, room - (run[0] === "t" ? run[1].length : 0));
  }
}

// ---------------------------------------------------------------- colors

/** @param {string} name */
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** @param {string} hex @returns {number[]} */
const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

/** A scale of 256 colors through some of the style sheet's. @param {string[]} names */
function ramp(names) {
  const stops = names.map((name) => rgb(css(name)));
  const colors = new Uint8ClampedArray(256 * 4);
  for (let i = 0; i < 256; i++) {
    const at = (i / 255) * (stops.length - 1);
    const low = Math.min(Math.floor(at), stops.length - 2);
    for (let c = 0; c < 3; c++)
      colors[4 * i + c] = stops[low][c] + (at - low) * (stops[low + 1][c] - stops[low][c]);
    colors[4 * i + 3] = 255;
  }
  return colors;
}

/**
 * Where a step's value lies between the smallest and the largest; undefined for none.
 * @param {Side} side @param {Item} item
 */
function shareOf(side, item) {
  const value = side.facts.values[state.colorBy]?.[item.step ?? -1];
  if (value === null || value === undefined) return undefined;
  const all = sides
    .flatMap((one) => one.facts.values[state.colorBy] ?? [])
    .filter((one) => one !== null);
  const [least, most] = [Math.min(...all), Math.max(...all)];
  return most > least ? (value - least) / (most - least) : 1;
}

/**
 * Give an element a step's color: by segment, by a label, or by a value.
 * @param {ElementCSSInlineStyle} element @param {Side} side @param {Item} item
 * @returns {string} The class that has it.
 */
function colorOf(element, side, item) {
  if (!valueNames.includes(state.colorBy)) return colorClass(item);
  const share = shareOf(side, item);
  element.style.setProperty("--share", String(share ?? 0));
  return share === undefined ? "color-none" : "color-value";
}

/** The class of a step's color, by segment or by a label. @param {Item} item */
function colorClass(item) {
  if (state.colorBy === "segment") return `color-${item.segment}`;
  const value = item.labels?.[state.colorBy];
  if (value === undefined) return "color-none";
  return `color-${kindsOf(state.colorBy).indexOf(value) % KINDS}`;
}

// ---------------------------------------------------------------- map, arcs, measures

/** @param {Side} side */
function drawMap(side) {
  const { canvas, matrix } = side;
  const count = side.steps.length;
  canvas.width = canvas.height = Math.max(1, count);
  const context = canvas.getContext("2d");
  if (!matrix || !context || count === 0) return;
  const signed = state.difference || side.maps.get(state.map)?.facts.signed;
  const colors = signed
    ? ramp(["--below", "--paper", "--above"])
    : ramp(["--paper", "--low", "--high", "--highest"]);
  let most = 0;
  for (const value of matrix) most = Math.max(most, Math.abs(value));
  const image = context.createImageData(count, count);
  for (let i = 0; i < count; i++)
    for (let j = 0; j <= i; j++) {
      const share = most > 0 ? matrix[rowStart(i) + j] / most : 0;
      const root = Math.sign(share) * Math.sqrt(Math.abs(share));
      const color = Math.round(signed ? 127.5 + 127.5 * root : 255 * root);
      image.data.set(colors.subarray(4 * color, 4 * color + 4), 4 * (i * count + j));
    }
  context.putImageData(image, 0, 0);
  canvas.setAttribute(
    "aria-label",
    `${state.map}, layer ${state.layer}: step by step, largest ${shown(most)}`,
  );
}

/** Lines over the map at the chosen step. @param {Side} side @param {Element} over */
function drawCross(side, over) {
  const count = Math.max(1, side.steps.length);
  over.replaceChildren();
  if (state.step < 0 || state.step >= side.steps.length) return;
  const at = state.step;
  over.setAttribute("viewBox", `0 0 ${count} ${count}`);
  over.append(
    svg("rect", { x: 0, y: at, width: at + 1, height: 1, class: "cross" }),
    svg("rect", { x: at, y: at, width: 1, height: count - at, class: "cross" }),
  );
}

/** @param {Side} side @param {Element} strip */
function drawStrip(side, strip) {
  const count = side.steps.length;
  const pitch = 600 / Math.max(1, count);
  const middle = (/** @type {number} */ step) => (step + 0.5) * pitch;
  strip.setAttribute("viewBox", "0 0 120 600");
  strip.replaceChildren();
  for (const item of side.steps) {
    const step = item.step ?? 0;
    const mark = svg(
      "rect",
      {
        x: 54,
        y: step * pitch,
        width: 12,
        height: Math.max(0.5, pitch - Math.min(1, pitch / 6)),
      },
      svg("title", {}, `step ${step}`),
    );
    mark.setAttribute(
      "class",
      `mark ${colorOf(mark, side, item)}${step === state.step ? " chosen" : ""}`,
    );
    mark.addEventListener("click", () => choose(side, step, true));
    strip.append(mark);
    if (side.facts.fired.includes(step))
      strip.append(svg("circle", { cx: 70, cy: middle(step), r: 2.5, class: "fired" }));
  }
  if (side.number !== state.side || state.step < 0) return;
  const { sources, targets } = linksOf(side, state.step);
  const most = Math.max(1e-12, ...[...sources, ...targets].map((link) => Math.abs(link.weight)));
  const arc = (
    /** @type {Link} */ link,
    /** @type {number} */ edge,
    /** @type {string} */ kind,
  ) => {
    const [from, to] = [middle(state.step), middle(link.step)];
    const out = edge === 54 ? -1 : 1;
    const reach = edge + out * (10 + Math.min(40, Math.abs(to - from) / 3));
    const path = svg(
      "path",
      { d: `M${edge} ${from} C${reach} ${from} ${reach} ${to} ${edge} ${to}` },
      svg("title", {}, `step ${link.step}: ${shown(link.weight)}`),
    );
    path.setAttribute("class", `arc ${kind}`);
    path.setAttribute("stroke-width", String(0.7 + 4 * (Math.abs(link.weight) / most)));
    path.addEventListener("click", () => choose(side, link.step, true));
    strip.append(path);
  };
  for (const link of sources) arc(link, 54, "source");
  for (const link of targets) arc(link, 66, "target");
}

/** Measures by layer, with the present layer marked. @param {Element} chart */
function drawMeasures(chart) {
  chart.replaceChildren();
  const lines = sides.flatMap((side) => {
    const map = side.maps.get(state.map)?.facts;
    return map
      ? Object.entries(map.measures).map(([name, values]) => ({
          side,
          map,
          name,
          values,
        }))
      : [];
  });
  chart.parentElement?.toggleAttribute("hidden", lines.length === 0);
  if (lines.length === 0) return;
  const [width, height] = [320, 110];
  const layers = lines[0].map.layers;
  const last = Math.max(...layers, 1);
  const x = (/** @type {number} */ layer) => 24 + (layer / last) * (width - 34);
  const y = (/** @type {number} */ value) => height - 16 - value * (height - 26);
  chart.setAttribute("viewBox", `0 0 ${width} ${height}`);
  for (const value of [0, 0.5, 1])
    chart.append(
      svg("line", {
        x1: 24,
        x2: width - 10,
        y1: y(value),
        y2: y(value),
        class: "grid",
      }),
      svg("text", { x: 20, y: y(value) + 3, "text-anchor": "end" }, String(value)),
    );
  const now =
    typeof state.layer === "number" ? [state.layer] : (lines[0].map.bands[state.layer] ?? []);
  if (now.length) {
    const [start, stop] = [x(Math.min(...now)) - 3, x(Math.max(...now)) + 3];
    chart.append(
      svg("rect", {
        x: start,
        y: 4,
        width: stop - start,
        height: height - 20,
        class: "now",
      }),
    );
  }
  const names = [...new Set(lines.map((line) => line.name))];
  const legend = el("p", { className: "legend" });
  for (const { side, map, name, values } of lines) {
    const points = values.flatMap((value, at) =>
      value === null ? [] : [`${x(map.layers[at])},${y(value)}`],
    );
    const color = `line-${names.indexOf(name) % KINDS}`;
    const line = svg(
      "polyline",
      { points: points.join(" ") },
      svg("title", {}, `${name}, ${side.facts.name}`),
    );
    line.setAttribute("class", `measure ${color}${side.number ? " after" : ""}`);
    chart.append(line);
    if (side.number === 0 || !first.maps.has(state.map))
      legend.append(el("span", { className: `swatch ${color}` }), `${name} `);
  }
  chart.append(svg("text", { x: width / 2, y: height - 2, "text-anchor": "middle" }, "layer"));
  chart.parentElement?.querySelector(".legend")?.replaceWith(legend);
}

// ---------------------------------------------------------------- the page

const picked = el("section", { className: "links", "aria-live": "polite" });
const foot = el("footer");
const chart = svg("svg", {
  class: "chart",
  role: "img",
  "aria-label": "measures by layer",
});
const strips = sides.map(() => svg("svg", { class: "strip", preserveAspectRatio: "none" }));
const crosses = sides.map(() => svg("svg", { class: "over", preserveAspectRatio: "none" }));
/** @type {Array<() => void>} */
const refreshers = [];

/**
 * A control with its label, that follows the state.
 * @param {string} label @param {HTMLElement} control @param {() => void} [refresh]
 */
function labelled(label, control, refresh) {
  if (refresh) refreshers.push(refresh);
  return el("label", {}, `${label} `, control);
}

/**
 * @param {string} label @param {string[]} options @param {() => string} value
 * @param {(value: string) => void} set
 */
function select(label, options, value, set) {
  const control = /** @type {HTMLSelectElement} */ (
    el("select", {}, ...options.map((one) => el("option", { value: one }, one)))
  );
  control.addEventListener("change", () => {
    set(control.value);
    update();
  });
  return labelled(label, control, () => (control.value = value()));
}

function controls() {
  const bar = el("div", { className: "controls" });
  if (mapNames.length > 1)
    bar.append(
      select(
        "map",
        mapNames,
        () => state.map,
        (name) => (state.map = name),
      ),
    );
  if (mapNames.length) bar.append(...layerControls());
  if (labelNames.length + valueNames.length)
    bar.append(
      select(
        "color",
        ["segment", ...labelNames, ...valueNames],
        () => state.colorBy,
        (name) => (state.colorBy = name),
      ),
    );
  if (sameSteps && mapNames.length) {
    const box = /** @type {HTMLInputElement} */ (
      el("input", { type: "checkbox", id: "difference" })
    );
    box.addEventListener("change", () => {
      state.difference = box.checked;
      update();
    });
    bar.append(labelled("difference", box));
  }
  const search = /** @type {HTMLInputElement} */ (
    el("input", {
      type: "search",
      id: "search",
      placeholder: "search ( / )",
      "aria-label": "search",
    })
  );
  search.addEventListener("input", () => {
    state.query = search.value.toLowerCase();
    update();
  });
  search.addEventListener("keydown", (event) => {
    if (event.key === "Enter") nextMatch(event.shiftKey ? -1 : 1);
    if (event.key === "Escape") search.blur();
  });
  bar.append(search, el("span", { className: "matches", role: "status" }));
  return bar;
}

function layerControls() {
  const layers = first.facts.maps[0]?.layers ?? second.facts.maps[0].layers;
  const slider = /** @type {HTMLInputElement} */ (
    el("input", {
      type: "range",
      id: "layer",
      min: "0",
      max: String(layers.length - 1),
      step: "1",
    })
  );
  const said = el("output", { className: "layer" });
  slider.addEventListener("input", () => {
    state.layer = layersNow()[Number(slider.value)];
    update();
  });
  const bands = el("span", {
    className: "bands",
    role: "group",
    "aria-label": "bands of layers",
  });
  refreshers.push(() => {
    const now = layersNow();
    slider.max = String(now.length - 1);
    if (typeof state.layer === "number") slider.value = String(now.indexOf(state.layer));
    said.textContent =
      typeof state.layer === "number" ? `${state.layer}` : `mean of ${state.layer}`;
    bands.replaceChildren(
      ...Object.keys(mapNow()?.bands ?? {}).map((band) => {
        const button = el("button", { "aria-pressed": String(state.layer === band) }, band);
        button.addEventListener("click", () => {
          state.layer = band;
          update();
        });
        return button;
      }),
    );
  });
  const heads = /** @type {HTMLSelectElement} */ (el("select", { id: "head" }));
  heads.addEventListener("change", () => {
    state.head = heads.value === "mean" ? null : Number(heads.value);
    update();
  });
  const head = labelled("head", heads, () => {
    const found = headsNow();
    head.hidden = found.length === 0;
    heads.replaceChildren(
      ...["mean", ...found.map(String)].map((one) => el("option", { value: one }, one)),
    );
    heads.value = state.head === null ? "mean" : String(state.head);
  });
  const threshold = /** @type {HTMLInputElement} */ (
    el("input", {
      type: "range",
      id: "threshold",
      min: "0",
      max: "0.5",
      step: "0.005",
    })
  );
  const least = el("output", {});
  threshold.addEventListener("input", () => {
    state.threshold = Number(threshold.value);
    update();
  });
  return [
    el("label", {}, "layer ", slider, said),
    bands,
    head,
    select(
      "share of",
      ["row", "layer", "none"],
      () => state.norm,
      (norm) => (state.norm = norm),
    ),
    labelled("threshold", el("span", {}, threshold, least), () => {
      threshold.value = String(state.threshold);
      least.textContent = shown(state.threshold);
    }),
  ];
}

/** @returns {MapFacts | undefined} */
function mapNow() {
  return sides.flatMap((side) => side.facts.maps).find((one) => one.name === state.map);
}

/** @returns {number[]} */
const layersNow = () => mapNow()?.layers ?? [];

/** Heads that were kept at the present layer. @returns {number[]} */
const headsNow = () =>
  (mapNow()?.planes ?? []).flatMap(([layer, head]) =>
    layer === state.layer && head !== null ? [head] : [],
  );

function help() {
  const keys = [
    ["↑ ↓", "step"],
    ["← →", "strongest source, strongest target"],
    ["b", "back"],
    ["[ ]", "layer"],
    ["m", "next map"],
    ["t", "trace back from the step"],
    ["/", "search"],
    ["Esc", "let go"],
  ];
  return el(
    "details",
    { className: "help" },
    el("summary", {}, "keys"),
    el("dl", {}, ...keys.flatMap(([key, what]) => [el("dt", {}, key), el("dd", {}, what)])),
  );
}

/** @param {Side} side */
function headOf(side) {
  const known = side.facts.facts.map(([name, value]) => `${name} ${value}`).join(" · ");
  return el("p", { className: "facts" }, el("b", {}, side.facts.name), ` ${known}`);
}

/** @param {Side} side */
function mapOf(side) {
  const { canvas } = side;
  canvas.setAttribute("role", "img");
  const at = (/** @type {MouseEvent} */ event) => {
    const box = canvas.getBoundingClientRect();
    const count = side.steps.length;
    const [i, j] = [
      Math.floor(((event.clientY - box.top) / box.height) * count),
      Math.floor(((event.clientX - box.left) / box.width) * count),
    ];
    return i >= 0 && i < count && j >= 0 && j <= i ? [i, j] : null;
  };
  const under = el("p", { className: "cell", role: "status" });
  canvas.addEventListener("mousemove", (event) => {
    const cell = at(event);
    under.textContent =
      cell && side.matrix
        ? `step ${cell[0]} on step ${cell[1]}: ${shown(side.matrix[rowStart(cell[0]) + cell[1]])}`
        : "";
    if (cell && !state.locked) choose(side, cell[0], false);
  });
  canvas.addEventListener("click", (event) => {
    const cell = at(event);
    if (cell) choose(side, cell[0], true);
  });
  return el(
    "div",
    { className: "with-strip" },
    el("div", { className: "beside" }, strips[side.number]),
    el("div", { className: "square" }, canvas, crosses[side.number], under),
  );
}

function start() {
  document.title = facts.title;
  const back = prefix ? [el("a", { href: "#" }, "← contents")] : [];
  const measures = el("figure", {}, chart, el("p", { className: "legend" }));
  const right = el(
    "div",
    { className: "right" },
    ...(mapNames.length ? sides.map(mapOf) : []),
    picked,
    measures,
  );
  document
    .getElementById("page")
    ?.append(
      el(
        "header",
        {},
        ...back,
        el("h1", {}, facts.title),
        ...sides.map(headOf),
        controls(),
        help(),
      ),
      el(
        "div",
        { className: "columns" },
        el("div", { className: "texts" }, ...sides.map(textOf)),
        right,
      ),
      foot,
    );
  document.documentElement.classList.toggle("two", sides.length > 1);
  document.addEventListener("keydown", onKey);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => update());
}

// ---------------------------------------------------------------- acting

/**
 * Choose a step: locked until another is, or only previewed.
 * @param {Side} side @param {number} step @param {boolean} locked
 */
function choose(side, step, locked) {
  if (locked && state.locked) visited.push([state.side, state.step]);
  Object.assign(state, { side: side.number, step, locked });
  update();
  if (!locked) return;
  for (const other of sides)
    if (other !== side && (step < parting || parting < 0))
      other.cards[step]?.scrollIntoView({ block: "nearest" });
  reveal(side.cards[step]);
}

/** @param {HTMLElement | undefined} card */
function reveal(card) {
  card?.focus({ preventScroll: true });
  card?.scrollIntoView({ block: "nearest" });
}

/** @param {number} by */
function nextMatch(by) {
  const side = sides[state.side];
  const found = side.steps.flatMap((_, step) => (matches(side, step) ? [step] : []));
  if (!found.length) return;
  const later = found.filter((step) => (by > 0 ? step > state.step : step < state.step));
  choose(
    side,
    (by > 0 ? later[0] : later.at(-1)) ?? (by > 0 ? found[0] : found[found.length - 1]),
    true,
  );
}

/** @param {Side} side @param {number} step */
const matches = (side, step) =>
  state.query !== "" && side.textOf(step).toLowerCase().includes(state.query);

/** @param {number} by */
function moveLayer(by) {
  const layers = layersNow();
  const at =
    typeof state.layer === "number"
      ? layers.indexOf(state.layer) + by
      : by > 0
        ? 0
        : layers.length - 1;
  state.layer = layers[Math.max(0, Math.min(layers.length - 1, at))];
  update();
}

/** @param {KeyboardEvent} event */
function onKey(event) {
  const target = /** @type {HTMLElement} */ (event.target);
  if (["INPUT", "SELECT", "TEXTAREA"].includes(target.tagName)) return;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const side = sides[state.side];
  const last = side.steps.length - 1;
  const go = (/** @type {number | undefined} */ step) => {
    if (step !== undefined) choose(side, Math.max(0, Math.min(last, step)), true);
  };
  /** @type {Record<string, () => void>} */
  const actions = {
    ArrowDown: () => go(state.step + 1),
    ArrowUp: () => go(state.step - 1),
    ArrowLeft: () => go(linksOf(side, state.step).sources[0]?.step),
    ArrowRight: () => go(linksOf(side, state.step).targets[0]?.step),
    b: () => {
      const before = visited.pop();
      if (before) {
        Object.assign(state, {
          side: before[0],
          step: before[1],
          locked: true,
        });
        update();
        reveal(sides[before[0]].cards[before[1]]);
      }
    },
    "[": () => moveLayer(-1),
    "]": () => moveLayer(1),
    m: () => {
      state.map = mapNames[(mapNames.indexOf(state.map) + 1) % mapNames.length] ?? "";
      update();
    },
    t: () => {
      state.tracing = !state.tracing;
      update();
    },
    "/": () => document.getElementById("search")?.focus(),
    Escape: () => {
      Object.assign(state, { step: -1, locked: false, tracing: false });
      update();
    },
  };
  const action = actions[event.key];
  if (action && last >= 0) {
    event.preventDefault();
    action();
  }
}

/** Where the trace back begins: the chosen step, or the last one. @param {Side} side */
const tracedFrom = (side) =>
  state.step > 0 && state.step < side.steps.length ? state.step : side.steps.length - 1;

// ---------------------------------------------------------------- drawing

/** Bring the page to the state. */
async function update() {
  const map = mapNow();
  if (map && typeof state.layer === "number" && !map.layers.includes(state.layer))
    state.layer = "all";
  if (state.head !== null && !headsNow().includes(state.head)) state.head = null;
  await Promise.all(sides.map((side) => side.load(state.map)));
  for (const refresh of refreshers) refresh();
  chooseMatrices();
  sides.forEach((side, number) => {
    drawCross(side, crosses[number]);
    drawStrip(side, strips[number]);
    drawText(side);
  });
  drawMeasures(chart);
  drawLinks();
  drawFoot();
}

/** What the maps show now, and their pictures; kept while no control was moved. */
function chooseMatrices() {
  const { map, layer, head, norm, difference } = state;
  const wanted = JSON.stringify([map, layer, head, norm, difference, css("--paper")]);
  if (wanted === matricesOf) return;
  matricesOf = wanted;
  for (const side of sides) {
    const data = side.maps.get(map);
    side.matrix = data ? data.matrix(data.planes(layer, head), norm) : null;
  }
  if (difference && first.matrix && second?.matrix) {
    const before = first.matrix;
    second.matrix = second.matrix.map((value, at) => value - before[at]);
  }
  sides.forEach(drawMap);
}

/** @param {Side} side */
function drawText(side) {
  const mine = side.number === state.side;
  const { sources, targets } = mine ? linksOf(side, state.step) : { sources: [], targets: [] };
  const strength = new Map(
    [
      ...sources.map((l) => /** @type {const} */ ([l, "is-source"])),
      ...targets.map((l) => /** @type {const} */ ([l, "is-target"])),
    ].map(([link, kind]) => [link.step, kind]),
  );
  const through =
    state.tracing && side.matrix ? passing(side.matrix, tracedFrom(side), side.isQuestion) : null;
  let number = 0;
  side.cards.forEach((card, step) => {
    const item = side.steps[step];
    const classes = ["step", item.segment ?? "", colorOf(card, side, item)];
    if (mine && step === state.step) classes.push(state.locked ? "locked" : "chosen");
    const kind = strength.get(step);
    if (kind) classes.push(kind);
    if (card.querySelector(".split") || card.classList.contains("diverged"))
      classes.push("diverged");
    if (matches(side, step)) {
      classes.push("match");
      number += 1;
    }
    card.className = classes.join(" ");
    card.style.setProperty("--through", String(through?.[step] ?? 0));
    if (mine && step === state.step) card.setAttribute("aria-current", "step");
    else card.removeAttribute("aria-current");
  });
  const said = document.querySelector(".matches");
  if (said && mine)
    said.textContent = state.query ? `${number} step${number === 1 ? "" : "s"}` : "";
}

function drawLinks() {
  const side = sides[state.side];
  picked.replaceChildren();
  const lists = el("div", { className: "lists" });
  if (state.step < 0) {
    picked.append(el("p", { className: "hint" }, "Click a step, or press ↓."));
  } else {
    const item = side.steps[state.step];
    const values = valueNames.flatMap((name) => {
      const value = side.facts.values[name]?.[state.step];
      return value === null || value === undefined ? [] : [`${name} ${shown(value)}`];
    });
    const labels = Object.entries(item.labels ?? {})
      .filter(([name]) => labelNames.includes(name))
      .map(([name, value]) => `${name}: ${value}`);
    const title = [`step ${state.step}`, item.segment ?? "", ...labels, ...values].join(" · ");
    picked.append(
      el("h2", {}, side.facts.fired.includes(state.step) ? `${title} · ⚡ fired` : title),
    );
    const { sources, targets } = linksOf(side, state.step);
    if (side.matrix) lists.append(listOf("looks at", sources), listOf("is looked at by", targets));
  }
  if (state.tracing && side.matrix) {
    const from = tracedFrom(side);
    const through = passing(side.matrix, from, side.isQuestion);
    const links = [...through.subarray(0, from)]
      .map((weight, step) => ({ step, weight }))
      .sort((a, b) => b.weight - a.weight)
      .slice(0, 12);
    lists.append(listOf(`walks back from step ${from} pass`, links));
  }
  picked.append(lists);
}

/** @param {string} title @param {Link[]} links */
function listOf(title, links) {
  const side = sides[state.side];
  const list = el("ol", {});
  for (const link of links) {
    const button = el(
      "button",
      { "data-step": String(link.step) },
      el("b", {}, shown(link.weight)),
      el("span", { className: "number" }, ` ${link.step} `),
      el("span", { dir: "auto" }, side.textOf(link.step).slice(0, 160)),
    );
    button.addEventListener("click", () => choose(side, link.step, true));
    list.append(el("li", {}, button));
  }
  const none = el("p", { className: "hint" }, "none above the threshold");
  return el("div", { className: "list" }, el("h3", {}, title), links.length ? list : none);
}

function drawFoot() {
  foot.replaceChildren();
  /** @type {Set<string>} */
  const audits = new Set();
  for (const side of sides) {
    const map = side.maps.get(state.map)?.facts;
    if (map) {
      const made = map.settings.map(([name, value]) => `${name} ${value}`).join(" · ");
      foot.append(el("p", {}, el("b", {}, `${side.facts.name}, ${map.name}`), ` ${made}`));
      for (const line of map.audit) audits.add(line);
    }
    const ledger = side.facts.ledger;
    if (ledger)
      foot.append(
        el(
          "details",
          {},
          el("summary", {}, `what interventions did (${side.facts.name})`),
          tableOf(ledger),
        ),
      );
  }
  foot.append(...[...audits].map((line) => el("p", { className: "audit" }, line)));
  foot.append(
    el("p", {}, `stepflow_tl ${facts.version}. This page holds all it shows, and asks no server.`),
  );
}

// ---------------------------------------------------------------- a table of contents

/** @param {Table} table */
function tableOf({ columns, rows }) {
  const line = (/** @type {string} */ tag, /** @type {string[]} */ values) =>
    el("tr", {}, ...values.map((value) => el(tag, {}, value)));
  return el("table", {}, line("th", columns), ...rows.map((values) => line("td", values)));
}

/** Its rows, sorted by a click on a column and filtered by a text. @param {Table} table */
function showTable({ columns, rows }) {
  let [by, up] = [-1, true];
  const body = el("tbody", {});
  const filter = /** @type {HTMLInputElement} */ (
    el("input", {
      type: "search",
      id: "search",
      placeholder: "filter ( / )",
      "aria-label": "filter",
    })
  );
  const number = el("span", { className: "matches", role: "status" });
  const draw = () => {
    const words = filter.value.toLowerCase().split(/\s+/);
    const kept = rows.flatMap((values, at) => {
      const text = values.join(" ").toLowerCase();
      return words.every((word) => text.includes(word)) ? [at] : [];
    });
    if (by >= 0)
      kept.sort((a, b) => {
        const order = rows[a][by].localeCompare(rows[b][by], undefined, {
          numeric: true,
        });
        return up ? order : -order;
      });
    number.textContent = `${kept.length} of ${rows.length}`;
    body.replaceChildren(...kept.map(rowOf));
  };
  const rowOf = (/** @type {number} */ at) => {
    const verdict = rows[at][columns.indexOf("correct")];
    const cells = rows[at].map((value) => el("td", { dir: "auto" }, value));
    const link = el("a", { href: `#row=${at}` }, "read");
    return el(
      "tr",
      {
        className: verdict === undefined ? "" : verdict === "True" ? "right" : "wrong",
      },
      el("td", {}, link),
      ...cells,
    );
  };
  const heads = columns.map((name, at) => {
    const button = el("button", {}, name);
    button.addEventListener("click", () => {
      [by, up] = [at, by === at ? !up : true];
      draw();
    });
    return el("th", {}, button);
  });
  filter.addEventListener("input", draw);
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.target === filter) return;
    event.preventDefault();
    filter.focus();
  });
  document.title = facts.title;
  document
    .getElementById("page")
    ?.append(
      el(
        "header",
        {},
        el("h1", {}, facts.title),
        ...(facts.text ?? []).map((paragraph) => el("p", { className: "told" }, paragraph)),
        ...(rows.length > 8 ? [el("div", { className: "controls" }, filter, number)] : []),
      ),
      el(
        "div",
        { className: "rows" },
        el("table", {}, el("thead", {}, el("tr", {}, el("th", {}), ...heads)), body),
      ),
    );
  draw();
}

addEventListener("hashchange", () => location.reload());
if (facts.table) showTable(facts.table);
else {
  start();
  await update();
}
document.documentElement.dataset.ready = "yes";
