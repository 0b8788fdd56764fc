// Attention of one layer: a small map a head, the chosen one large, and beside it the text tinted by where the token pointed at looks.
// maps: base64 of H x N x N bytes, row by row, 255 = all of the attention; words: [text] of the N tokens
export default {
  props: { maps: String, heads: Number, words: Array, layer: Number },
  data: () => ({ head: 0, row: -1, bytes: null }),
  template: `
    <div class="stack">
      <div class="heads" role="group" :aria-label="'Heads of layer ' + layer">
        <button v-for="h in heads" :key="h" type="button" :aria-pressed="h - 1 === head ? 'true' : 'false'" @click="head = h - 1; paint()"><canvas :ref="'small' + h" aria-hidden="true"></canvas>head {{ h }}</button>
      </div>
      <div class="bighead">
        <canvas ref="big" role="img" :aria-label="'Attention of layer ' + layer + ', head ' + (head + 1)" @mousemove="point" @mouseleave="row = -1"></canvas>
        <div class="stack">
          <div class="attends"><span v-for="(w, i) in words" :key="i" :class="{from: i === at()}" :style="{background: 'rgba(var(--warm), calc(var(--most) * ' + weight(i).toFixed(3) + '))'}" @mouseenter="row = i">{{ w }}</span></div>
          <div class="hint">Outlined: the token that looks. Tinted: where it looks. Point at a row of the map, or at a word; unless you do, it is the last token.</div>
        </div>
      </div>
    </div>`,
  mounted() { this.take(); this.watcher = new MutationObserver(() => this.paint()); this.watcher.observe(document.body, { attributes: true, attributeFilter: ["class"] }); },
  unmounted() { this.watcher.disconnect(); },
  watch: { maps() { this.head = 0; this.take(); } },
  methods: {
    at() { return this.row < 0 ? this.words.length - 1 : this.row; },
    take() {
      this.bytes = Uint8Array.from(atob(this.maps), (c) => c.charCodeAt(0));
      this.row = -1;
      this.$nextTick(() => this.paint());
    },
    weight(j) {
      const n = this.words.length;
      return this.bytes ? (1.1 * this.bytes[(this.head * n + this.at()) * n + j]) / 255 : 0;
    },
    point(e) {
      const box = e.target.getBoundingClientRect();
      this.row = Math.max(0, Math.min(this.words.length - 1, Math.floor(((e.clientY - box.top) / box.height) * this.words.length)));
    },
    paint() {
      const rgb = getComputedStyle(document.body).getPropertyValue("--heat").split(",").map(Number);
      for (let h = 0; h < this.heads; h++) this.draw([this.$refs["small" + (h + 1)]].flat()[0], h, rgb);
      this.draw(this.$refs.big, this.head, rgb);
    },
    draw(canvas, h, rgb) {
      const n = this.words.length;
      if (!canvas || !this.bytes) return;
      canvas.width = canvas.height = n;
      const image = new ImageData(n, n);
      for (let i = 0; i < n * n; i++) {
        image.data.set(rgb, 4 * i);
        image.data[4 * i + 3] = 255 * Math.sqrt(this.bytes[h * n * n + i] / 255);  // the root shows the faint ones too
      }
      canvas.getContext("2d").putImageData(image, 0, 0);
    },
  },
};
