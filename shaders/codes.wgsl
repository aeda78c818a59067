// Key/value caches of 8-bit codes, KV_I8 or KV_E4M3 (src/program/cache.rs): a row has kv · D codes, then kv scales (f32), then
// zeros up to 16 bytes. p.stride: words from row to row.

// Four codes as numbers, before their scale.
fn codes4(w: u32) -> vec4<f32> {
#if KV_I8
    return vec4<f32>(unpack4xI8(w));
#else
    let code = vec4<u32>(w) >> vec4<u32>(0u, 8u, 16u, 24u);
    let size = code & vec4<u32>(0x7fu);
    // Codes below 8 count 512ths: as f32s with the same fields they would be subnormal, and might become 0.
    let normal = bitcast<vec4<f32>>((size << vec4<u32>(20u)) + vec4<u32>(0x3c000000u));
    let v = select(normal, vec4<f32>(size) * (1.0 / 512.0), size < vec4<u32>(8u));
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(v) | ((code & vec4<u32>(0x80u)) << vec4<u32>(24u)));
#endif
}

// The code of a number that is scaled already.
fn encode(x: f32) -> u32 {
#if KV_I8
    return u32(i32(round(clamp(x, -127.0, 127.0)))) & 0xffu;
#else
    let size = min(abs(x), 448.0);
    let bits = bitcast<u32>(size);
    let normal = ((bits + 0x7ffffu + ((bits >> 20u) & 1u)) >> 20u) - 960u;
    let small = u32(round(size * 512.0));
    return ((bitcast<u32>(x) >> 24u) & 0x80u) | select(normal, small, size < 0.015625);
#endif
}

// The largest code: a head is scaled so that its largest element gets it.
fn largest_code() -> f32 {
#if KV_I8
    return 127.0;
#else
    return 448.0;
#endif
}

// What the elements of a head are multiplied by before they are coded, from the largest of them.
fn factor_of(top: f32) -> f32 {
    return select(largest_code() / max(top, 1e-30), 0.0, top < 1e-30);
}
