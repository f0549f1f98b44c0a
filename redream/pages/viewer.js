// A small WebGL2 viewer: reads the GLB in #mesh (one triangle mesh with COLOR_0), draws it on #viewer, orbits by drag,
// pinch, wheel and arrow keys. glTF axes: y-up, front +z; azimuth 0 looks at the front and grows towards +x.
"use strict";
(() => {
  const canvas = document.getElementById("viewer");
  const stage = canvas.parentElement;
  const readout = document.getElementById("readout");
  const data = document.getElementById("mesh");
  const gl = canvas.getContext("webgl2", { antialias: true, alpha: true });
  if (!gl || !data) {
    stage.dataset.state = "poster"; // the poster image underneath stays
    return;
  }

  const mesh = parseGlb(Uint8Array.from(atob(data.textContent.trim()), (c) => c.charCodeAt(0)));
  const HOME = { azimuth: 30, elevation: 15, zoom: 1 };
  const view = { ...HOME, shading: 0, isTurning: !matchMedia("(prefers-reduced-motion: reduce)").matches };
  const SHADINGS = ["lit", "colour only", "shape only"];
  let draw = null;
  let frame = 0;
  let lastTime = 0;

  function parseGlb(bytes) {
    const file = new DataView(bytes.buffer);
    if (file.getUint32(0, true) !== 0x46546c67) throw new Error("the embedded mesh is no GLB");
    const jsonLength = file.getUint32(12, true);
    const tree = JSON.parse(new TextDecoder().decode(bytes.subarray(20, 20 + jsonLength)));
    const binaryStart = 20 + jsonLength + 8;
    const kinds = { 5121: Uint8Array, 5123: Uint16Array, 5125: Uint32Array, 5126: Float32Array };
    const widths = { SCALAR: 1, VEC2: 2, VEC3: 3, VEC4: 4 };
    const read = (index) => {
      const accessor = tree.accessors[index];
      const bufferView = tree.bufferViews[accessor.bufferView];
      const start = binaryStart + (bufferView.byteOffset || 0) + (accessor.byteOffset || 0);
      const Kind = kinds[accessor.componentType];
      const width = widths[accessor.type];
      const length = accessor.count * width * Kind.BYTES_PER_ELEMENT;
      // A copy, because the chunk need not be aligned to the component size.
      return { array: new Kind(bytes.slice(start, start + length).buffer), width, type: accessor.componentType,
               isNormalized: Boolean(accessor.normalized) };
    };
    const primitive = tree.meshes[0].primitives[0];
    const { POSITION, NORMAL, COLOR_0 } = primitive.attributes;
    return { position: read(POSITION), normal: read(NORMAL), color: read(COLOR_0), indices: read(primitive.indices) };
  }

  function compile(source, kind) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
    return shader;
  }

  function bounds() {
    const p = mesh.position.array;
    const low = [Infinity, Infinity, Infinity];
    const high = [-Infinity, -Infinity, -Infinity];
    for (let i = 0; i < p.length; i += 1) {
      low[i % 3] = Math.min(low[i % 3], p[i]);
      high[i % 3] = Math.max(high[i % 3], p[i]);
    }
    const center = low.map((value, k) => (value + high[k]) / 2);
    let radius = 1e-6;
    for (let i = 0; i < p.length; i += 3) {
      radius = Math.max(radius, Math.hypot(p[i] - center[0], p[i + 1] - center[1], p[i + 2] - center[2]));
    }
    return { center, radius };
  }

  function prepare() {
    const program = gl.createProgram();
    gl.attachShader(program, compile(`#version 300 es
      in vec3 position; in vec3 normal; in vec4 color;
      uniform mat4 clipFromModel;
      out vec3 shadeNormal; out vec3 linearColor;
      void main() {
        gl_Position = clipFromModel * vec4(position, 1.0);
        shadeNormal = normal;
        linearColor = color.rgb;
      }`, gl.VERTEX_SHADER));
    gl.attachShader(program, compile(`#version 300 es
      precision highp float;
      in vec3 shadeNormal; in vec3 linearColor;
      uniform vec3 toEye; uniform vec3 toLight; uniform int shading;
      out vec4 pixel;
      vec3 srgb(vec3 c) {
        return mix(12.92 * c, 1.055 * pow(max(c, 0.0), vec3(1.0 / 2.4)) - 0.055, step(0.0031308, c));
      }
      void main() {
        vec3 n = normalize(shadeNormal);
        float wrapped = 0.5 + 0.5 * dot(n, toLight);
        float facing = max(dot(n, toEye), 0.0);
        vec3 base = shading == 2 ? vec3(0.62) : srgb(linearColor);
        // The colours hold the light of the renders already: "lit" only models the form a little.
        float light = shading == 1 ? 1.0 : shading == 2 ? 0.30 + 0.75 * wrapped : 0.74 + 0.22 * wrapped + 0.08 * facing;
        pixel = vec4(min(base * light, 1.0), 1.0);
      }`, gl.FRAGMENT_SHADER));
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
    gl.useProgram(program);
    gl.bindVertexArray(gl.createVertexArray());
    for (const name of ["position", "normal", "color"]) {
      const { array, width, type, isNormalized } = mesh[name];
      const slot = gl.getAttribLocation(program, name);
      gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
      gl.bufferData(gl.ARRAY_BUFFER, array, gl.STATIC_DRAW);
      gl.enableVertexAttribArray(slot);
      gl.vertexAttribPointer(slot, width, type, isNormalized, 0, 0);
    }
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, mesh.indices.array, gl.STATIC_DRAW);
    gl.enable(gl.DEPTH_TEST);
    gl.clearColor(0, 0, 0, 0);
    const uniform = (name) => gl.getUniformLocation(program, name);
    const places = { clipFromModel: uniform("clipFromModel"), toEye: uniform("toEye"), toLight: uniform("toLight"),
                     shading: uniform("shading") };
    const { center, radius } = bounds();

    draw = () => {
      const azimuth = view.azimuth * Math.PI / 180;
      const elevation = view.elevation * Math.PI / 180;
      const [sa, ca, se, ce] = [Math.sin(azimuth), Math.cos(azimuth), Math.sin(elevation), Math.cos(elevation)];
      const back = [sa * ce, se, ca * ce];
      const right = [ca, 0, -sa];
      const up = [-sa * se, ce, -ca * se];
      const half = Math.tan(17.5 * Math.PI / 180);
      const aspect = canvas.width / canvas.height;
      const distance = 1.08 * radius / (Math.sin(17.5 * Math.PI / 180) * Math.min(1, aspect) * view.zoom);
      const [near, far] = [Math.max(distance - 1.5 * radius, 0.01 * radius), distance + 1.5 * radius];
      const [fx, fy] = [1 / (half * aspect), 1 / half];
      const [a, b] = [-(far + near) / (far - near), -2 * far * near / (far - near)];
      const dot = (u, v) => u[0] * v[0] + u[1] * v[1] + u[2] * v[2];
      const eye = center.map((value, k) => value + distance * back[k]);
      const column = (k) => [fx * right[k], fy * up[k], a * back[k], -back[k]];
      const tz = -dot(back, eye);
      const matrix = [...column(0), ...column(1), ...column(2),
                      -fx * dot(right, eye), -fy * dot(up, eye), a * tz + b, -tz];
      const key = [0, 1, 2].map((k) => 0.55 * right[k] + 0.65 * up[k] + 0.75 * back[k]);
      const norm = Math.hypot(...key);
      gl.viewport(0, 0, canvas.width, canvas.height);
      gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
      gl.uniformMatrix4fv(places.clipFromModel, false, matrix);
      gl.uniform3fv(places.toEye, back);
      gl.uniform3fv(places.toLight, key.map((value) => value / norm));
      gl.uniform1i(places.shading, view.shading);
      gl.drawElements(gl.TRIANGLES, mesh.indices.array.length, mesh.indices.type, 0);
      const shown = Math.round((view.azimuth % 360 + 540) % 360 - 180);
      readout.textContent = `azimuth ${shown}°, elevation ${Math.round(view.elevation)}°`;
      stage.dataset.state = "live";
    };
  }

  function request() {
    if (!frame) frame = requestAnimationFrame(tick);
  }

  function tick(time) {
    frame = 0;
    if (view.isTurning) {
      view.azimuth += Math.min(time - (lastTime || time), 50) * 0.024; // one turn in 15 s
      lastTime = time;
      request();
    }
    if (draw && canvas.width && canvas.height) draw();
  }

  function turn(isTurning) {
    view.isTurning = isTurning;
    lastTime = 0;
    turnButton.setAttribute("aria-pressed", String(isTurning));
    request();
  }

  function orbitBy(azimuth, elevation) {
    view.azimuth += azimuth;
    view.elevation = Math.max(-89, Math.min(89, view.elevation + elevation));
    turn(false);
  }

  function zoomBy(factor) {
    view.zoom = Math.max(0.4, Math.min(6, view.zoom * factor));
    request();
  }

  const turnButton = document.getElementById("turn");
  turnButton.addEventListener("click", () => turn(!view.isTurning));
  const shadeButton = document.getElementById("shade");
  shadeButton.addEventListener("click", () => {
    view.shading = (view.shading + 1) % SHADINGS.length;
    shadeButton.textContent = SHADINGS[view.shading];
    request();
  });
  const reset = () => {
    Object.assign(view, HOME);
    request();
  };
  document.getElementById("reset").addEventListener("click", reset);

  const fingers = new Map();
  canvas.addEventListener("pointerdown", (event) => {
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    const from = fingers.get(event.pointerId);
    if (!from) return;
    const spread = () => {
      const [p, q] = [...fingers.values()];
      return Math.hypot(p.x - q.x, p.y - q.y);
    };
    const before = fingers.size === 2 ? spread() : 0;
    const [dx, dy] = [event.clientX - from.x, event.clientY - from.y];
    Object.assign(from, { x: event.clientX, y: event.clientY });
    if (fingers.size === 2 && before > 0) zoomBy(spread() / before);
    else if (fingers.size === 1) orbitBy(-dx * 0.5, dy * 0.4);
  });
  for (const name of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(name, (event) => fingers.delete(event.pointerId));
  }
  // The wheel scrolls the page until the viewer has been clicked, so that nobody gets stuck on it.
  canvas.addEventListener("wheel", (event) => {
    if (document.activeElement !== canvas && !event.ctrlKey) return;
    event.preventDefault();
    zoomBy(Math.exp(-event.deltaY * 0.0015));
  }, { passive: false });
  canvas.addEventListener("dblclick", reset);
  canvas.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [10, 0], ArrowRight: [-10, 0], ArrowUp: [0, 5], ArrowDown: [0, -5] };
    if (moves[event.key]) orbitBy(...moves[event.key]);
    else if (event.key === "+" || event.key === "=") zoomBy(1.15);
    else if (event.key === "-") zoomBy(1 / 1.15);
    else return;
    event.preventDefault();
  });
  canvas.addEventListener("webglcontextlost", (event) => {
    event.preventDefault();
    draw = null;
    stage.dataset.state = "poster";
  });
  canvas.addEventListener("webglcontextrestored", () => {
    prepare();
    request();
  });
  new ResizeObserver(() => {
    const scale = Math.min(devicePixelRatio || 1, 2);
    canvas.width = Math.max(1, Math.round(canvas.clientWidth * scale));
    canvas.height = Math.max(1, Math.round(canvas.clientHeight * scale));
    request();
  }).observe(canvas);

  prepare();
  turn(view.isTurning);
})();
