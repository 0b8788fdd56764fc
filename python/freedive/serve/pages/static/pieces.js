// A text in the pieces a model sees, and their ids below; pointing at one marks the other.
// pieces: [{t: text, ids: [numbers], c: colour, special, trained}]
export default {
  props: { pieces: Array, whitespace: Boolean, more: Number },
  data: () => ({ on: -1 }),
  template: `
    <div class="stack" @mouseleave="on = -1">
      <div class="pieces" data-testid="pieces"><span v-for="(p, i) in pieces" :key="i" class="p" :class="{special: p.special, trained: p.trained, on: i === on}" :style="{background: p.c}" :title="'id ' + p.ids.join(', ')" @mouseenter="on = i">{{ shown(p) }}</span></div>
      <div class="ids" data-testid="ids"><span v-for="(p, i) in pieces" :key="i" class="p" :class="{special: p.special, on: i === on}" :style="{background: p.c}" @mouseenter="on = i">{{ p.ids.join(' ') }}</span></div>
      <div v-if="more" class="hint">and {{ more.toLocaleString('en') }} more pieces, which are counted and not drawn</div>
    </div>`,
  methods: {
    shown(p) {
      return this.whitespace ? p.t.replace(/ /g, "·").replace(/\n/g, "↵\n").replace(/\t/g, "→\t") : p.t.replace(/\n/g, "\n");
    },
  },
};
