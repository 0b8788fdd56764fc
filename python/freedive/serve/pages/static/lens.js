// The logit lens: a row a layer, a column a token; each cell the likeliest next token there, tinted by its probability.
// columns: [text]; rows: [{name, cells: [{t, p, top: [[text, p], ...], same}]}]; same: it is what the last layer says
export default {
  props: { columns: Array, rows: Array },
  data: () => ({ told: "" }),
  template: `
    <div class="stack">
      <div class="lens" tabindex="0" role="region" aria-label="Logit lens: layers by tokens" @mouseleave="told = ''">
        <table><thead><tr><th scope="col">layer</th><th v-for="(c, i) in columns" :key="i" scope="col">{{ shown(c) }}</th></tr></thead>
          <tbody><tr v-for="r in rows" :key="r.name"><th scope="row">{{ r.name }}</th>
            <td v-for="(c, i) in r.cells" :key="i" :class="{right: c.same}" :style="{background: 'rgba(var(--heat), calc(.04 + var(--most) * ' + (0.85 * c.p).toFixed(3) + '))'}" :title="list(c)" @mouseenter="told = 'after ' + shown(columns[i]) + ', layer ' + r.name + ': ' + list(c)">{{ shown(c.t) }}</td></tr></tbody></table>
      </div>
      <div class="hint" aria-live="off" style="min-height: 1.5em">{{ told || 'Point at a cell for its five likeliest tokens. Outlined: what the last layer will say is there already.' }}</div>
    </div>`,
  methods: {
    shown: (t) => t.replace(/ /g, "·").replace(/\n/g, "↵").replace(/\t/g, "→") || "∅",
    list(c) { return c.top.map(([t, p]) => this.shown(t) + " " + (100 * p).toFixed(p < 0.1 ? 1 : 0) + "%").join("   "); },
  },
};
