"use strict";
// What the pages do by themselves: live updates over one WebSocket, and the line chart.
(() => {
  const state = document.getElementById("live");
  const wait_ms = { first: 1000, most: 30000 };
  let socket = null;
  let delay_ms = wait_ms.first;
  let timer = 0;
  let chart = null;

  const address = () => location.pathname + location.search;

  function say(kind, text) {
    if (state.dataset.kind === kind) return;
    state.dataset.kind = kind;
    state.textContent = text;
  }

  function connect() {
    clearTimeout(timer);
    if (socket || document.hidden) return;
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const mine = (socket = new WebSocket(`${scheme}//${location.host}/live`));
    mine.onopen = () => {
      delay_ms = wait_ms.first;
      mine.send(address());
      say("on", "live");
    };
    mine.onmessage = (event) => {
      for (const [id, html] of Object.entries(JSON.parse(event.data).parts)) replace(id, html);
      draw();
    };
    mine.onclose = () => {
      if (socket !== mine) return;
      socket = null;
      if (document.hidden) return;
      say("off", "not live: trying again");
      timer = setTimeout(connect, delay_ms);
      delay_ms = Math.min(delay_ms * 2, wait_ms.most);
    };
  }

  function disconnect() {
    clearTimeout(timer);
    const mine = socket;
    socket = null;
    if (mine) mine.close();
  }

  // Morphs, so that focus, scrolling and opened details stay as they are.
  function replace(id, html) {
    const target = document.getElementById(id);
    if (target) htmx.swap({ sourceElement: target, target, text: html, swap: "outerMorph" });
  }

  function colors() {
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue(name).trim();
    return { text: of("--quiet"), grid: of("--line"), p50: of("--accent"), p95: of("--second") };
  }

  function options(width) {
    const c = colors();
    const axis = { stroke: c.text, grid: { stroke: c.grid, width: 1 }, ticks: { stroke: c.grid, width: 1 } };
    const ms = (v) => (v == null ? "–" : `${+v.toPrecision(3)} ms`);
    const line = (label, stroke, dash) => ({ label, stroke, dash, width: 2, spanGaps: true, value: (_, v) => ms(v) });
    const two = (n) => String(n).padStart(2, "0");
    const hour = (s) => ((d) => `${two(d.getUTCHours())}:${two(d.getUTCMinutes())}`)(new Date(s * 1e3));
    return {
      width,
      tzDate: (s) => uPlot.tzDate(new Date(s * 1e3), "Etc/UTC"),
      height: 210,
      scales: { y: { range: (_, low, high) => [0, (high || 1) * 1.1] } },
      series: [{ value: "{YYYY}-{MM}-{DD} {HH}:{mm}" }, line("p50", c.p50), line("p95", c.p95, [6, 4])],
      axes: [{ ...axis, values: (_, times) => times.map(hour) }, { ...axis, size: 60, values: (_, values) => values.map(ms) }],
      cursor: { drag: { x: false, y: false } },
    };
  }

  function draw(anew) {
    const place = document.getElementById("series");
    const data = document.getElementById("series-data");
    if (!place || !data) return;
    const columns = JSON.parse(data.dataset.series);
    if (anew && chart) {
      chart.destroy();
      chart = null;
    }
    if (chart && place.contains(chart.root)) {
      chart.setData(columns);
    } else {
      chart = new uPlot(options(place.clientWidth), columns, place);
    }
  }

  addEventListener("resize", () => {
    const place = document.getElementById("series");
    if (chart && place) chart.setSize({ width: place.clientWidth, height: 210 });
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw(true));
  draw();

  if (!document.body.hasAttribute("data-live")) return;
  document.addEventListener("visibilitychange", () => (document.hidden ? disconnect() : connect()));
  // A filter changed the address without loading the page anew.
  document.addEventListener("htmx:after:swap", () => {
    if (socket && socket.readyState === WebSocket.OPEN && socket.shown !== address()) {
      socket.shown = address();
      socket.send(socket.shown);
    }
  });
  connect();
})();
