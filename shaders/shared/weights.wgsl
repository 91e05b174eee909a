// Reading frozen weights in their stored type, four consecutive inputs at a time.
//
// A row of a weight is padded to a multiple of four elements, so one read is
//   f32          one vec4<f32>                      (16 bytes)
//   f16 / bf16   one vec2<u32>, low half first      (8 bytes)
// The element type is a shader def, so that each pipeline has one load path: WEIGHT = 0 (f32), 1 (f16), 2 (bf16).
// (No alias for the packed type: naga_oil cannot export one.)
#define_import_path maskwright::weights

// unpack: four weights as f32. keep: the packed weights with every element whose bit (0..3 of `bits`) is 0 set to +0.0.
#if WEIGHT == 0
fn unpack(p: vec4<f32>) -> vec4<f32> {
    return p;
}

fn keep(p: vec4<f32>, bits: u32) -> vec4<f32> {
    return select(vec4<f32>(), p, (vec4<u32>(bits) & vec4<u32>(1u, 2u, 4u, 8u)) != vec4<u32>());
}
#else
fn unpack(p: vec2<u32>) -> vec4<f32> {
#if WEIGHT == 1
    return vec4<f32>(unpack2x16float(p.x), unpack2x16float(p.y));
#else
    // bf16 is the upper half of an f32.
    return bitcast<vec4<f32>>(vec4<u32>(p.x << 16u, p.x & 0xffff0000u, p.y << 16u, p.y & 0xffff0000u));
#endif
}

fn keep(p: vec2<u32>, bits: u32) -> vec2<u32> {
    let low = (vec2<u32>(bits) >> vec2<u32>(0u, 2u)) & vec2<u32>(1u);
    let high = (vec2<u32>(bits) >> vec2<u32>(1u, 3u)) & vec2<u32>(1u);
    return p & (low * 0xffffu | high * 0xffff0000u);
}
#endif
