"use strict";
// Writes the items of the page, as text and nothing else, a screenful at a time.
const data = JSON.parse(document.getElementById("data").textContent);
const many = data.names.length > 1, last = data.names.length - 1;
const PART = 30, LONG = 500; // items at a time; characters of a prompt before it is folded
const get = (id) => document.getElementById(id);

function make(tag, kind, ...inside) {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  made.append(...inside.filter((one) => one !== null && one !== undefined));
  return made;
}

// A text as the model read it: special tokens are tinted, spaces and line breaks at its ends are marked.
function exact(text) {
  const made = make("span", "exact");
  const [, before, middle, after] = /^(\s*)([^]*?)(\s*)$/.exec(text);
  const marked = (space) => [...space].map((c) => (c === "\n" ? "⏎\n" : c === "\t" ? "⇥" : "␣")).join("");
  if (before) made.append(make("mark", "", marked(before)));
  for (const part of middle.split(/(<\|[a-z_]+\|>)/)) if (part) made.append(/^<\|[a-z_]+\|>$/.test(part) ? make("b", "special", part) : part);
  if (after) made.append(make("mark", "", marked(after)));
  return made;
}

function prompt(text) {
  const made = make("pre", "prompt");
  if (text.length <= LONG * 1.5) { made.append(exact(text)); return made; }
  const more = make("button", "more", `show all ${text.length.toLocaleString("en")} characters`);
  more.type = "button";
  more.onclick = () => made.replaceChildren(exact(text));
  made.append(more, "\n… ", exact(text.slice(-LONG)));
  return made;
}

const right = (side) => side.correct > 0.5;
const verdict = (side) => (side.correct === 0 || side.correct === 1 ? (right(side) ? "right" : "wrong") : `${Math.round(side.correct * 100)} % right`);
const number = (value) => (typeof value !== "number" ? String(value) : Number.isInteger(value) ? String(value) : value.toFixed(3));

function badge(index, text, kind) {
  const made = make("span", `badge ${kind || ""}`);
  if (many && index !== null) made.append(make("i", `dot b${index % 5}`));
  made.append(text);
  return made;
}

function choices(item) {
  // by name, a column for each side; one where all agree, as on the tokens of a choice
  const columns = [], sides = item.sides.map((side, index) => [index, side]).filter(([, side]) => side);
  for (const name of new Set(sides.flatMap(([, side]) => Object.keys(side.scores)))) {
    const having = sides.filter(([, side]) => side.scores[name]), values = having.map(([, side]) => side.scores[name].join());
    const alike = having.length > 1 && values.every((value) => value === values[0]);
    for (const [index] of alike ? having.slice(0, 1) : having) columns.push([index, name, alike]);
  }
  const head = make("tr", "", make("th", "", ""), make("th", "left", "choice"));
  for (const [index, name, alike] of columns) head.append(make("th", "", many && !alike ? make("i", `dot b${index % 5}`) : null, name));
  const table = make("table", "choices", head);
  item.choices.forEach((choice, place) => {
    const said = make("td", "", place === item.gold ? badge(null, "gold", "gold") : null);
    item.sides.forEach((side, index) => { if (side && side.answer === place) said.append(badge(index, "answer", right(side) ? "ok" : "no")); });
    const row = make("tr", "", said, make("td", "left", exact(choice)));
    for (const [index, name] of columns) { const value = item.sides[index].scores[name][place]; row.append(make("td", "", value === undefined ? "" : number(value))); }
    table.append(row);
  });
  return make("div", "table", table);
}

function texts(item) {
  const made = make("dl", "texts", make("dt", "", badge(null, "gold", "gold")), make("dd", "", exact(String(item.gold))));
  item.sides.forEach((side, index) => {
    if (!side) return;
    const scores = Object.entries(side.scores).map(([name, values]) => ` ${name} ${values.map(number).join(", ")}`).join(";");
    made.append(make("dt", "", badge(index, "answer", right(side) ? "ok" : "no")), make("dd", "", exact(String(side.answer)), scores ? make("span", "soft", scores) : null));
  });
  return made;
}

function card(item) {
  const head = make("div", "head", make("h3", "", `${item.task} ${item.index}`));
  const verdicts = make("span", "verdicts");
  item.sides.forEach((side, index) => verdicts.append(side ? badge(index, verdict(side), right(side) ? "ok" : "no") : badge(index, "not asked")));
  head.append(verdicts);
  const made = make("section", "card item", head, prompt(item.prompt));
  item.sides.forEach((side, index) => { if (side && side.prompt !== undefined) made.append(make("p", "note", badge(index, "read another prompt:")), prompt(side.prompt)); });
  made.append(item.choices.length ? choices(item) : texts(item));
  return made;
}

const TESTS = {
  all: () => true,
  right: (item, side) => item.sides[side] && right(item.sides[side]),
  wrong: (item, side) => item.sides[side] && !right(item.sides[side]),
  changed: (item) => item.sides[0] && item.sides[last] && right(item.sides[0]) !== right(item.sides[last]),
  gained: (item) => TESTS.changed(item) && right(item.sides[last]),
  lost: (item) => TESTS.changed(item) && right(item.sides[0]),
  answers: (item) => item.sides[0] && item.sides[last] && item.sides[0].answer !== item.sides[last].answer,
};

function haystack(item) {
  if (item.words === undefined) item.words = [item.prompt, ...item.choices, item.gold, ...item.sides.map((side) => (side ? side.answer : ""))].join("\n").toLowerCase();
  return item.words;
}

let shown = [], drawn = 0;

function more() {
  get("items").append(...shown.slice(drawn, drawn + PART).map(card));
  drawn = Math.min(drawn + PART, shown.length);
  get("end").textContent = drawn < shown.length ? "…" : shown.length ? "" : "No item is like that.";
}

function filter() {
  const [test, side] = get("verdict").value.split(" "), task = get("task").value, words = get("words").value.toLowerCase();
  shown = data.items.filter((item) => (!task || item.task === task) && TESTS[test](item, Number(side)) && (!words || haystack(item).includes(words)));
  drawn = 0;
  get("items").replaceChildren();
  get("found").textContent = `${shown.length.toLocaleString("en")} of ${data.items.length.toLocaleString("en")}`;
  more();
}

let waiting;
get("filters").oninput = () => { clearTimeout(waiting); waiting = setTimeout(filter, 120); };
get("filters").onsubmit = (event) => event.preventDefault();
new IntersectionObserver((seen) => { if (seen.some((one) => one.isIntersecting) && drawn < shown.length) more(); }, { rootMargin: "1500px" }).observe(get("end"));
filter();
