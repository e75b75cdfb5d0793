"use strict";
// List the routes of /openapi.json.

function element(tag, properties, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

async function show() {
  const api = await (await fetch("/openapi.json")).json();
  document.getElementById("title").textContent = api.info.title;
  document.getElementById("example").textContent = "curl --data-binary @photo.jpg " + location.origin + "/predict";
  const routes = document.getElementById("routes");
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const codes = Object.entries(operation.responses).filter(([code]) => code !== "200");
      const route = element("div", { className: "route" },
        element("code", { textContent: method.toUpperCase() + " " + path }),
        element("p", { textContent: operation.summary }));
      if (codes.length) {
        route.append(element("ul", {}, ...codes.map(([code, { description }]) =>
          element("li", { textContent: code + ": " + description }))));
      }
      routes.append(route);
    }
  }
}

show();
