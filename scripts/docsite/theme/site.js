"use strict";
// Theme, menu and search. The search index is a script, as a page opened from disk may not read other files.
(function () {
  const base = document.body.dataset.base;
  const root = document.documentElement;
  const input = document.getElementById("site-search");
  const results = document.getElementById("site-results");
  const pages = document.getElementById("site-pages");
  const SHOWN = 30;

  document.getElementById("site-theme").addEventListener("click", () => {
    root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("theme", root.dataset.theme); } catch (error) { /* a browser without storage */ }
  });

  const menu = document.getElementById("site-menu");
  menu.addEventListener("click", () => {
    menu.setAttribute("aria-expanded", String(pages.classList.toggle("shown")));
  });
  const current = pages.querySelector("[aria-current]");
  if (current) pages.scrollTop = current.offsetTop - pages.clientHeight / 2;

  // what is wider than the page scrolls by keys too
  for (const wide of document.querySelectorAll("pre, table")) {
    if (wide.scrollWidth > wide.clientWidth) wide.tabIndex = 0;
  }

  let loading = null;
  function load() {
    loading = loading || new Promise((done, failed) => {
      const script = document.createElement("script");
      script.src = base + "/search/search_index.js";
      script.onload = () => done(window.searchIndex.docs);
      script.onerror = failed;
      document.head.append(script);
    });
    return loading;
  }

  // every word must be there; in a title it weighs more, and most as the whole title
  function weight(entry, words) {
    const title = entry.title.toLowerCase();
    const text = entry.text.toLowerCase();
    let sum = 0;
    for (const word of words) {
      if (title === word) sum += 30;
      else if (title.includes(word)) sum += 10;
      else if (text.includes(word)) sum += 1;
      else return 0;
    }
    return sum;
  }

  function excerpt(text, word) {
    const from = Math.max(0, text.toLowerCase().indexOf(word) - 60);
    return (from ? "…" : "") + text.slice(from, from + 160).trim() + (text.length > from + 160 ? "…" : "");
  }

  function plain(text) {
    return new DOMParser().parseFromString(text, "text/html").body.textContent;
  }

  async function search() {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    results.hidden = !words.length;
    if (!words.length) return;
    const docs = await load();
    const found = docs.map((entry) => [weight(entry, words), entry]).filter(([sum]) => sum > 0);
    found.sort((a, b) => b[0] - a[0]);
    const titles = new Map(docs.filter((entry) => !entry.location.includes("#")).map((one) => [one.location, one.title]));
    results.replaceChildren(...found.slice(0, SHOWN).map(([, entry]) => {
      const link = document.createElement("a");
      const title = document.createElement("b");
      const text = document.createElement("span");
      link.href = base + "/" + entry.location;
      const of = entry.location.includes("#") ? titles.get(entry.location.split("#")[0]) : "";
      title.textContent = plain(of ? entry.title + " · " + of : entry.title);
      text.textContent = excerpt(plain(entry.text), words[0]);
      link.append(title, text);
      return link;
    }));
    if (!found.length) {
      const none = document.createElement("p");
      none.textContent = "Nothing found.";
      results.append(none);
    }
  }

  input.addEventListener("input", search);
  document.addEventListener("keydown", (event) => {
    const typing = /^(INPUT|TEXTAREA)$/.test(document.activeElement.tagName);
    if (event.key === "/" && !typing) { event.preventDefault(); input.focus(); }
    if (event.key === "Escape") results.hidden = true;
    if (event.key === "Enter" && document.activeElement === input && results.querySelector("a")) {
      location.href = results.querySelector("a").href;
    }
  });
  document.addEventListener("click", (event) => {
    if (!event.target.closest(".search")) results.hidden = true;
  });
})();
