"use strict";
(() => {
  const one = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  let finished = false;

  const problem = (text) => {
    one("#problem").textContent = text;
    one("#problem").hidden = !text;
  };

  const ask = async (path, values) => {
    if (finished) return null;
    const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(values) };
    try {
      const response = await fetch(path, options);
      const kind = response.headers.get("Content-Type") || "";
      const answer = kind.startsWith("application/json") ? await response.json() : { error: await response.text() };
      problem(response.ok ? "" : "Not saved: " + answer.error);
      return response.ok ? answer : null;
    } catch {
      problem("Not saved: the review has ended. Start it again in the terminal.");
      return null;
    }
  };

  const tell = (group, counts) => {
    const [accepted, rejected, open] = counts;
    group.dataset.open = open;
    group.dataset.decided = accepted + rejected;
    one(".counts", group).textContent = accepted + " accepted, " + rejected + " rejected, " + open + " open";
  };

  const total = () => {
    const sum = (name) => all(".group").reduce((known, group) => known + Number(group.dataset[name]), 0);
    one("#progress").textContent = sum("decided") + " of " + (sum("decided") + sum("open")) + " decided";
  };

  const mark = (card, said) => {
    card.dataset.said = said;
    for (const button of all(".choice button", card)) {
      button.setAttribute("aria-pressed", String(button.dataset.decision === said));
    }
  };

  const show = (answer) => {
    if (!answer) return;
    for (const [row, said] of Object.entries(answer.changed)) {
      const card = one('.card[data-row="' + Number(row) + '"]');
      if (card) mark(card, said);
    }
    all(".group").forEach((group, number) => tell(group, answer.counts[number]));
    total();
  };

  const load = async (group) => {
    const list = one(".cards", group);
    if (group.dataset.loading) return;
    group.dataset.loading = "yes";
    const from = list.children.length;
    try {
      const response = await fetch("cards?group=" + group.dataset.group + "&from=" + from);
      if (!response.ok) throw new Error();
      list.insertAdjacentHTML("beforeend", await response.text());
      [...list.children].slice(from).forEach((card) => mark(card, card.dataset.said));
    } catch {
      problem("The review has ended. Start it again in the terminal.");
    }
    delete group.dataset.loading;
    one(".more", group).hidden = list.children.length >= Number(group.dataset.size);
  };

  const decide = async (card, decision) => {
    const said = card.dataset.said === decision ? "" : decision;
    show(await ask("decide", { rows: [Number(card.dataset.row)], decision: said }));
  };

  const decideGroup = async (group, decision) => {
    show(await ask("decide", { group: Number(group.dataset.group), decision }));
  };

  const current = () => document.activeElement.closest(".card");

  const move = async (by) => {
    const cards = all(".group[open] .card");
    const place = cards.indexOf(current());
    const next = cards[place < 0 ? 0 : Math.max(0, Math.min(cards.length - 1, place + by))];
    if (!next) return;
    next.focus();
    const group = next.closest(".group");
    if (next === one(".cards", group).lastElementChild && !one(".more", group).hidden) await load(group);
  };

  const undo = async () => show(await ask("undo", {}));

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) {
      const card = event.target.closest(".card");
      if (card) card.focus();
      return;
    }
    const card = button.closest(".card");
    const group = button.closest(".group");
    if (card) {
      card.focus();
      decide(card, button.dataset.decision);
    } else if (button.classList.contains("more")) load(group);
    else if (group) decideGroup(group, button.dataset.decision);
  });

  document.addEventListener("keydown", async (event) => {
    if (finished || event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.toLowerCase();
    const decision = { a: "accepted", r: "rejected" }[key];
    const card = current();
    if (decision && card) {
      event.preventDefault();
      if (event.shiftKey) decideGroup(card.closest(".group"), decision);
      else {
        const ahead = card.dataset.said !== decision;
        await decide(card, decision);
        if (ahead && card.dataset.said === decision) move(1);
      }
    } else if (key === "u") {
      event.preventDefault();
      undo();
    } else if (key === "arrowright" || key === "j") {
      event.preventDefault();
      move(1);
    } else if (key === "arrowleft" || key === "k") {
      event.preventDefault();
      move(-1);
    }
  });

  one("#undo").addEventListener("click", undo);
  one("#finish").addEventListener("click", async () => {
    if (!(await ask("finish", {}))) return;
    finished = true;
    all("button").forEach((button) => { button.disabled = true; });
    all(".group, .intro").forEach((part) => { part.hidden = true; });
    one("#done").hidden = false;
    scrollTo(0, 0);
  });

  for (const group of all(".group")) {
    tell(group, one(".counts", group).dataset.counts.split(",").map(Number));
    group.addEventListener("toggle", () => {
      if (group.open && !one(".cards", group).children.length) load(group);
    });
    if (group.open) load(group);
  }
  total();
})();
