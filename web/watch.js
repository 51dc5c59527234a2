// A viewer: one WebSocket for media and control, and a MediaSource that plays what comes.
// Flow control is ours: the service sends as many chunks as we gave credits for, and we give as many as we lack.

import { pack, unpack } from "./msgpack.js";

const WANTED = 2.4; // seconds of media that we like to have before us
const BEHIND = 30; // seconds that are kept behind the picture
const JUMP = 2; // a gap longer than this is jumped over
const WAITS = [200, 500, 1000, 2000, 4000]; // ms before each new try of a lost connection
const FINAL = new Set([1000, 4400, 4401, 4404, 4409, 4422]); // close codes after which trying again is no use

// Safari on a phone has the managed kind alone, and opens it only where the picture is not sent to another screen.
const Source = self.MediaSource ?? self.ManagedMediaSource;

/** Plays one session in a <video>. Events: "hello", "chunk", "state", "end", "problem", "connection". */
export class Watch extends EventTarget {
  constructor(video, session, { key = "", after = null } = {}) {
    super();
    Object.assign(this, { video, session, key, after });
    this.seconds = 0.64;
    this.queue = [];
    this.answers = new Map();
    this.number = 0;
    this.tries = 0;
    this.fresh = true;
    this.over = false;
    this.timer = setInterval(() => this.tend(), 250);
    this.connect();
  }

  close() {
    this.over = true;
    clearInterval(this.timer);
    this.socket?.close(1000);
    if (this.video.src) URL.revokeObjectURL(this.video.src);
    this.video.removeAttribute("src");
    this.video.load();
  }

  /** Direct the session; resolves to the receipt or rejects with the problem. */
  control(what) {
    if (this.socket.readyState !== WebSocket.OPEN) return Promise.reject({ detail: "there is no connection now" });
    const id = ++this.number;
    return new Promise((resolve, reject) => {
      this.answers.set(id, { resolve, reject });
      this.send({ type: "control", id, ...what });
    });
  }

  connect() {
    const query = new URLSearchParams({ credits: "4", fresh: String(this.fresh) });
    if (this.after !== null) query.set("after", String(this.after));
    const url = new URL(`/v1/sessions/${this.session}/watch?${query}`, location.href.replace(/^http/, "ws"));
    const protocols = ["longtake.v1", ...(this.key ? [`key.${this.key}`] : [])];
    const socket = new WebSocket(url, protocols);
    socket.binaryType = "arraybuffer";
    socket.onmessage = (event) => this.take(unpack(event.data));
    socket.onclose = (event) => this.lost(event);
    this.socket = socket;
  }

  lost(event) {
    for (const { reject } of this.answers.values()) reject({ detail: "the connection was lost" });
    this.answers.clear();
    if (this.over) return; // closed here, or the take has ended
    if (FINAL.has(event.code) || this.tries >= WAITS.length) {
      this.over = true;
      this.tell("connection", { lost: true, code: event.code, reason: event.reason });
      return;
    }
    this.tell("connection", { lost: false, code: event.code, reason: event.reason });
    setTimeout(() => this.over || this.connect(), WAITS[this.tries++]);
  }

  send(message) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(pack({ v: 1, ...message }));
  }

  take(message) {
    this.tries = 0;
    if (message.id !== undefined && message.id !== null) {
      const answer = this.answers.get(message.id);
      this.answers.delete(message.id);
      if (message.type === "problem") answer?.reject(message);
      else answer?.resolve(message);
      return;
    }
    if (message.type === "hello") this.seconds = message.chunk_seconds;
    if (message.type === "init") this.begin(message);
    if (message.type === "chunk") {
      if (message.data.length) this.queue.push(message.data);
      this.after = message.index;
      this.fresh = false;
      this.append();
      this.acknowledge();
    }
    if (message.type === "end") this.finish();
    this.tell(message.type, message);
  }

  tell(kind, detail) {
    this.dispatchEvent(new CustomEvent(kind, { detail }));
  }

  begin({ data, mime }) {
    const same = this.header && this.header.length === data.length && this.header.every((b, i) => b === data[i]);
    if (same && this.buffer) return; // the same encoder goes on
    this.header = data.slice();
    this.queue = [this.header];
    this.buffer = null;
    if (!Source?.isTypeSupported(mime)) {
      this.tell("problem", { detail: `this browser cannot play ${mime}` });
      return;
    }
    this.source = new Source();
    this.video.disableRemotePlayback = Source !== self.MediaSource;
    this.source.onsourceopen = () => {
      this.buffer = this.source.addSourceBuffer(mime);
      this.buffer.mode = "segments";
      this.buffer.onupdateend = () => this.append();
      this.append();
    };
    this.video.src = URL.createObjectURL(this.source);
    this.ended = false;
  }

  append() {
    const buffer = this.buffer;
    if (!buffer || buffer.updating || this.source.readyState !== "open") return;
    const old = this.video.currentTime - BEHIND;
    if (buffer.buffered.length && buffer.buffered.start(0) < old - 5) {
      buffer.remove(0, old);
    } else if (this.queue.length) {
      try {
        buffer.appendBuffer(this.queue[0]);
        this.queue.shift();
      } catch (error) {
        if (error.name !== "QuotaExceededError") throw error;
        buffer.remove(0, Math.max(0.1, this.video.currentTime - 2));
      }
    } else if (this.ended) {
      this.source.endOfStream();
    }
    this.place();
  }

  /** Seconds that can be played on without another chunk. */
  get buffered() {
    const ranges = this.buffer && this.source.readyState !== "closed" ? this.buffer.buffered : null;
    if (!ranges || !ranges.length) return 0;
    return Math.max(0, ranges.end(ranges.length - 1) - Math.max(this.video.currentTime, ranges.start(0)));
  }

  /** Step over what was never sent, and begin where the media begin. */
  place() {
    const { video } = this;
    const ranges = this.buffer?.buffered;
    if (!ranges?.length) return;
    for (let i = 0; i < ranges.length; i++) {
      if (video.currentTime < ranges.start(i)) {
        const gap = ranges.start(i) - video.currentTime;
        if (i === 0 || gap > JUMP || video.readyState < 3) video.currentTime = ranges.start(i) + 0.01;
        return;
      }
      if (video.currentTime <= ranges.end(i)) return;
    }
  }

  acknowledge() {
    if (this.after === null) return;
    const lacking = WANTED - this.buffered - this.queue.length * this.seconds;
    const credits = Math.max(0, Math.min(8, Math.ceil(lacking / this.seconds)));
    this.send({ type: "ack", chunk: this.after, credits, buffered: this.buffered });
  }

  tend() {
    if (this.over) return;
    this.append();
    this.acknowledge();
    const { buffered, video } = this;
    video.playbackRate = buffered > 2 * WANTED ? 1.05 : buffered < 0.3 ? 0.95 : 1;
  }

  finish() {
    this.ended = true;
    this.over = true;
    this.append();
  }
}
