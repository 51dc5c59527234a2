// MessagePack, as much of it as the protocol uses: nil, booleans, numbers, strings, bytes, arrays and maps.

const text = new TextDecoder();
const bytesOf = new TextEncoder();

/** The value that `buffer` (an ArrayBuffer) packs. Bytes are views into it, not copies. */
export function unpack(buffer) {
  const view = new DataView(buffer);
  let at = 0;

  function take(count) {
    if (at + count > view.byteLength) throw new RangeError("the message ends too early");
    at += count;
    return at - count;
  }
  const uint = (size) => {
    const from = take(size);
    if (size === 1) return view.getUint8(from);
    if (size === 2) return view.getUint16(from);
    if (size === 4) return view.getUint32(from);
    return Number(view.getBigUint64(from));
  };
  const int = (size) => {
    const from = take(size);
    if (size === 1) return view.getInt8(from);
    if (size === 2) return view.getInt16(from);
    if (size === 4) return view.getInt32(from);
    return Number(view.getBigInt64(from));
  };
  const bytes = (count) => new Uint8Array(buffer, take(count), count);
  const string = (count) => text.decode(bytes(count));
  const array = (count) => Array.from({ length: count }, value);
  function map(count) {
    const found = {};
    for (let i = 0; i < count; i++) {
      const key = value();
      found[key] = value();
    }
    return found;
  }
  function value() {
    const kind = uint(1);
    if (kind < 0x80) return kind;
    if (kind < 0x90) return map(kind & 15);
    if (kind < 0xa0) return array(kind & 15);
    if (kind < 0xc0) return string(kind & 31);
    if (kind >= 0xe0) return kind - 0x100;
    switch (kind) {
      case 0xc0: return null;
      case 0xc2: return false;
      case 0xc3: return true;
      case 0xc4: return bytes(uint(1));
      case 0xc5: return bytes(uint(2));
      case 0xc6: return bytes(uint(4));
      case 0xca: return view.getFloat32(take(4));
      case 0xcb: return view.getFloat64(take(8));
      case 0xcc: return uint(1);
      case 0xcd: return uint(2);
      case 0xce: return uint(4);
      case 0xcf: return uint(8);
      case 0xd0: return int(1);
      case 0xd1: return int(2);
      case 0xd2: return int(4);
      case 0xd3: return int(8);
      case 0xd9: return string(uint(1));
      case 0xda: return string(uint(2));
      case 0xdb: return string(uint(4));
      case 0xdc: return array(uint(2));
      case 0xdd: return array(uint(4));
      case 0xde: return map(uint(2));
      case 0xdf: return map(uint(4));
      default: throw new TypeError(`unknown kind 0x${kind.toString(16)} in a message`);
    }
  }
  return value();
}

/** `value` packed; numbers, strings, booleans, null, arrays and plain objects. */
export function pack(value) {
  const parts = [];
  const put = (size, write) => {
    const view = new DataView(new ArrayBuffer(size));
    write(view);
    parts.push(new Uint8Array(view.buffer));
  };
  function add(item) {
    if (item === null || item === undefined) return put(1, (v) => v.setUint8(0, 0xc0));
    if (typeof item === "boolean") return put(1, (v) => v.setUint8(0, item ? 0xc3 : 0xc2));
    if (typeof item === "number") {
      if (Number.isInteger(item) && Math.abs(item) < 2 ** 31) {
        return put(5, (v) => { v.setUint8(0, 0xd2); v.setInt32(1, item); });
      }
      return put(9, (v) => { v.setUint8(0, 0xcb); v.setFloat64(1, item); });
    }
    if (typeof item === "string") {
      const encoded = bytesOf.encode(item);
      put(5, (v) => { v.setUint8(0, 0xdb); v.setUint32(1, encoded.length); });
      return parts.push(encoded);
    }
    const entries = Array.isArray(item) ? item : Object.entries(item);
    put(5, (v) => { v.setUint8(0, Array.isArray(item) ? 0xdd : 0xdf); v.setUint32(1, entries.length); });
    for (const entry of entries) Array.isArray(item) ? add(entry) : entry.forEach(add);
  }
  add(value);
  return new Blob(parts);
}
