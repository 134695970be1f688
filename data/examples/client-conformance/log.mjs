// A user's log as the server keeps it for a client that resumes.

/** Entries 1 to `last`, each removed once acknowledged. */
export class Log {
  acknowledged = 0;
  last = 0;
  /** Ranges that the server has dropped: `{ from, to, reason }`. */
  gaps = [];

  append(count) {
    this.last += count;
  }

  drop(from, to, reason) {
    this.gaps.push({ from, to, reason });
  }

  #isStored(seq) {
    return !this.gaps.some(({ from, to }) => from <= seq && seq <= to);
  }

  /**
   * Answers op 2 of a client that resumes, and sends what is stored above its position: at most `count` entries. `repeat` sends
   * each entry twice.
   */
  async serve(peer, { count = Infinity, repeat = 1 } = {}) {
    peer.onFrame = ({ op, d }) => {
      if (op === 3 && d.s <= this.last) this.acknowledged = Math.max(this.acknowledged, d.s);
    };
    const { after } = await peer.authenticate();
    const isFromThisLog = Number.isInteger(after) && after <= this.last;
    if (isFromThisLog) this.acknowledged = Math.max(this.acknowledged, after);
    const position = isFromThisLog ? after : this.acknowledged;
    const stored = [];
    for (let seq = position + 1; seq <= this.last; seq += 1) if (this.#isStored(seq)) stored.push(seq);
    const first = stored[0] ?? this.last + 1;
    const gaps = this.gaps.filter(({ to }) => to > position);
    const atStart = gaps.find(({ from }) => from <= position + 1) ?? null;
    peer.send(13, { d: { first, last: this.last, missed: atStart && { ...atStart, from: position + 1 } } });
    for (const seq of stored.slice(0, count)) {
      const missed = gaps.find((gap) => gap !== atStart && gap.to === seq - 1);
      if (missed) peer.send(13, { d: { first, last: this.last, missed } });
      for (let time = 0; time < repeat; time += 1) peer.send(0, { d: { n: seq }, t: 'ENTRY', s: seq });
    }
    return after;
  }
}
