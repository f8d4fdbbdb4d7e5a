// The annotation screen's front end: draws `view`, sends what the person did. No build step; loaded by anywidget.
// Every text goes on the page through textContent. Model output is data here, whatever it looks like.

const SETTLE = 250; // ms after a new question in which nothing is an answer: nobody reads that fast, but a finger bounces

function make(tag, name, facts = {}, ...children) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  for (const [key, value] of Object.entries(facts)) key === "text" ? (node.textContent = value) : node.setAttribute(key, value);
  node.append(...children);
  return node;
}

const KEYS = { ArrowLeft: "←", ArrowRight: "→", "Shift+ArrowLeft": "⇧ ←", "Shift+ArrowRight": "⇧ →" };
const keycap = (key) => make("kbd", "", { "aria-hidden": "true", text: KEYS[key] || key });

function button(words, key, action) {
  const node = make("button", "", { type: "button", "aria-keyshortcuts": key }, keycap(key), make("span", "", { text: words }));
  node.addEventListener("click", (event) => {
    if (event.detail > 1) return; // the second half of a double click
    action(event);
  });
  return node;
}

function pour(node, segments) {
  node.replaceChildren(...segments.map(([text, marker]) => (marker ? make("span", "marker", { text }) : document.createTextNode(text))));
}

function pane(label) {
  const text = make("div", "text", { dir: "auto", tabindex: "0", role: "document" });
  const more = make("div", "more", { text: "scroll for more ↓", "aria-hidden": "true" });
  const head = make("div", "head");
  const node = make("section", "pane", { "aria-label": label }, head, text, more);
  const measure = () => node.classList.toggle("long", text.scrollHeight - text.scrollTop - text.clientHeight > 8);
  text.addEventListener("scroll", measure);
  new ResizeObserver(measure).observe(text);
  return { node, head, text, measure };
}

function minutes(value) {
  if (value < 1) return "under a minute left";
  const whole = Math.round(value);
  return `about ${whole} ${whole === 1 ? "minute" : "minutes"} left`;
}

