"use strict";
(() => {
  const all = (css, root = document) => [...root.querySelectorAll(css)];

  // -- theme: the system's, until someone chooses -----------------------------------------------
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const kept = () => { try { return localStorage.getItem("profinfer-theme"); } catch { return null; } };
  if (kept()) root.dataset.theme = kept();
  document.getElementById("theme").addEventListener("click", () => {
    const now = root.dataset.theme || (dark.matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
    try { localStorage.setItem("profinfer-theme", root.dataset.theme); } catch { /* not kept */ }
  });

  // -- tables: sort, filter, all columns ----------------------------------------------------------
  const value = (row, at) => {
    const cell = row.cells[at];
    return "v" in cell.dataset ? Number(cell.dataset.v) : cell.textContent;
  };
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a !== typeof b) return typeof a === "number" ? 1 : -1; // what is missing comes last
    return a.localeCompare(b, undefined, { numeric: true });
  };
  const sort = (table, at) => {
    const heads = all("thead th", table);
    const was = heads[at].getAttribute("aria-sort");
    const numeric = heads[at].classList.contains("n");
    const down = was === "none" ? numeric : was === "ascending";
    heads.forEach((h) => h.setAttribute("aria-sort", "none"));
    heads[at].setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [value(row, at), row]);
    rows.sort((a, b) => (down ? -1 : 1) * compare(a[0], b[0]));
    body.append(...rows.map(([, row]) => row));
  };
  for (const table of all("table")) {
    all("thead th", table).forEach((head, at) => {
      head.querySelector("button").addEventListener("click", () => sort(table, at));
    });
  }
  for (const field of all("input[type=search]")) {
    const table = field.closest(".result").querySelector("table");
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of table.tBodies[0].rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
    });
  }
  for (const button of all("button.more")) {
    const table = button.closest(".result").querySelector("table");
    button.addEventListener("click", () => {
      const on = table.classList.toggle("all");
      button.setAttribute("aria-pressed", String(on));
    });
  }

  // -- charts: what a value says when it is pointed at, or walked to with the arrow keys ----------
  const tip = document.getElementById("tip");
  let marked = null;
  const hide = () => {
    tip.hidden = true;
    if (marked) { marked.classList.contains("ring") ? marked.remove() : marked.classList.remove("on"); }
    marked = null;
  };
  const say = (text, x, y) => {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = x + 14 + box.width > innerWidth ? x - 14 - box.width : x + 14;
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${Math.max(4, Math.min(y - box.height - 10, innerHeight - box.height - 4))}px`;
  };
  const chart = (svg, tips) => {
    const flat = svg.dataset.points ? svg.dataset.points.split(" ").map(Number) : [];
    const count = flat.length / 2;
    const bars = all("[data-i]", svg);
    const scale = () => svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
    const show = (i, x, y) => {
      hide();
      const box = svg.getBoundingClientRect();
      if (bars.length) {
        marked = bars[i];
        marked.classList.add("on");
        svg.append(marked); // above its neighbours
        const at = marked.getBoundingClientRect();
        say(tips[i], x ?? at.right, y ?? at.top);
      } else {
        marked = document.createElementNS(svg.namespaceURI, "circle");
        marked.setAttribute("class", "ring");
        marked.setAttribute("r", "6");
        marked.setAttribute("cx", flat[2 * i]);
        marked.setAttribute("cy", flat[2 * i + 1]);
        svg.append(marked);
        say(tips[i], box.left + flat[2 * i] * scale(), box.top + flat[2 * i + 1] * scale());
      }
    };
    svg.addEventListener("pointermove", (event) => {
      if (bars.length) {
        const i = event.target.dataset && event.target.dataset.i;
        return i === undefined ? hide() : show(Number(i), event.clientX, event.clientY);
      }
      const box = svg.getBoundingClientRect();
      const x = (event.clientX - box.left) / scale();
      const y = (event.clientY - box.top) / scale();
      const flatten = svg.dataset.near === "x" ? 0.15 : 1;
      let best = -1;
      let least = 40 ** 2;
      for (let i = 0; i < count; i++) {
        const far = (flat[2 * i] - x) ** 2 + flatten * (flat[2 * i + 1] - y) ** 2;
        if (far < least) [best, least] = [i, far];
      }
      return best < 0 ? hide() : show(best);
    });
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("blur", hide);
    const order = bars.length ? bars.map((_, i) => i) : [...Array(count).keys()]
      .sort((a, b) => flat[2 * a] - flat[2 * b]);
    let place = -1;
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1, PageDown: 20, PageUp: -20 }[event.key];
      if (event.key === "Escape") return hide();
      if (!step || !order.length) return undefined;
      event.preventDefault();
      place = Math.max(0, Math.min(order.length - 1, place + step));
      return show(order[place]);
    });
  };
  for (const figure of all("figure")) {
    const told = figure.querySelector('script[type="application/json"]');
    if (!told) continue;
    const tips = JSON.parse(told.textContent);
    all(".wide > svg, .narrow > svg", figure).forEach((svg) => chart(svg, tips));
  }
  addEventListener("scroll", hide, { passive: true });

  // -- contents: where the reader is ----------------------------------------------------------------
  const links = new Map(all("nav ol a").map((a) => [a.getAttribute("href").slice(1), a]));
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      links.forEach((a) => a.removeAttribute("aria-current"));
      links.get(entry.target.id)?.setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-10% 0px -80% 0px" });
  all("main > section").forEach((section) => seen.observe(section));
})();
