"use strict";
// Draws a page's data. The same in a file and on a server, where it also looks for newer data.
let data = JSON.parse(document.getElementById("data").textContent);
const main = document.getElementById("blocks");
const chosen = new Map(); // Slider positions, sorting and filters, which newer data leave as they are.
const dark = matchMedia("(prefers-color-scheme: dark)");

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

async function loadPlotly() {
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const url = URL.createObjectURL(new Blob([await new Response(stream).blob()], { type: "text/javascript" }));
  await new Promise((resolve, reject) => {
    document.head.append(element("script", { src: url, onload: resolve, onerror: reject }));
  });
  URL.revokeObjectURL(url);
}

function themed(layout) {
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name).trim();
  const axis = { gridcolor: color("--line"), zerolinecolor: color("--line"), linecolor: color("--line"), automargin: true };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "x unified",
    font: { color: color("--ink"), family: "inherit", size: 12 }, margin: { l: 48, r: 12, t: 22, b: 40 },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    hoverlabel: { bgcolor: color("--card"), bordercolor: color("--line"), font: { color: color("--ink") } },
    colorway: ["#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#0891b2", "#65a30d", "#dc2626"],
    ...layout,
    xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis },
  };
}

const draw = {
  facts(block) {
    const rows = block.rows.map(([name, value]) =>
      element("tr", {}, element("th", { scope: "row", textContent: name }), element("td", { textContent: value })));
    return [element("table", { className: "facts" }, ...rows)];
  },

  note(block) {
    return [element("ul", {}, ...block.sentences.map((sentence) => element("li", { textContent: sentence })))];
  },

  source(block) {
    return [element("details", {}, element("summary", { textContent: "show" }), element("pre", { textContent: block.text }))];
  },

  pictures(block) {
    return [element("div", { className: "row" }, ...block.items.map(([caption, uri]) =>
      element("figure", {}, element("img", { src: uri, alt: caption }), element("figcaption", { textContent: caption }))))];
  },

  slider(block) {
    const last = block.frames.length - 1;
    const image = element("img", { alt: block.title });
    const output = element("output");
    const input = element("input", { type: "range", min: 0, max: last, step: 1, ariaLabel: block.title });
    const show = () => {
      [output.textContent, image.src] = block.frames[input.value];
      input.setAttribute("aria-valuetext", output.textContent);
      if (Number(input.value) === last) chosen.delete(block.title); else chosen.set(block.title, input.value);
    };
    input.value = chosen.get(block.title) ?? last;
    input.addEventListener("input", show);
    show();
    return [image, element("div", { className: "slide" }, input, output)];
  },

  table(block) {
    const body = element("tbody");
    const heads = block.columns.map((name, column) => {
      const button = element("button", { type: "button", textContent: name });
      button.addEventListener("click", () => {
        const old = chosen.get(block.title + " order");
        chosen.set(block.title + " order", [column, old?.[0] === column ? -old[1] : 1]);
        fill();
      });
      return element("th", { scope: "col" }, button);
    });
    const search = element("input", { type: "search", placeholder: "filter rows", ariaLabel: "filter " + block.title });
    search.value = chosen.get(block.title + " filter") ?? "";
    search.addEventListener("input", () => { chosen.set(block.title + " filter", search.value); fill(); });

    function fill() {
      const [by, way] = chosen.get(block.title + " order") ?? [null, 1];
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let order = block.rows.map((_, index) => index);
      order = order.filter((index) => words.every((word) => block.rows[index].join(" ").toLowerCase().includes(word)));
      if (by !== null) order.sort((a, b) => way * compare(block.rows[a][by], block.rows[b][by], way));
      heads.forEach((head, column) => head.ariaSort = column === by ? (way > 0 ? "ascending" : "descending") : "none");
      body.replaceChildren(...order.map((index) => {
        const cells = block.rows[index].map((value, column) => element("td", {
          textContent: value === null ? "" : value,
          className: (typeof value === "number" ? "number " : String(value).length > 40 ? "long " : "") +
            (block.best.some(([r, c]) => r === index && c === column) ? "best" : ""),
        }));
        const row = element("tr", {}, ...cells);
        if (block.opens.length) {
          row.className = "opens";
          row.tabIndex = 0;
          row.addEventListener("click", () => {
            // An address begins with a slash, and only a server has such rows; all else names a detail of this page.
            if (block.opens[index].startsWith("/")) location.href = block.opens[index];
            else location.hash = block.opens[index];
          });
          row.addEventListener("keydown", (event) => { if (event.key === "Enter") row.click(); });
        }
        return row;
      }));
    }

    fill();
    const shown = element("div", { className: "scroll" },
      element("table", {}, element("thead", {}, element("tr", {}, ...heads)), body));
    return block.filters ? [search, shown] : [shown];
  },

  chart(block) {
    const place = element("div", { className: "chart" });
    place.style.height = block.height + "px";
    const plot = async () => {
      const narrow = place.clientWidth < 480 ? { legend: { orientation: "h", y: -0.3, font: { size: 11 } } } : {};
      await Plotly.react(place, block.traces, themed({ ...block.layout, ...narrow }), { displayModeBar: false, responsive: true });
      if (!place.dataset.listens) {
        place.dataset.listens = "yes";
        place.on("plotly_click", (event) => {
          const name = event.points[0].customdata;
          if (typeof name === "string") location.hash = name;
        });
      }
    };
    place.plot = plot;
    return [place];
  },
};

