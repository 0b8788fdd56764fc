// A text in tokens, each tinted by how unlikely it was. Hover or focus shows what else could have stood there; a click on one continues from it.
// tokens: [{t: text, p: probability or null, alts: [[text, id, p], ...], special}]. Text is set as text, never as HTML.
export default {
  props: { tokens: Array, pick: Boolean, code: Boolean, lead: String, label: String },
  data: () => ({ at: -1, held: false, x: 0, y: 0, tab: 0 }),
  template: `
    <div class="toks" :class="{code}" ref="root" @mouseleave="leave" role="group" :aria-label="label || 'Tokens, tinted by probability'">
      <span v-if="lead" class="ws">{{ lead }}</span><span v-for="(k, i) in tokens" :key="i" class="t" :class="{special: k.special, on: i === at}" :style="tint(k)" role="button"
        :tabindex="i === tab ? 0 : -1" :aria-label="name(k)" aria-haspopup="true" @mouseenter="hover(i, $event.target)" @focus="hover(i, $event.target)" @click="show(i, $event.target, true)"
        @keydown.right.prevent="step(i + 1)" @keydown.left.prevent="step(i - 1)" @keydown.enter.prevent="open(i, $event.target)" @keydown.esc="hide">{{ lines(k.t) }}</span>
      <div v-if="at >= 0 && tokens[at]" class="pop" :style="{left: x + 'px', top: y + 'px'}" ref="pop" @keydown.esc.stop="back">
        <div class="top">{{ tokens[at].p == null ? 'not drawn by the model' : percent(tokens[at].p) + ' likely' }}<template v-if="pick && tokens[at].alts.length"> · choose another to go on from here</template></div>
        <button v-for="(a, j) in tokens[at].alts" :key="j" type="button" :class="{taken: a[1] === tokens[at].id}" :disabled="!pick" @click="choose(a)" @keydown.down.prevent="walk(j + 1)" @keydown.up.prevent="walk(j - 1)">
          <i :style="{width: Math.max(1, 100 * a[2]) + '%'}"></i><span>{{ shown(a[0]) }}</span><span>{{ percent(a[2]) }}</span></button>
      </div>
    </div>`,
  methods: {
    percent: (p) => (p >= 0.9995 ? "100%" : p >= 0.1 ? (100 * p).toFixed(0) + "%" : p >= 0.001 ? (100 * p).toFixed(1) + "%" : "<0.1%"),
    shown: (t) => t.replace(/ /g, "·").replace(/\n/g, "↵").replace(/\t/g, "→") || "∅",
    lines: (t) => t.replace(/\n/g, "↵\n"),
    tint(k) {
      return k.p == null || k.special ? {} : { background: `rgba(var(--warm), calc(var(--most) * ${Math.pow(1 - k.p, 1.3).toFixed(3)}))` };
    },
    name(k) {
      return this.shown(k.t) + (k.p == null ? "" : ", " + this.percent(k.p));
    },
    hover(i, el) { if (!this.held) this.show(i, el, false); },
    show(i, el, hold) {
      this.at = i; this.tab = i; this.held = hold;
      const root = this.$refs.root.getBoundingClientRect(), box = el.getClientRects()[0] || el.getBoundingClientRect();
      this.x = Math.max(0, Math.min(box.left - root.left, root.width - 272));
      this.y = box.bottom - root.top + 4;
    },
    open(i, el) {
      this.show(i, el, true);
      this.$nextTick(() => this.walk(0));
    },
    walk(j) {
      const all = this.$refs.pop?.querySelectorAll("button") || [];
      if (all.length) all[(j + all.length) % all.length].focus();
    },
    back() {
      const i = this.at;
      this.hide();
      this.$refs.root.querySelectorAll(".t")[i]?.focus();
      this.hide();
    },
    step(i) {
      this.held = false;
      const all = this.$refs.root.querySelectorAll(".t");
      if (all.length) all[Math.max(0, Math.min(i, all.length - 1))].focus();
    },
    leave() { if (!this.held) this.at = -1; },
    hide() { this.at = -1; this.held = false; },
    choose(a) {
      if (!this.pick) return;
      this.$emit("pick", { index: this.tokens[this.at].i, id: a[1] });
      this.hide();
    },
  },
  mounted() {
    this.outside = (e) => { if (!this.$refs.root?.contains(e.target)) this.hide(); };
    document.addEventListener("mousedown", this.outside);
  },
  unmounted() { document.removeEventListener("mousedown", this.outside); },
};
