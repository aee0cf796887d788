"use strict";
// The timeline of a run: bars on a canvas, because there may be a hundred thousand of them. All texts of the run are
// drawn as text or set as textContent; nothing is ever parsed as HTML.
(() => {
  const element = id => document.getElementById(id);
  const data = JSON.parse(element("run-data").textContent);
  const { task, bar } = data;
  const count = bar.task.length;
  const DONE = 0, FAILED = 1, CANCELLED = 2, RUNNING = 3, RETRIED = 5;
  const STATES = ["done", "failed", "cancelled", "running", "pending", "failed, tried again"];
  const PALETTE = ["#4e79a7", "#f28e2b", "#59a14f", "#b07aa1", "#3aa6a6", "#d9b12b", "#9c755f", "#e58ab0", "#7aa35a",
    "#6b6ecf", "#c07a3e", "#8aa9c9"];
  const OTHERS = "#97a3b0";
  const SECOND = 1e6;

  // --- words ------------------------------------------------------------------------------------------------------

  const padded = (number, digits) => String(number).padStart(digits, "0");

  /** A time span in microseconds, as the tables of the page have it. */
  function duration(micros) {
    const seconds = micros / SECOND;
    if (seconds >= 59.95) {
      const whole = Math.round(seconds), minutes = Math.floor(whole / 60), hours = Math.floor(minutes / 60);
      if (hours >= 24) return `${Math.floor(hours / 24)} d ${padded(hours % 24, 2)} h`;
      return hours ? `${hours} h ${padded(minutes % 60, 2)} min` : `${minutes} min ${padded(whole % 60, 2)} s`;
    }
    if (seconds >= 9.995) return `${seconds.toFixed(1)} s`;
    if (seconds >= 0.9995) return `${seconds.toFixed(2)} s`;
    if (micros >= 999.5) return `${Number((micros / 1000).toPrecision(3))} ms`;
    return micros > 0 ? `${Math.round(micros)} µs` : "0 s";
  }

  /** A time since the first call, with as many digits as a step of the axis needs. */
  function clock(micros, step) {
    const digits = step >= SECOND ? 0 : Math.min(6, Math.ceil(-Math.log10(step / SECOND) - 1e-9));
    const total = Math.round(micros / SECOND * 10 ** digits) / 10 ** digits;
    const hours = Math.floor(total / 3600), minutes = Math.floor(total / 60) % 60;
    const seconds = (total % 60).toFixed(digits).padStart(digits ? digits + 3 : 2, "0");
    return hours ? `${hours}:${padded(minutes, 2)}:${seconds}` : `${minutes}:${seconds}`;
  }

  function timeOfDay(micros) {
    const date = new Date(data.began * 1000 + micros / 1000);
    return Number.isNaN(date.getTime()) ? "" : `${date.toISOString().slice(11, 19)} UTC`;
  }

  const thousands = number => number.toLocaleString("en");
  const nameOf = index => data.names[task.name[index]];
  const workflowOf = index => data.workflows[task.workflow[index]];
  const titleOf = index => `${nameOf(index)} (${task.uid[index]})`;
  const placeOf = index => data.places[bar.place[index]];

  // --- what follows from the data -----------------------------------------------------------------------------------

  const barsOf = task.uid.map(() => []);
  for (let each = 0; each < count; each++) barsOf[bar.task[each]].push(each);
  let after = null;
  /** The tasks that depend on one. */
  function dependentsOf(index) {
    if (!after) {
      after = task.uid.map(() => []);
      task.after.forEach((above, each) => above.forEach(one => after[one].push(each)));
    }
    return after[index];
  }
  const onPath = new Uint8Array(task.uid.length);
  data.critical.forEach(each => { onPath[each] = 1; });
  const special = [];
  for (let each = 0; each < count; each++) if (bar.look[each] !== DONE) special.push(each);

  /** Colours for a property of tasks: the most busy ones have one of their own. */
  function colouring(labels, kindOf) {
    const busy = new Float64Array(labels.length);
    for (let each = 0; each < count; each++) busy[kindOf(each)] += bar.end[each] - bar.begin[each] + 1;
    const ranked = [...busy.keys()].filter(kind => busy[kind] > 0).sort((a, b) => busy[b] - busy[a]);
    const own = ranked.length <= PALETTE.length ? ranked : ranked.slice(0, PALETTE.length - 1);
    const colours = new Array(labels.length).fill(OTHERS);
    own.forEach((kind, place) => { colours[kind] = PALETTE[place]; });
    const entries = own.map(kind => ({ label: labels[kind], colour: colours[kind], kinds: new Set([kind]) }));
    const others = ranked.slice(own.length);
    if (others.length) entries.push({ label: `${others.length} others`, colour: OTHERS, kinds: new Set(others) });
    return { colours, kindOf, entries };
  }
  const STATE_COLOURS = ["#2f7d5b", "#dc2626", "#c2852d", "#3b82f6", OTHERS, "#d4567a"];
  const colourings = {
    name: () => colouring(data.names, each => task.name[bar.task[each]]),
    workflow: () => colouring(data.workflows.map(each => each === null ? "(no workflow)" : each),
      each => task.workflow[bar.task[each]]),
    state: () => {
      const entries = [...new Set(bar.look)].sort().map(look =>
        ({ label: STATES[look], colour: STATE_COLOURS[look], kinds: new Set([look]), look }));
      return { colours: STATE_COLOURS, kindOf: each => bar.look[each], entries };
    },
  };

  /** The bars of each row from left to right, and where rows stand. */
  const arranged = new Map();
  function arrangement(by) {
    if (!arranged.has(by)) {
      const { row, groups } = data.rows[by];
      const rows = groups.reduce((sum, group) => sum + group[3], 0);
      const members = Array.from({ length: rows }, () => []);
      for (let each = 0; each < count; each++) members[row[each]].push(each);
      arranged.set(by, { row, groups, members, top: new Float64Array(rows), height: 0, rowHeight: 0 });
    }
    return arranged.get(by);
  }

  // --- state of the view ------------------------------------------------------------------------------------------

  const whole = Math.max(1, data.end);
  const view = { begin: 0, end: whole };
  const chosen = { rows: "worker", colour: "name", critical: true, trouble: false, only: null, words: "" };
  let rows = arrangement(chosen.rows);
  let paint = colourings[chosen.colour]();
  let shown = null; // for each bar whether it matches; null where all do
  let selected = -1; // a task
  let theme = {};
  let printing = false;

  const chart = element("chart"), map = element("map"), scroller = element("scroller"), tall = element("tall");
  const tip = element("tip"), story = element("story");
  const AXIS = 24, HEADER = 22;
  let gutter = 150, gap = 5, width = 0, height = 0;

  function readTheme() {
    const style = getComputedStyle(document.documentElement);
    for (const name of ["card", "text", "faint", "line", "soft", "accent", "bad", "running"]) {
      theme[name] = style.getPropertyValue(`--${name}`).trim();
    }
  }

  /** A canvas as sharp as the screen, and what draws on it in CSS pixels. */
  function sized(canvas, wide, high) {
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(wide * ratio);
    canvas.height = Math.round(high * ratio);
    canvas.style.width = `${wide}px`;
    canvas.style.height = `${high}px`;
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    return pen;
  }

  function layOut() {
    width = scroller.clientWidth;
    gutter = width < 700 ? 96 : 170;
    const total = rows.top.length, headers = new Set(rows.groups.map(group => group[0]).filter(Boolean)).size;
    const most = printing ? 900 : Math.max(320, Math.min(800, window.innerHeight * 0.66));
    const free = most - AXIS - headers * HEADER;
    gap = free / rows.groups.length > 16 ? 5 : 2;
    rows.rowHeight = Math.max(6, Math.min(20, Math.floor((free - rows.groups.length * gap) / Math.max(1, total))));
    let y = AXIS + 4, header = "";
    for (const group of rows.groups) {
      if (group[0] && group[0] !== header) { y += HEADER; header = group[0]; }
      for (let each = 0; each < group[3]; each++) rows.top[group[2] + each] = y + each * rows.rowHeight;
      y += group[3] * rows.rowHeight + gap;
    }
    rows.height = y + 4;
    height = Math.ceil(Math.min(most, rows.height));
    scroller.style.height = `${height + 2}px`;
    tall.style.height = `${printing ? height : rows.height}px`;
    draw();
  }

  const toX = micros => gutter + (micros - view.begin) / (view.end - view.begin) * (width - gutter);
  const toTime = x => view.begin + (x - gutter) / (width - gutter) * (view.end - view.begin);

  // --- drawing ------------------------------------------------------------------------------------------------------

  let asked = false;
  function draw() {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; drawNow(); });
  }

  function drawNow() {
    readTheme();
    const pen = sized(chart, width, height);
    pen.font = "11.5px system-ui, sans-serif";
    pen.textBaseline = "middle";
    pen.fillStyle = theme.card;
    pen.fillRect(0, 0, width, height);
    const scroll = printing ? 0 : scroller.scrollTop;
    const ticks = axisTicks();
    drawGrid(pen, ticks);
    pen.save();
    pen.beginPath();
    pen.rect(gutter, AXIS, width - gutter, height - AXIS);
    pen.clip();
    pen.translate(0, -scroll);
    drawGroups(pen, scroll);
    drawBars(pen, scroll);
    drawMarks(pen, scroll);
    if (chosen.critical) drawCritical(pen, scroll);
    drawSelected(pen);
    pen.restore();
    drawLabels(pen, scroll);
    drawAxis(pen, ticks);
    drawMap();
    if (!document.documentElement.dataset.drawn) {
      document.documentElement.dataset.drawn = Math.round(performance.now());
    }
  }

  const STEPS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5,
    ...[1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 432000,
      864000, 2592000, 8640000, 31536000, 315360000].map(seconds => seconds * SECOND)];
  function axisTicks() {
    const wanted = (view.end - view.begin) / Math.max(2, (width - gutter) / 95);
    const step = STEPS.find(each => each >= wanted) || wanted;
    const first = Math.ceil(view.begin / step) * step;
    const times = [];
    for (let time = first; time <= view.end && times.length < 200; time += step) times.push(time);
    return { step, times };
  }

  function drawGrid(pen, { times }) {
    pen.strokeStyle = theme.soft;
    pen.beginPath();
    for (const time of times) {
      const x = Math.round(toX(time)) + 0.5;
      pen.moveTo(x, AXIS);
      pen.lineTo(x, height);
    }
    pen.stroke();
  }

  function drawAxis(pen, { step, times }) {
    pen.fillStyle = theme.card;
    pen.fillRect(0, 0, width, AXIS);
    pen.fillStyle = theme.faint;
    pen.textAlign = "center";
    for (const time of times) {
      const x = toX(time);
      if (x > gutter + 12 && x < width - 24) pen.fillText(clock(time, step), x, AXIS / 2);
    }
    pen.textAlign = "left";
    pen.fillText("since first call", 8, AXIS / 2);
    pen.fillStyle = theme.line;
    pen.fillRect(0, AXIS - 1, width, 1);
    pen.fillRect(gutter - 1, 0, 1, height);
  }

  /** Every second group on a ground of its own, so that one sees where it ends. */
  function drawGroups(pen, scroll) {
    pen.fillStyle = theme.line;
    for (const [, , first, many] of rows.groups) {
      const bottom = rows.top[first] + many * rows.rowHeight + gap / 2;
      if (bottom > scroll && bottom < scroll + height && (many > 1 || rows.rowHeight > 9)) {
        pen.globalAlpha = 0.55;
        pen.fillRect(gutter, Math.round(bottom), width, 1);
      }
    }
    pen.globalAlpha = 1;
  }

  function drawLabels(pen, scroll) {
    pen.save();
    pen.beginPath();
    pen.rect(0, AXIS, gutter - 2, height);
    pen.clip();
    pen.fillStyle = theme.card;
    pen.fillRect(0, AXIS, gutter - 1, height);
    pen.translate(0, -scroll);
    let free = -Infinity;
    for (const [above, label, first, many] of rows.groups) {
      const top = rows.top[first];
      const middle = many * rows.rowHeight > 40 ? top + 9 : top + many * rows.rowHeight / 2;
      if (middle < free || middle < scroll || top > scroll + height) continue;
      free = middle + 13;
      pen.font = "11.5px system-ui, sans-serif";
      pen.fillStyle = theme.faint;
      pen.fillText(fitted(pen, label, gutter - (above ? 26 : 14)), above ? 18 : 8, middle);
    }
    pen.restore();
    drawHeaders(pen, scroll);
  }

  /** What stands above groups, where there are no bars: it may be longer than the labels. */
  function drawHeaders(pen, scroll) {
    pen.save();
    pen.beginPath();
    pen.rect(0, AXIS, width, height);
    pen.clip();
    pen.translate(0, -scroll);
    pen.font = "600 12px system-ui, sans-serif";
    pen.fillStyle = theme.text;
    let header = "";
    for (const [above, , first] of rows.groups) {
      if (above && above !== header) pen.fillText(fitted(pen, above, width - 16), 8, rows.top[first] - HEADER / 2 - 1);
      header = above;
    }
    pen.restore();
  }

  /** Black or white, whichever can be read on a colour. */
  function ink(colour) {
    const [red, green, blue] = [1, 3, 5].map(place => parseInt(colour.slice(place, place + 2), 16));
    return red * 0.299 + green * 0.587 + blue * 0.114 > 145 ? "#14191f" : "#ffffff";
  }

  const fits = new Map();
  /** A text cut to a width. */
  function fitted(pen, text, room) {
    const key = `${pen.font}|${room}|${text}`;
    let cut = fits.get(key);
    if (cut === undefined) {
      cut = text.slice(0, 200);
      while (cut.length > 1 && pen.measureText(cut).width > room) {
        const keep = Math.floor((cut.length - 1) * Math.min(0.97, room / pen.measureText(cut).width));
        cut = `${cut.slice(0, Math.max(0, keep))}…`;
        if (keep < 1) break;
      }
      if (fits.size > 5000) fits.clear();
      fits.set(key, cut);
    }
    return cut;
  }

  /** The place in a row of the first bar that ends after a time; in a row bars do not overlap. */
  function firstAfter(members, time) {
    let low = 0, high = members.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (bar.end[members[middle]] < time) low = middle + 1; else high = middle;
    }
    return low;
  }

  const inSight = (row, scroll) =>
    rows.top[row] + rows.rowHeight >= scroll + AXIS && rows.top[row] <= scroll + height;

  function drawBars(pen, scroll) {
    const { colours, kindOf } = paint;
    const thick = Math.max(1, rows.rowHeight - (rows.rowHeight > 7 ? 2 : 1));
    const labelled = rows.rowHeight >= 13;
    pen.textAlign = "left";
    for (let row = 0; row < rows.members.length; row++) {
      if (!inSight(row, scroll)) continue;
      const members = rows.members[row], top = rows.top[row];
      let covered = -1; // pixels to the left of this one are full: many short bars cost no more than one
      for (let place = firstAfter(members, view.begin); place < members.length; place++) {
        const each = members[place];
        if (bar.begin[each] > view.end) break;
        const right = toX(bar.end[each]), lit = !shown || shown[each];
        if (right < covered && !lit) continue;
        const left = Math.max(gutter - 2, toX(bar.begin[each]));
        if (right <= covered && bar.look[each] === DONE && right - left < 1) continue;
        const wide = Math.max(1, Math.min(width, right) - left - (right - left > 3 ? 0.6 : 0));
        pen.globalAlpha = lit ? (bar.look[each] === CANCELLED ? 0.35 : 1) : 0.13;
        pen.fillStyle = colours[kindOf(each)];
        pen.fillRect(left, top, wide, thick);
        covered = Math.ceil(left + wide - 0.4);
        if (labelled && wide > 46 && lit) {
          pen.fillStyle = ink(colours[kindOf(each)]);
          const indent = bar.look[each] === DONE ? 5 : 18;
          const name = fitted(pen, nameOf(bar.task[each]), Math.round(wide - indent - 4));
          pen.fillText(name, left + indent, top + thick / 2 + 0.5);
        }
      }
    }
    pen.globalAlpha = 1;
  }

  // What did not end well is told by its form as well as by its colour, and is never too narrow to be seen.
  function mark(pen, look, left, top, wide, thick) {
    const middle = top + thick / 2, reach = Math.min(4, thick / 2 - 1);
    pen.lineWidth = 1.6;
    if (look === FAILED) {
      pen.fillStyle = STATE_COLOURS[FAILED];
      pen.fillRect(left, top, wide, thick);
      pen.strokeStyle = "#ffffff";
      if (wide >= 9 && reach >= 2) {
        const x = left + Math.min(9, wide / 2);
        pen.beginPath();
        pen.moveTo(x - reach, middle - reach); pen.lineTo(x + reach, middle + reach);
        pen.moveTo(x - reach, middle + reach); pen.lineTo(x + reach, middle - reach);
        pen.stroke();
      } else {
        pointer(pen, left + wide / 2, top, thick);
      }
    } else if (look === RETRIED) {
      hatch(pen, left, top, wide, thick);
    } else if (look === CANCELLED) {
      pen.strokeStyle = theme.text;
      pen.lineWidth = 1;
      pen.setLineDash([3, 2]);
      pen.strokeRect(left + 0.5, top + 0.5, Math.max(1, wide - 1), thick - 1);
      pen.setLineDash([]);
    } else if (look === RUNNING) {
      pen.fillStyle = theme.text;
      const tipX = left + wide, back = Math.min(7, Math.max(4, wide));
      pen.beginPath();
      pen.moveTo(tipX - back, top); pen.lineTo(tipX, middle); pen.lineTo(tipX - back, top + thick);
      pen.fill();
    }
  }

  /** A triangle that hangs from the upper edge of a bar too narrow for a cross. */
  function pointer(pen, x, top, thick) {
    const size = Math.max(3, Math.min(5, thick / 2));
    pen.beginPath();
    pen.moveTo(x - size, top - 2); pen.lineTo(x + size, top - 2); pen.lineTo(x, top + size + 1);
    pen.fill();
  }

  function hatch(pen, left, top, wide, thick) {
    pen.save();
    pen.beginPath();
    pen.rect(left, top, wide, thick);
    pen.clip();
    pen.fillStyle = theme.card;
    pen.fillRect(left, top, wide, thick);
    pen.strokeStyle = STATE_COLOURS[RETRIED];
    pen.lineWidth = 2;
    pen.beginPath();
    for (let x = left - thick; x < left + wide; x += 5) {
      pen.moveTo(x, top + thick); pen.lineTo(x + thick, top);
    }
    pen.stroke();
    pen.strokeRect(left + 0.5, top + 0.5, Math.max(1, wide - 1), thick - 1);
    pen.restore();
  }

  function drawMarks(pen, scroll) {
    const thick = Math.max(1, rows.rowHeight - (rows.rowHeight > 7 ? 2 : 1));
    for (const each of special) {
      if (bar.end[each] < view.begin || bar.begin[each] > view.end || !inSight(rows.row[each], scroll)) continue;
      const left = toX(bar.begin[each]), wide = Math.max(2.5, toX(bar.end[each]) - left);
      pen.globalAlpha = !shown || shown[each] ? 1 : 0.13;
      const from = Math.max(gutter - 12, left);
      mark(pen, bar.look[each], from, rows.top[rows.row[each]], Math.min(width + 12, left + wide) - from, thick);
    }
    pen.globalAlpha = 1;
  }

  /** The corners of a bar on the canvas. */
  function box(each) {
    const left = toX(bar.begin[each]), top = rows.top[rows.row[each]];
    return { left, right: Math.max(left + 2, toX(bar.end[each])), top, bottom: top + rows.rowHeight - 2 };
  }

  function drawCritical(pen, scroll) {
    pen.strokeStyle = theme.text;
    pen.lineWidth = 2;
    pen.lineJoin = "round";
    let before = null;
    for (const one of data.critical) {
      for (const each of barsOf[one]) {
        const here = box(each);
        if (before && before.right < width && here.left > gutter) {
          pen.setLineDash([2, 3]);
          pen.beginPath();
          pen.moveTo(before.right, (before.top + before.bottom) / 2);
          pen.lineTo(here.left, (here.top + here.bottom) / 2);
          pen.stroke();
          pen.setLineDash([]);
        }
        before = here;
        if (here.right < gutter || here.left > width || !inSight(rows.row[each], scroll)) continue;
        pen.strokeRect(here.left, here.top - 1, Math.max(3, here.right - here.left), here.bottom - here.top + 2);
      }
    }
    pen.lineWidth = 1;
  }

  const MOST_LINES = 200;
  function drawSelected(pen) {
    if (selected < 0) return;
    const mine = barsOf[selected];
    const link = (from, to, colour) => {
      if (from === undefined || to === undefined) return;
      const a = box(from), b = box(to), ay = (a.top + a.bottom) / 2, by = (b.top + b.bottom) / 2;
      const bend = Math.max(12, Math.min(60, (b.left - a.right) / 2));
      pen.strokeStyle = colour;
      pen.beginPath();
      pen.moveTo(a.right, ay);
      pen.bezierCurveTo(a.right + bend, ay, b.left - bend, by, b.left, by);
      pen.stroke();
    };
    pen.lineWidth = 1.4;
    task.after[selected].slice(0, MOST_LINES).forEach(each => link(barsOf[each].at(-1), mine[0], theme.accent));
    dependentsOf(selected).slice(0, MOST_LINES).forEach(each => link(mine.at(-1), barsOf[each][0], "#d97706"));
    pen.strokeStyle = theme.accent;
    pen.lineWidth = 3;
    for (const each of mine) {
      const here = box(each);
      pen.strokeRect(here.left - 1, here.top - 2, here.right - here.left + 2, here.bottom - here.top + 4);
    }
    pen.lineWidth = 1;
  }

  const MAP = 46;
  const toMapX = micros => gutter + micros / whole * (width - gutter);
  function drawMap() {
    const pen = sized(map, width, MAP), low = MAP - 4, high = low - 4;
    pen.font = "11.5px system-ui, sans-serif";
    pen.textBaseline = "middle";
    pen.fillStyle = theme.faint;
    pen.fillText(fitted(pen, "cores in use", gutter - 12), 8, MAP / 2 - 7);
    pen.fillText(fitted(pen, data.cores ? `of ${thousands(data.cores)}` : "", gutter - 12), 8, MAP / 2 + 8);
    pen.fillStyle = theme.soft;
    pen.fillRect(gutter, low - high, width - gutter, high);
    const most = Math.max(data.cores, ...data.busy, 1), step = (width - gutter) / data.busy.length;
    pen.fillStyle = theme.running;
    pen.globalAlpha = 0.8;
    pen.beginPath();
    pen.moveTo(gutter, low);
    data.busy.forEach((value, place) => {
      const y = low - value / most * high;
      pen.lineTo(gutter + place * step, y);
      pen.lineTo(gutter + (place + 1) * step, y);
    });
    pen.lineTo(width, low);
    pen.fill();
    pen.globalAlpha = 1;
    const left = toMapX(view.begin), right = toMapX(view.end);
    if (right - left < width - gutter - 0.5) {
      pen.fillStyle = theme.card;
      pen.globalAlpha = 0.7;
      pen.fillRect(gutter, low - high, left - gutter, high);
      pen.fillRect(right, low - high, width - right, high);
      pen.globalAlpha = 1;
      pen.strokeStyle = theme.text;
      pen.lineWidth = 1.5;
      pen.strokeRect(left, low - high, Math.max(2, right - left), high);
    }
  }

  // --- moving about -------------------------------------------------------------------------------------------------

  function show(begin, end) {
    const wide = Math.min(whole, Math.max(10, end - begin));
    view.begin = Math.max(0, Math.min(whole - wide, begin));
    view.end = view.begin + wide;
    hideTip();
    draw();
  }

  function zoom(factor, at = (view.begin + view.end) / 2) {
    show(at - (at - view.begin) * factor, at + (view.end - at) * factor);
  }

  function showTask(index) {
    const mine = barsOf[index];
    if (!mine.length) return;
    const begin = bar.begin[mine[0]], end = bar.end[mine.at(-1)];
    const room = Math.max((end - begin) * 4, whole / 200);
    if (begin < view.begin || end > view.end || end - begin < (view.end - view.begin) / 100) {
      show((begin + end - room) / 2, (begin + end + room) / 2);
    }
    scroller.scrollTop = rows.top[rows.row[mine[0]]] - height / 2;
    draw();
  }

  /** The bar at a place of the chart; -1 where there is none. */
  function barAt(x, y) {
    if (x < gutter || y < AXIS) return -1;
    const inside = y + scroller.scrollTop;
    for (let row = 0; row < rows.top.length; row++) {
      if (inside < rows.top[row] - 1 || inside >= rows.top[row] + rows.rowHeight) continue;
      const members = rows.members[row], reach = 3 * (view.end - view.begin) / (width - gutter), time = toTime(x);
      let nearest = -1, distance = Infinity;
      for (let place = firstAfter(members, time - reach); place < members.length; place++) {
        const each = members[place];
        if (bar.begin[each] > time + reach) break;
        // Of several within reach the one that went wrong is meant before the nearest.
        const far = Math.max(0, bar.begin[each] - time, time - bar.end[each]) - (bar.look[each] === DONE ? 0 : reach);
        if (far < distance) { nearest = each; distance = far; }
      }
      return nearest;
    }
    return -1;
  }

  // --- texts --------------------------------------------------------------------------------------------------------

  /** An element with contents that are elements or texts. */
  function made(name, attributes, ...contents) {
    const one = document.createElement(name);
    Object.assign(one, attributes);
    one.append(...contents.filter(each => each !== null && each !== undefined && each !== ""));
    return one;
  }

  /** What a task did from its call on: words and microseconds. */
  function activities(index) {
    const found = [], mine = barsOf[index];
    const add = (words, kind, span) => { if (span > 0) found.push({ words, kind, span }); };
    let now = task.created[index];
    const until = (words, kind, time) => { if (time > now) { add(words, kind, time - now); now = time; } };
    if (task.resolved[index] >= 0) until("waiting for dependencies", "waiting", task.resolved[index]);
    mine.forEach((each, place) => {
      if (bar.submitted[each] >= 0) {
        until(place ? "until tried again" : "queued in the engine", place ? "retrying" : "engine", bar.submitted[each]);
      }
      until("queued at the backend", "backend", bar.begin[each]);
      until(mine.length > 1 ? `running, attempt ${bar.attempt[each]}` : "running", "running", bar.end[each]);
    });
    return found;
  }

  function outcome(index) {
    const attempts = barsOf[index].length;
    const state = STATES[task.state[index]];
    return attempts > 1 ? `${state} after ${bar.attempt[barsOf[index].at(-1)]} attempts` : state;
  }

  function firstLine(text) {
    const line = (text || "").trim().split("\n")[0];
    return line.length > 160 ? `${line.slice(0, 160)}…` : line;
  }

  function whatWentWrong(each) {
    const told = data.retried[each] || (bar.look[each] === RETRIED ? null : data.failure[bar.task[each]]);
    return told ? [told.type, firstLine(told.message)].filter(Boolean).join(": ") : "";
  }

  function showTip(each, x, y) {
    const index = bar.task[each], line = (...contents) => made("div", {}, ...contents);
    const tried = bar.look[each] === RETRIED ? `attempt ${bar.attempt[each]} failed, tried again` : outcome(index);
    const wrong = whatWentWrong(each);
    const place = placeOf(each), waits = activities(index).filter(one => one.kind !== "running");
    tip.replaceChildren(
      line(made("b", {}, nameOf(index)), ` ${task.uid[index]}`),
      line(`${tried} · ran ${duration(bar.end[each] - bar.begin[each])}`),
      wrong ? made("div", { className: "error" }, `✕ ${wrong}`) : "",
      line(`${place[2] || "worker unknown"}${place[1] ? ` on ${place[1]}` : ""}`),
      line(workflowOf(index) === null ? "no workflow" : `workflow ${workflowOf(index)}`),
      line(waits.map(one => `${one.words} ${duration(one.span)}`).join(", ")),
    );
    tip.hidden = false;
    const { width: wide, height: high } = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(x + 14, window.innerWidth - wide - 8))}px`;
    tip.style.top = `${y + 18 + high > window.innerHeight ? Math.max(4, y - high - 10) : y + 18}px`;
  }

  function hideTip() {
    tip.hidden = true;
    chart.classList.remove("over");
  }

  const MOST_LINKS = 24;
  function links(tasks) {
    const buttons = tasks.slice(0, MOST_LINKS).map(each => {
      const button = made("button", { type: "button", title: titleOf(each) }, titleOf(each));
      button.addEventListener("click", () => { select(each); showTask(each); });
      return button;
    });
    const others = tasks.length - buttons.length;
    return made("span", { className: "links" }, ...buttons, others > 0 ? `and ${thousands(others)} others` : "");
  }

  function select(index) {
    selected = index;
    if (index < 0) story.replaceChildren(made("p", { className: "faint hint" }, story.dataset.hint));
    else story.replaceChildren(...storyOf(index));
    draw();
  }

  function storyOf(index) {
    const facts = made("dl", {}), more = made("div", {}), mine = barsOf[index];
    const fact = (name, ...contents) => facts.append(made("dt", {}, name), made("dd", {}, ...contents));
    fact("ended", outcome(index));
    fact("workflow", workflowOf(index) === null ? "none" : workflowOf(index));
    const place = placeOf(mine.at(-1));
    fact("ran on", [place[2], place[1], place[0]].filter(Boolean).join(" · "));
    fact("called", `${clock(task.created[index], 1000)} after the first call, ${timeOfDay(task.created[index])}`);
    for (const { words, span } of activities(index)) fact(words, duration(span));
    if (task.kind[index] !== "block") fact("cores", String(task.cores[index]));
    if (task.parent[index] >= 0) fact("called in", links([task.parent[index]]));
    const above = task.after[index];
    if (above.length) {
      const last = above.reduce((a, b) => task.ended[a] >= task.ended[b] ? a : b);
      if (above.length > 1) fact("waited longest for", links([last]));
      fact("depends on", links(above));
    }
    const below = dependentsOf(index);
    if (below.length) fact("depended on by", links(below));
    for (const each of mine) {
      const tried = data.retried[each];
      if (tried) more.append(made("h3", {}, `Attempt ${bar.attempt[each]} failed`), ...wrong(tried));
    }
    const told = data.failure[index], cancelled = task.state[index] === CANCELLED;
    if (told) more.append(made("h3", {}, cancelled ? "Cancelled" : "Failed"), ...wrong(told));
    else if (cancelled || task.state[index] === FAILED) more.append("What it said is left out: too many failed.");
    const title = made("h3", {}, made("bdi", {}, titleOf(index)), onPath[index] ? " · on the critical path" : "");
    const close = made("button", { type: "button" }, "Close");
    close.addEventListener("click", () => select(-1));
    return [title, made("div", { className: "columns" }, facts, more), close];
  }

  function wrong(told) {
    const parts = [made("pre", {}, [told.type, told.message].filter(Boolean).join(": ") || "no message")];
    if (typeof told.exit_code === "number") parts.push(made("div", {}, `exit code ${told.exit_code}`));
    if (told.lost) parts.push(made("div", {}, "The worker was lost, through no fault of the task's."));
    if (told.stderr) parts.push(made("div", {}, "stderr, the last lines:"), made("pre", {}, told.stderr));
    return parts;
  }

  // --- legend and filters -------------------------------------------------------------------------------------------

  function swatch(draws) {
    const canvas = document.createElement("canvas");
    draws(sized(canvas, 22, 12));
    return canvas;
  }

  function drawLegend() {
    readTheme();
    const entries = paint.entries.map(entry => {
      const button = made("button", { type: "button", title: `Show only ${entry.label}` },
        swatch(pen => {
          pen.fillStyle = entry.colour;
          pen.fillRect(0, 0, 22, 12);
          if (entry.look !== undefined) mark(pen, entry.look, 0, 0, 22, 12);
        }), entry.label);
      button.setAttribute("aria-pressed", String(chosen.only === entry));
      if (chosen.only && chosen.only !== entry) button.classList.add("passed");
      button.addEventListener("click", () => {
        chosen.only = chosen.only === entry ? null : entry;
        filter();
        drawLegend();
      });
      return button;
    });
    const looks = [[FAILED, "failed"], [RETRIED, "attempt that failed and was tried again"], [CANCELLED, "cancelled"],
      [RUNNING, "had not ended"]].filter(([look]) => special.some(each => bar.look[each] === look));
    const key = (words, draws) => made("span", { className: "mark-key" }, swatch(draws), words);
    const marks = (chosen.colour === "state" ? [] : looks).map(([look, words]) => key(words, pen => {
      pen.fillStyle = look === CANCELLED ? theme.soft : OTHERS;
      pen.fillRect(0, 0, 22, 12);
      mark(pen, look, 0, 0, 22, 12);
    }));
    if (chosen.critical && data.critical.length) {
      marks.push(key("on the critical path", pen => {
        pen.strokeStyle = theme.text;
        pen.lineWidth = 3;
        pen.strokeRect(0, 0, 22, 12);
      }));
    }
    element("legend").replaceChildren(...entries, made("span", { className: "gap" }), ...marks);
  }

  function filter() {
    const words = chosen.words.toLowerCase().split(/\s+/).filter(Boolean);
    const tests = [];
    if (words.length) {
      const found = task.uid.map((uid, index) => `${nameOf(index)} ${uid} ${workflowOf(index) || ""}`.toLowerCase());
      const places = data.places.map(place => place.join(" ").toLowerCase());
      const has = (each, word) => found[bar.task[each]].includes(word) || places[bar.place[each]].includes(word);
      tests.push(each => words.every(word => has(each, word)));
    }
    if (chosen.only) tests.push(each => chosen.only.kinds.has(paint.kindOf(each)));
    if (chosen.trouble) tests.push(each => bar.look[each] !== DONE);
    shown = null;
    let matches = count;
    if (tests.length) {
      shown = new Uint8Array(count);
      matches = 0;
      for (let each = 0; each < count; each++) {
        if (tests.every(test => test(each))) { shown[each] = 1; matches++; }
      }
    }
    element("found").textContent = tests.length ? `${thousands(matches)} of ${thousands(count)}` : "";
    draw();
  }

  /** Go to the next match, from the selected one on. */
  function next() {
    if (!shown) return;
    const from = selected < 0 ? 0 : barsOf[selected].at(-1) + 1;
    for (let step = 0; step < count; step++) {
      const each = (from + step) % count;
      if (shown[each]) { select(bar.task[each]); showTask(bar.task[each]); return; }
    }
  }

  // --- events -------------------------------------------------------------------------------------------------------

  function listenToChart() {
    let grip = null;
    const at = event => {
      const frame = chart.getBoundingClientRect();
      return [event.clientX - frame.left, event.clientY - frame.top];
    };
    chart.addEventListener("pointerdown", event => {
      if (event.button) return;
      grip = { x: event.clientX, y: event.clientY, ...view, scroll: scroller.scrollTop, moved: false };
      chart.setPointerCapture(event.pointerId);
    });
    chart.addEventListener("pointermove", event => {
      if (!grip) {
        const each = barAt(...at(event));
        chart.classList.toggle("over", each >= 0);
        if (each < 0) hideTip();
        else showTip(each, event.clientX, event.clientY);
        return;
      }
      const dx = event.clientX - grip.x;
      grip.moved = grip.moved || Math.hypot(dx, event.clientY - grip.y) > 4;
      if (!grip.moved) return;
      chart.classList.add("dragged");
      const span = dx / (width - gutter) * (grip.end - grip.begin);
      show(grip.begin - span, grip.end - span);
      if (event.pointerType === "mouse") scroller.scrollTop = grip.scroll - (event.clientY - grip.y);
    });
    const release = event => {
      chart.classList.remove("dragged");
      if (grip && !grip.moved && event.type === "pointerup") {
        const each = barAt(...at(event));
        select(each < 0 ? -1 : bar.task[each]);
      }
      grip = null;
    };
    chart.addEventListener("pointerup", release);
    chart.addEventListener("pointercancel", release);
    chart.addEventListener("pointerleave", hideTip);
    chart.addEventListener("dblclick", event => {
      const each = barAt(...at(event));
      if (each < 0) return zoom(0.4, toTime(at(event)[0]));
      const room = Math.max(10, (bar.end[each] - bar.begin[each]) * 0.15);
      show(bar.begin[each] - room, bar.end[each] + room);
    });
    chart.addEventListener("wheel", event => {
      if (event.ctrlKey || event.metaKey) {
        event.preventDefault();
        zoom(Math.exp(Math.max(-1, Math.min(1, event.deltaY * 0.003))), toTime(at(event)[0]));
      } else if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
        event.preventDefault();
        const span = (event.deltaX || event.deltaY) / (width - gutter) * (view.end - view.begin);
        show(view.begin + span, view.end + span);
      }
    }, { passive: false });
    scroller.addEventListener("scroll", () => { hideTip(); draw(); });
    scroller.addEventListener("keydown", event => {
      const step = (view.end - view.begin) / 5;
      const does = {
        ArrowLeft: () => show(view.begin - step, view.end - step),
        ArrowRight: () => show(view.begin + step, view.end + step),
        "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), 0: () => show(0, whole),
        Escape: () => select(-1),
      }[event.key];
      if (does) { event.preventDefault(); does(); }
    });
  }

  function listenToMap() {
    let grip = null;
    const timeAt = event => {
      const frame = map.getBoundingClientRect();
      return Math.max(0, Math.min(1, (event.clientX - frame.left - gutter) / (width - gutter))) * whole;
    };
    map.addEventListener("pointerdown", event => {
      const time = timeAt(event), wide = view.end - view.begin;
      const moves = time > view.begin && time < view.end && wide < whole * 0.98;
      grip = { time, begin: view.begin, moves };
      map.setPointerCapture(event.pointerId);
    });
    map.addEventListener("pointermove", event => {
      if (!grip) return;
      const time = timeAt(event);
      if (grip.moves) {
        const wide = view.end - view.begin;
        show(grip.begin + time - grip.time, grip.begin + time - grip.time + wide);
      } else if (Math.abs(time - grip.time) > whole / 300) {
        show(Math.min(time, grip.time), Math.max(time, grip.time));
      }
    });
    map.addEventListener("pointerup", () => { grip = null; });
    map.addEventListener("pointercancel", () => { grip = null; });
    map.addEventListener("dblclick", () => show(0, whole));
  }

  function listenToToolbar() {
    for (const input of document.querySelectorAll("input[name=rows]")) {
      input.addEventListener("change", () => {
        chosen.rows = input.value;
        rows = arrangement(input.value);
        scroller.scrollTop = 0;
        hideTip();
        layOut();
      });
    }
    for (const input of document.querySelectorAll("input[name=colour]")) {
      input.addEventListener("change", () => {
        chosen.colour = input.value;
        chosen.only = null;
        paint = colourings[input.value]();
        filter();
        drawLegend();
      });
    }
    const on = (id, kind, does) => element(id).addEventListener(kind, does);
    on("critical", "change", event => { chosen.critical = event.target.checked; drawLegend(); draw(); });
    on("trouble", "change", event => { chosen.trouble = event.target.checked; filter(); });
    on("search", "input", event => { chosen.words = event.target.value; filter(); });
    on("search", "keydown", event => { if (event.key === "Enter") next(); });
    on("zoom-in", "click", () => zoom(0.5));
    on("zoom-out", "click", () => zoom(2));
    on("fit", "click", () => show(0, whole));
  }

  function listenToWindow() {
    new ResizeObserver(() => { if (scroller.clientWidth !== width) layOut(); }).observe(scroller);
    window.addEventListener("resize", () => layOut());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { drawLegend(); draw(); });
    const forPrint = now => () => {
      printing = now;
      document.documentElement.classList.toggle("printing", now);
      drawLegend();
      layOut();
      drawNow();
    };
    window.addEventListener("beforeprint", forPrint(true));
    window.addEventListener("afterprint", forPrint(false));
  }

  element("timeline-view").hidden = false;
  story.dataset.hint = story.textContent.trim();
  layOut();
  drawLegend();
  listenToChart();
  listenToMap();
  listenToToolbar();
  listenToWindow();
})();