export default {
  render({ model, el }) {
    let drawnAt = 0;
    let turn = null;
    let waiting = false;
    let silence = 0;
    let why = false;

    const root = make("div", "shfcas-screen", { tabindex: "0", role: "region", "aria-label": "Annotation screen" });
    const title = make("div", "title");
    const pace = make("div", "pace");
    const bar = make("div", "fill");
    const track = make("div", "track", { role: "progressbar", "aria-label": "answered", "aria-valuemin": "0" }, bar);
    const prompt = pane("Request");
    prompt.node.classList.add("prompt");
    prompt.head.append("Request");
    const left = pane("Left answer");
    const right = pane("Right answer");
    const pair = make("div", "pair", {}, left.node, right.node);
    const choices = make("div", "choices", { role: "group", "aria-label": "Your answer" });
    const note = make("input", "note", { type: "text", maxlength: "2000", placeholder: "A note on this one (Enter: keep it, Esc: drop it)", "aria-label": "Note" });
    const undo = button("Undo", "u", () => act("undo"));
    const back = button("Back", "p", () => act("back"));
    const resume = button("Continue", "c", () => act("resume"));
    const noting = button("Note", "n", () => openNote());
    const reason = button("Why asked?", "r", () => toggleWhy());
    const keys = button("Keys", "?", () => toggleHelp());
    const tools = make("div", "tools", { role: "toolbar", "aria-label": "Tools" }, undo, back, resume, noting, reason, keys);
    const status = make("div", "status", { role: "status", "aria-live": "polite" });
    const estimate = make("div", "estimate");
    const unfocused = make("div", "unfocused", { text: "Click here, or Tab to it, and answer with the keyboard" });
    const help = make("div", "help", { hidden: "", role: "note", "aria-label": "Keys" });
    const finish = button("Finish", "Enter", () => act("finish"));
    const notice = make("div", "notice", {}, make("p", "lead"), make("p", "more-words"), finish);
    root.append(make("div", "top", {}, title, pace), track, prompt.node, pair, notice, choices, note, tools, help,
      make("div", "bottom", {}, status, unfocused), estimate);
    el.append(root);

    const view = () => model.get("view");

    function act(what, more = {}) {
      const now = view();
      if (waiting || !now.turn) return;
      waiting = true; // until the kernel has stored it and says what comes next
      root.classList.add("waiting");
      model.send({ do: what, turn: now.turn, ...more });
      silence = setTimeout(() => {
        free();
        status.textContent = "The kernel does not answer. If it is busy, wait; if it was stopped, run this notebook's cells again: every answer it had confirmed is saved.";
      }, 6000);
    }

    function free() {
      clearTimeout(silence);
      waiting = false;
      root.classList.remove("waiting");
    }

    function answer(word, event) {
      const passed = performance.now() - drawnAt;
      if (view().state !== "ask" || passed < SETTLE) return;
      if (event && event.detail > 0) root.focus({ preventScroll: true }); // after the mouse, Enter must not press the button again
      act("answer", { answer: word, note: note.value, seconds: passed / 1000 });
    }

    function openNote() {
      if (view().state !== "ask") return;
      root.classList.add("noting");
      note.focus();
    }

    function closeNote(keep) {
      if (!keep) note.value = view().note || "";
      root.classList.toggle("noting", note.value !== "");
      root.focus({ preventScroll: true });
    }

    function toggleWhy() {
      why = !why;
      say();
    }

    function toggleHelp(shown = help.hidden) {
      help.hidden = !shown;
      keys.setAttribute("aria-expanded", String(shown));
    }

    function say() {
      const { last, message } = view();
      reason.setAttribute("aria-pressed", String(why));
      const told = why && last ? `Your last answer: ${last.answer}. Asked by ${last.strategy}: ${last.reason}` : "";
      status.textContent = [message, told].filter(Boolean).join(" ");
    }

    note.addEventListener("keydown", (event) => {
      event.stopPropagation(); // letters of a note are letters
      if (event.isComposing) return;
      if (event.key === "Enter" || event.key === "Escape") {
        event.preventDefault();
        closeNote(event.key === "Enter");
      }
    });

    root.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return; // the browser's and JupyterLab's
      const { key } = event;
      if (["Tab", "Shift", "CapsLock"].includes(key) || /^F\d+$/.test(key)) return;
      event.stopPropagation(); // d d would delete the cell
      if ((key === "Enter" || key === " ") && event.target.closest("button")) return;
      const now = view();
      const name = key.length === 1 ? key.toLowerCase() : key;
      const named = (wanted) => now.state === "ask" && now.choices.find(([, shortcut]) => shortcut === wanted);
      const choice = (event.shiftKey && named(`Shift+${name}`)) || named(name); // = itself needs Shift on some keyboards
      const tool = { u: undo, Backspace: undo, p: back, c: resume, n: noting, r: reason, "?": keys, Enter: finish }[name];
      if (!choice && !tool && key !== "Escape") return;
      event.preventDefault();
      if (event.repeat) return; // a key held down answers once
      if (key === "Escape") toggleHelp(false);
      else if (choice) answer(choice[0]);
      else if (tool.offsetParent && !tool.disabled) tool.click();
    });

    function describe(now) {
      help.replaceChildren(...[...(now.choices || []).map(([, key, words]) => [key, words]), ["u", "take the last answer back (also Backspace)"],
        ["p", "go back to an earlier one"], ["c", "continue where you were"], ["n", "write a note"], ["r", "why was the last one asked?"],
        ["↑ ↓", "scroll a text that has the focus (Tab)"], ["Esc", "close this"]]
        .map(([key, words]) => make("div", "", {}, keycap(key), make("span", "", { text: words }))));
    }

    function draw() {
      const now = view();
      const fresh = now.turn !== turn;
      turn = now.turn;
      free();
      root.dataset.state = now.state || "busy";
      root.dataset.scale = now.scale || "pair";
      root.dataset.turn = now.turn || "";
      root.dataset.done = String(now.done ?? "");
      title.textContent = now.title || "";
      const facts = [now.total ? `${now.done} of ${now.total}` : "", now.where, now.per_minute ? `${now.per_minute.toFixed(1)} labels a minute` : "",
        now.minutes_left ? minutes(now.minutes_left) : ""];
      pace.replaceChildren(...facts.filter(Boolean).map((fact) => make("span", "", { text: fact })));
      track.setAttribute("aria-valuemax", String(now.total || 0));
      track.setAttribute("aria-valuenow", String(now.done || 0));
      bar.style.width = now.total ? `${(100 * now.done) / now.total}%` : "0";
      notice.querySelector(".lead").textContent = now.lead || "";
      notice.querySelector(".more-words").textContent = now.words || "";
      finish.hidden = !now.finish;
      finish.querySelector("span").textContent = now.finish || "";
      undo.disabled = !now.undo;
      back.disabled = !now.back;
      resume.hidden = !now.earlier;
      reason.disabled = !now.last;
      say();
      describe(now);
      if (now.state !== "ask") return;
      left.head.replaceChildren(now.texts.length > 1 ? "Left" : "Answer");
      right.head.replaceChildren("Right");
      right.node.hidden = now.texts.length < 2;
      if (fresh) {
        for (const [place, segments] of [[prompt, now.prompt], [left, now.texts[0]], [right, now.texts[1] || []]]) {
          pour(place.text, segments);
          place.text.scrollTop = 0;
          place.measure();
        }
        const held = root.contains(document.activeElement) ? document.activeElement.dataset?.answer : null;
        choices.replaceChildren(...now.choices.map(([word, key, words]) => {
          const node = button(words, key, (event) => answer(word, event));
          node.dataset.answer = word;
          node.setAttribute("aria-pressed", String(word === now.given));
          return node;
        }));
        if (held) (choices.querySelector(`[data-answer="${CSS.escape(held)}"]`) || root).focus({ preventScroll: true });
        note.value = now.note || "";
        root.classList.toggle("noting", note.value !== "");
        drawnAt = performance.now();
      }
      left.node.classList.toggle("given", ["left", "much_left"].includes(now.given));
      right.node.classList.toggle("given", ["right", "much_right"].includes(now.given));
    }

    const drawEstimate = () => (estimate.textContent = model.get("estimate"));
    model.on("change:view", draw);
    model.on("change:estimate", drawEstimate);
    model.on("msg:custom", free); // the kernel has heard, and nothing changed
    draw();
    drawEstimate();
    return () => {
      model.off("change:view", draw);
      model.off("change:estimate", drawEstimate);
      model.off("msg:custom", free);
    };
  },
};