// Numbers before text; what is missing stands last in either direction.
function compare(a, b, way) {
  if (a === null || b === null) return a === b ? 0 : (a === null ? 1 : -1) * way;
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), undefined, { numeric: true });
}

function width(block, blocks) {
  if (["table", "source", "facts", "note", "pictures"].includes(block.type)) return "wide";
  if (block.type === "chart" && block.traces[0]?.type === "parcoords") return "wide";
  if (block.type === "chart" && block.height >= 400) return "wide";
  if (block.type === "slider" && blocks.filter((other) => other.type === "slider").length === 1) return "";
  return block.type === "chart" && block.height < 225 && blocks.length > 12 ? "small" : "";
}

async function render() {
  document.getElementById("kind").textContent = data.kind;
  document.getElementById("title").textContent = data.title;
  document.getElementById("subtitle").textContent = data.subtitle;
  const shown = data.blocks.filter(Boolean);
  main.replaceChildren(...shown.map((block, index) => {
    const section = element("section", { id: "s" + index, className: width(block, shown) },
      element("h2", { textContent: block.title }), ...draw[block.type](block));
    if (block.note) section.append(element("p", { className: "note", textContent: block.note }));
    return section;
  }));
  const anchors = shown.map((block, index) => [block, index]).filter(([block]) => width(block, shown) === "wide" || block.type === "slider");
  document.getElementById("contents").replaceChildren(...anchors.map(([block, index]) => {
    const link = element("a", { href: "#s" + index, textContent: block.title });
    // Not by the address, which names the detail that is open.
    link.addEventListener("click", (event) => { event.preventDefault(); document.getElementById("s" + index).scrollIntoView({ behavior: "smooth" }); });
    return link;
  }));
  for (const place of main.querySelectorAll(".chart")) await place.plot();
}

function openDetail() {
  const dialog = document.getElementById("detail");
  const detail = (data.details ?? {})[location.hash.slice(1)];
  if (!detail) { dialog.close(); return; }
  const close = element("button", { textContent: "close" });
  close.addEventListener("click", () => dialog.close());
  dialog.replaceChildren(close, element("h2", { textContent: detail.title }));
  if (detail.picture) dialog.append(element("img", { src: detail.picture, alt: "samples of " + detail.title }));
  dialog.append(...draw.facts(detail));
  if (!dialog.open) dialog.showModal();
}

async function follow() {
  try {
    const answer = await fetch(LIVE + "?version=" + encodeURIComponent(data.version), { cache: "no-store" });
    if (answer.status === 200) {
      data = await answer.json();
      await render();
    }
  } catch { /* The server is away; the next look finds it. */ }
  setTimeout(follow, 4000);
}

document.getElementById("detail").addEventListener("close", () => history.replaceState(null, "", location.pathname + location.search));
addEventListener("hashchange", openDetail);
dark.addEventListener("change", () => { for (const place of main.querySelectorAll(".chart")) place.plot(); });
loadPlotly().then(render).then(openDetail).then(() => {
  document.documentElement.dataset.ready = "yes";
  if (LIVE) setTimeout(follow, 4000);
});
